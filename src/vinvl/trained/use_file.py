"""vinvl.json in a model folder: its task, how it is used, and how the features were made it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vinvl.data.feature_record import FeatureRecord
from vinvl.data.json_files import json_object
from vinvl.models import LoadingReport
from vinvl.models.checkpoint_files import CheckpointFiles
from vinvl.models.key_names import DATA_PARALLEL, MMF_MODEL
from vinvl.tasks.checkpoints import OUR_KEY
from vinvl.trained.usage import DATA_OF_TASK, MMF_RECIPE, Usage, said_by_run

USE_FILE = "vinvl.json"


def record_of_use(
    task: str | None, ours: Mapping[str, Any], files: CheckpointFiles, report: LoadingReport
) -> dict[str, Any] | None:
    """What the file says of a model; None where the task is none that a model is used for.

    Of anybody else's weights no more than the task is known, and whether they are MMF's. Of paths the file has the last
    name alone, for folders are published.

    Raises:
        UserError: a checkpoint of ours says of itself what cannot be.
    """
    if task not in DATA_OF_TASK:
        return None
    if not ours:
        return {"task": task, "recipe": recipe_of(report)}
    usage = Usage.of_task(task, said_by_run(ours), {}, {}, files.name).plain()
    if usage["inputs"]["tags"] is not None:
        usage["inputs"]["tags"] = Path(usage["inputs"]["tags"]).name
    constraints = usage["decoding"]["constraints"]
    if constraints is not None:
        usage["decoding"]["constraints"] = {name: _bare(value) for name, value in constraints.items()}
    features = FeatureRecord.of_plain(ours[OUR_KEY].get("features")).plain()
    return {"task": task, **usage, "features": features}


def recipe_of(report: LoadingReport) -> str | None:
    """The recipe whose numbers weights are used with, where they are not those of Oscar: MMF's, by their names."""
    originals = (DATA_PARALLEL.sub("", original) for original, _ in report.renamed)
    return MMF_RECIPE if any(MMF_MODEL.match(name) for name in originals) else None


def read_use_file(folder: Path) -> dict[str, Any]:
    """What the file in a folder says, {} if there is none; its values are not checked.

    Raises:
        UserError: it is no JSON object.
    """
    path = folder / USE_FILE
    if not path.is_file():
        return {}
    return json_object(path)


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(one) for one in value]
    return Path(value).name if isinstance(value, str) else value
