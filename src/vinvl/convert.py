"""Weights and region features in and out: `python -m vinvl.convert weights=… to=FOLDER` or `from=… to=features.h5`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import BertTokenizer, PreTrainedTokenizerBase

from vinvl.data.features_in import run_conversion
from vinvl.data.features_out import write_mmf_npy, write_oscar_tsv
from vinvl.data.json_files import read_json
from vinvl.data.store import RegionStore
from vinvl.data.text import load_tokenizer
from vinvl.errors import UserError
from vinvl.models.checkpoint_files import TRAINING_CHECKPOINT, CheckpointFiles, find_checkpoint
from vinvl.models.conversion import convert_model
from vinvl.models.export import FORMATS, check_tokenizer, name_answers, named_answers, write_oscar, write_transformers
from vinvl.models.model_card import Provenance, model_card
from vinvl.models.model_kinds import ENCODER, MODEL_OF_TASK, model_of_task
from vinvl.new_folder import new_folder, refuse_existing
from vinvl.runs import CHECKPOINTS, config_directory, register_resolvers, run_door, task_class
from vinvl.tasks.checkpoints import OUR_KEY, read_checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY = "vocab.txt"
STORE_FORMATS = {"oscar_tsv": write_oscar_tsv, "mmf_npy": write_mmf_npy}

register_resolvers()


def convert(config: DictConfig) -> Path:
    """Weights or region features, whichever are given, → `config.to`."""
    if (config.weights is None) == (config["from"] is None):
        raise UserError("Pass one of the two: weights=… for a model, or from=… for region features.")
    return convert_weights(config) if config["from"] is None else convert_regions(config)


def convert_regions(config: DictConfig) -> Path:
    """Other people's region features → a store `config.to`, or a store → a folder in the format of others."""
    source, target = Path(str(config["from"])).expanduser(), Path(str(config.to)).expanduser()
    if config.format in STORE_FORMATS:
        with new_folder(target) as folder:
            STORE_FORMATS[config.format](RegionStore(source), folder)
        print(f"{target}: the features of {source} as {config.format}")
        return target
    if config.format != "transformers":
        raise UserError(f"format is {config.format!r}; of features choose one of {', '.join(STORE_FORMATS)}.")
    settings = OmegaConf.to_container(config.features, resolve=True)
    assert isinstance(settings, dict)
    print(run_conversion(source, target, {str(name): value for name, value in settings.items()}))
    return target


def convert_weights(config: DictConfig) -> Path:
    """Weights → a new folder `config.to`; says what became of every tensor."""
    weights, target = str(config.weights), Path(str(config.to)).expanduser()
    if config.format not in FORMATS:
        raise UserError(f"format is {config.format!r}; choose one of {', '.join(FORMATS)}.")
    refuse_existing(target)
    files = find_checkpoint(weights)
    ours = read_ours(files)
    task = config.task_name or task_of(ours, files)
    given = OmegaConf.to_container(config.config, resolve=True)
    assert isinstance(given, dict)
    torch.manual_seed(config.seed)
    model, report = convert_model(files, task, {str(name): value for name, value in given.items()})
    answers = ours.get("hyper_parameters", {}).get("answers")
    if isinstance(answers, list) and len(answers) == model.config.num_labels and task in ("vqa", "gqa"):
        name_answers(model, answers)
    name, tokenizer = find_tokenizer(config.tokenizer, files, ours)
    check_tokenizer(model, tokenizer, name)
    task = task or (ENCODER if type(model) is MODEL_OF_TASK[ENCODER] else only_task_of(model))
    with new_folder(target) as folder:
        if config.format == "oscar":
            write_oscar(model, tokenizer, folder, task)
        else:
            write_transformers(model, tokenizer, folder)
        if (texts := named_answers(model)) is not None:
            (folder / "answers.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n", encoding="utf-8")
        card = model_card(model, provenance(files, ours, task), report)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "conversion.txt").write_text("\n".join(report.rows()) + "\n", encoding="utf-8")
    print(f"{report}\n{type(model).__name__} lies in {target}; {target / 'conversion.txt'} lists every tensor")
    return target


def read_ours(files: CheckpointFiles) -> dict[str, Any]:
    """The content of a checkpoint of ours, {} for anybody else's weights."""
    if files.weights.suffix != TRAINING_CHECKPOINT or not files.config:
        return {}
    checkpoint = read_checkpoint(files.weights)
    del checkpoint["state_dict"]  # read again where it is needed: two copies would not fit where one does
    return checkpoint


