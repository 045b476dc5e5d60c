"""Result files that are there already, scored without a model: `python -m vinvl.evaluate results=FILE data=NAME`."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.data.module import RegionDataModule, file_names, plain
from vinvl.examples import EXAMPLES, AboutExamples, write_examples
from vinvl.restore import TASK_OF_DATA
from vinvl.run.errors import UserError, say
from vinvl.run.files import write_json
from vinvl.run.missing import ONLY_OF_RESULTS
from vinvl.run.overrides import command_overrides, given_values
from vinvl.run.progress import print_results
from vinvl.said import MISSING, Scored


def score_results(config: DictConfig) -> dict[str, float]:
    """Scores `config.results` on `data.test_split`; results.json and examples.parquet go to the run folder.

    Raises UserError if the file is none of the task's, names a record twice, or none of the split's.
    """
    path, split = Path(str(config.results)).expanduser(), str(config.data.test_split)
    if config.missing not in MISSING:
        raise UserError(f"missing={config.missing} is no way to count what is missing: give {', '.join(MISSING)}.")
    if not path.exists():
        raise UserError(f"results={path} does not exist: give the file of results that is to be scored.")
    data: Any = instantiate(config.data)
    room = TASK_OF_DATA.fullmatch(type(data).__module__)
    if not isinstance(data, RegionDataModule) or room is None or room[1] == "pretraining":
        raise UserError(
            f"results={path}: data of {type(data).__name__} have no result files; give data=NAME of a task."
        )
    refuse_other_task(given_values(command_overrides()), room[1])
    if config.attentions is not None and room[1] != "gqa":
        raise UserError(f"attentions={config.attentions} is for GQA's grounding, and the data are of {room[1]}.")
    if data.prepare is not None:
        data.prepare()
    records: Any = data.read_split(split)
    if not records.annotated:
        raise UserError(f"Split '{split}' has no annotations to score {path} by: pass data.test_split=NAME.")
    extra: dict[str, Any] = {"attentions": config.attentions} if room[1] == "gqa" else {}
    extra |= {"java": bool(config.java_metrics)} if room[1] == "captioning" else {}
    found: Scored = import_module(f"vinvl.{room[1]}.results").score(data, records, path, str(config.missing), **extra)
    files = tuple(file_names(plain(data.split_files(split))))
    about = AboutExamples(room[1], split, found.headline, str(path), files, regions=data.named_stores(split))
    tell(found, about, config)
    return found.scores


def refuse_mixed(given: Mapping[str, Any]) -> None:
    """Raises UserError for a command that names a checkpoint and a file of results, or options of what it does not."""
    if given.get("results") is None:
        if unused := [name for name in ONLY_OF_RESULTS if name in given]:
            name = unused[0].removesuffix("_name")
            raise UserError(
                f"{name}={given[unused[0]]} is about a file of results: pass results=FILE, or leave it out."
            )
    elif "ckpt_path" in given:
        raise UserError(f"ckpt_path={given['ckpt_path']} and results={given['results']} are given: score one of them.")


def refuse_other_task(given: Mapping[str, Any], room: str) -> None:
    """Raises UserError if the command names another task than that of the data."""
    wanted = given.get("task_name")
    if wanted is not None and str(wanted) != room:
        raise UserError(
            f"task={wanted} is given, and the data are of {room}: pass data=NAME of the task, or leave it out."
        )


def tell(found: Scored, about: AboutExamples, config: DictConfig) -> None:
    """Writes what was found and prints the table of it."""
    folder = Path(config.paths.output_dir)
    written = {"split": about.split, "results": about.source, "headline": found.headline, "scores": found.scores}
    write_json(folder / "results.json", written | ({"missing": found.missing} if found.missing else {}))
    write_examples(folder / EXAMPLES, found.examples, about)
    files = {"run folder": folder, "results": folder / "results.json", "examples": folder / EXAMPLES}
    print_results(
        f"{Path(about.source).name} on '{about.split}'", found.rows, {**files, "scored file": Path(about.source)}
    )
    say(*([f"\n{found.text}"] if found.text else []))
    say(*found.told, error=True)
