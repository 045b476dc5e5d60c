"""Weights and region features in and out: `python -m vinvl.convert weights=… to=FOLDER` or `from=… to=features.h5`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from vinvl.models.answering import VinVLForAnswering
from vinvl.models.export import (
    FORMATS,
    Provenance,
    check_tokenizer,
    model_card,
    name_answers,
    named_answers,
    write_oscar,
    write_transformers,
)
from vinvl.models.published import ENCODER, MODEL_OF_TASK, convert_model
from vinvl.models.weight_files import CheckpointFiles
from vinvl.predictor.trained import only_task_of, record_of_use
from vinvl.regions.formats.convert import run_conversion
from vinvl.regions.formats.export import write_mmf_npy, write_oscar_tsv
from vinvl.regions.store import RegionStore
from vinvl.run.checkpoint import OUR_KEY
from vinvl.run.door import enter
from vinvl.run.errors import UserError, say
from vinvl.run.faults import CHECKPOINTS
from vinvl.run.files import new_folder, read_json, refuse_existing
from vinvl.run.folders import config_directory, register_resolvers, run_door, task_as_a_value, write_json
from vinvl.trained import USE_FILE, OpenedModel, find_answers, find_tokenizer, rows_of_given

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
        store = RegionStore(source)
        store.require_sound()
        with new_folder(target) as folder:
            STORE_FORMATS[config.format](store, folder)
        say(f"{target}: the features of {source} as {config.format}")
        return target
    if config.format != "transformers":
        raise UserError(f"format is {config.format!r}; of features choose one of {', '.join(STORE_FORMATS)}.")
    settings = OmegaConf.to_container(config.features, resolve=True)
    assert isinstance(settings, dict)
    say(run_conversion(source, target, {str(name): value for name, value in settings.items()}))
    return target


def convert_weights(config: DictConfig) -> Path:
    """Weights → a new folder `config.to`; says what became of every tensor."""
    weights, target = str(config.weights), Path(str(config.to)).expanduser()
    if config.format not in FORMATS:
        raise UserError(f"format is {config.format!r}; choose one of {', '.join(FORMATS)}.")
    refuse_existing(target)
    opened = OpenedModel.of(weights)
    files = opened.files
    task = config.task_name or opened.task
    given = OmegaConf.to_container(config.config, resolve=True)
    assert isinstance(given, dict)
    torch.manual_seed(config.seed)
    model, report = convert_model(
        files,
        task,
        {str(name): value for name, value in given.items()},
        lambda size: rows_of_given(config.answers, files, size, new_ones=True),
    )
    name_the_answers(model, task, config.answers, files)
    name, tokenizer = find_tokenizer(config.tokenizer, files)
    check_tokenizer(model, tokenizer, name)
    task = task or (ENCODER if type(model) is MODEL_OF_TASK[ENCODER] else only_task_of(model))
    with new_folder(target) as folder:
        if config.format == "oscar":
            write_oscar(model, tokenizer, folder, task)
        else:
            write_transformers(model, tokenizer, folder)
            if (use := record_of_use(task, opened, report)) is not None:
                write_json(folder / USE_FILE, use)
        if (texts := named_answers(model)) is not None:
            (folder / "answers.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n", encoding="utf-8")
        card = model_card(model, provenance(files, opened.ours, task), report)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "conversion.txt").write_text("\n".join(report.rows()) + "\n", encoding="utf-8")
    say(*str(report).split("\n"))
    say(f"{type(model).__name__} is in {target}; {target / 'conversion.txt'} lists every tensor")
    return target


def name_the_answers(model: PreTrainedModel, task: str | None, given: str | None, files: CheckpointFiles) -> None:
    """Puts the texts of its answers into the configuration of a model that has answers.

    Raises:
        UserError: some were given that are not this model's.
    """
    if given is not None and not isinstance(model, VinVLForAnswering):
        raise UserError(f"{files.name} is a {type(model).__name__}, which has no answers: leave answers=… out.")
    if given is not None or task in ("vqa", "gqa"):
        answers = find_answers(given, files, model)
        if answers is not None:
            name_answers(model, answers)


def provenance(files: CheckpointFiles, ours: Mapping[str, Any], task: str | None) -> Provenance:
    """What the model card says about the origin of the weights."""
    results = results_of(files.weights)
    return Provenance(
        source=Path(files.name).name if Path(files.name).exists() else files.name,
        task=task,
        data=data_of(ours),
        split=results.get("split"),
        scores={name: value for name, value in results.get("scores", {}).items() if isinstance(value, int | float)},
    )


def results_of(weights: Path) -> dict[str, Any]:
    """The results.json of a checkpoint's run, if they are this checkpoint's and not another's."""
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
    """Settings of a run's data that tell a reader something; only the last names of paths: cards are published."""
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


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="convert")
def main(config: DictConfig) -> None:
    run_door(convert, config)


if __name__ == "__main__":
    enter(main, "convert", task_as_a_value(sys.argv[1:]))