def task_of(ours: Mapping[str, Any], files: CheckpointFiles) -> str | None:
    """The task that a checkpoint of ours was trained on, None for anybody else's."""
    if not ours:
        return None
    name = task_class(dict(ours), files.weights).__module__.rpartition(".")[2]
    model_of_task(name)
    return name


def only_task_of(model: object) -> str | None:
    """The task of a model that only one has."""
    tasks = [task for task, kind in MODEL_OF_TASK.items() if kind is type(model)]
    return tasks[0] if len(tasks) == 1 else None


def find_tokenizer(
    name: str | None, files: CheckpointFiles, ours: Mapping[str, Any]
) -> tuple[str, PreTrainedTokenizerBase]:
    """The tokenizer that a person named, or else that of the training run, or else the one beside the weights.

    Raises:
        UserError: there is none.
    """
    if name is None and ours:
        data = ours[OUR_KEY]["run_config"].get("data")
        name = data.get("tokenizer") if isinstance(data, dict) else None
    if name is None and not Path(files.name).expanduser().exists():
        name = files.name  # of a model on the hub, only the weights have been downloaded
    folder = Path(name).expanduser() if name is not None else files.weights.parent
    if not any((folder / one).is_file() for one in TOKENIZER_FILES) and (folder / VOCABULARY).is_file():
        return str(folder), tokenizer_of_vocabulary(folder / VOCABULARY)  # as Oscar was published
    if name is not None:
        return name, load_tokenizer(name)
    if not any((folder / one).is_file() for one in TOKENIZER_FILES):
        raise UserError(
            f"No tokenizer lies beside {files.name}: pass tokenizer=bert-base-uncased, or the folder of the one that "
            "the model was trained with."
        )
    return str(folder), load_tokenizer(folder)


def tokenizer_of_vocabulary(path: Path) -> PreTrainedTokenizerBase:
    """BERT's lower-casing tokenizer of a vocab.txt alone.

    Raises:
        UserError: it is no vocabulary of BERT's.
    """
    try:
        words = path.read_text(encoding="utf-8").splitlines()
        missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word not in words]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again, or pass tokenizer=NAME.") from None
    if missing:
        raise UserError(f"{path} is no vocabulary of BERT's: it has no {missing[0]}; pass tokenizer=NAME.")
    return BertTokenizer.from_pretrained(path.parent, do_lower_case=True)


def provenance(files: CheckpointFiles, ours: Mapping[str, Any], task: str | None) -> Provenance:
    """What the model card says of where the weights come from."""
    results = results_of(files.weights)
    return Provenance(
        source=Path(files.name).name if Path(files.name).exists() else files.name,
        task=task,
        data=data_of(ours),
        split=results.get("split"),
        scores={name: value for name, value in results.get("scores", {}).items() if isinstance(value, int | float)},
    )


def results_of(weights: Path) -> dict[str, Any]:
    """The results.json of the run that a checkpoint lies in, where they are this checkpoint's and not another's."""
    folder = weights.parent.parent if weights.parent.name == CHECKPOINTS else weights.parent
    path = folder / "results.json"
    if not path.is_file():
        return {}
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("scores"), dict):
        return {}  # a result file of another program
    scored = results.get("checkpoint")
    return results if scored is not None and Path(str(scored)).name == weights.name else {}


def data_of(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run's data that tell a reader something; of paths the last name alone, for cards are published."""
    if not ours:
        return {}
    run_config = ours[OUR_KEY]["run_config"]
    data = run_config.get("data")
    if not isinstance(data, dict):
        return {}
    told = {"data": run_config.get("name"), "reader": data.get("_target_")}
    told |= {name: data.get(name) for name in ("train_split", "max_tokens", "max_regions", "use_tags", "use_regions")}
    told |= {name: Path(str(data[name])).name for name in ("regions", "answers", "tokenizer") if data.get(name)}
    return {name: value for name, value in told.items() if value is not None}


def task_as_a_value(arguments: list[str]) -> list[str]:
    """Command-line arguments, `task=NAME` as `task_name=NAME`: Hydra takes `task` for the group of files conf/task."""
    return [
        argument.replace("task=", "task_name=", 1) if argument.startswith("task=") else argument
        for argument in arguments
    ]


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="convert")
def main(config: DictConfig) -> None:
    run_door(convert, config)


if __name__ == "__main__":
    sys.argv[1:] = task_as_a_value(sys.argv[1:])
    main()
