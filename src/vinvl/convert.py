"""Weights, region features and annotations in and out: `python -m vinvl.convert`, which conf/convert.yaml describes."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vinvl.detector.conversion import ConversionSettings, convert_annotations
from vinvl.detector.vocabulary import VocabularySettings, make_vocabulary
from vinvl.models.published import (
    FORMATS,
    check_tokenizer,
    convert_model,
    model_card,
    write_oscar,
    write_transformers,
)
from vinvl.models.weights import answers_in
from vinvl.opening import USE_FILE, OpenedModel, find_tokenizer, name_the_answers, rows_of_given
from vinvl.pictures import ReadingOptions
from vinvl.predictor.trained import only_task_of, record_of_use
from vinvl.published import convert_published
from vinvl.regions.formats.convert import run_conversion
from vinvl.regions.formats.export import write_m2_hdf5, write_mmf_npy, write_oscar_tsv
from vinvl.regions.store import RegionStore
from vinvl.run.door import door, enter
from vinvl.run.errors import UserError, say
from vinvl.run.files import new_folder, refuse_existing, write_json
from vinvl.run.options import task_as_a_value

STORE_FORMATS = {"oscar_tsv": write_oscar_tsv, "mmf_npy": write_mmf_npy, "m2_hdf5": write_m2_hdf5}


def convert(config: DictConfig) -> Path:
    """Weights or region features, whichever are given, → `config.to`."""
    if config.published is not None:
        if config.weights is not None or config["from"] is not None:
            raise UserError("Pass one of the three: published=… , weights=… or from=….")
        stores = Path(config.paths.data_dir) / "published" if config.to is None else Path(str(config.to)).expanduser()
        convert_published(Path(str(config.published)).expanduser(), stores)
        return stores
    if config.to is None:
        raise UserError("to must be given: pass to=PATH, the folder or store to write.")
    if config.vocabulary.base is not None or config.vocabulary.sets is not None:
        settings, target = OmegaConf.to_container(config.vocabulary, resolve=True), Path(str(config.to)).expanduser()
        say(*make_vocabulary(VocabularySettings(**settings), target), f"They are in {target}")  # type: ignore[arg-type]
        return target
    if config.annotations is not None:
        return convert_boxes(config)
    if (config.weights is None) == (config["from"] is None):
        raise UserError("Pass one of the two: weights=… for a model, or from=… for region features.")
    return convert_weights(config) if config["from"] is None else convert_regions(config)


def convert_boxes(config: DictConfig) -> Path:
    """The annotations of a data set for detectors, as it is downloaded → the file `config.to`."""
    target, several = Path(str(config.to)).expanduser(), OmegaConf.is_list(config.annotations)
    given = config.annotations if several else [config.annotations]
    sources = [Path(str(one)).expanduser() for one in given]
    pictures = None if config.pictures is None else Path(str(config.pictures)).expanduser()
    options: Any = OmegaConf.to_container(config.data, resolve=True)
    settings = ConversionSettings(**{**options, "reading": ReadingOptions(**options["reading"])})
    say(*convert_annotations(sources, pictures, target, settings))
    return target


def convert_regions(config: DictConfig) -> Path:
    """Other people's region features → a store `config.to`, or a store → a folder in the format of others."""
    source, target = Path(str(config["from"])).expanduser(), Path(str(config.to)).expanduser()
    if config.format in STORE_FORMATS:
        store = RegionStore(source)
        store.require_sound()
        with new_folder(target) as folder:
            left_out = STORE_FORMATS[config.format](store, folder)
        say(f"{target}: the features of {source} as {config.format}", *([left_out] if left_out else []))
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
    task = task or only_task_of(model)
    with new_folder(target) as folder:
        if config.format == "oscar":
            write_oscar(model, tokenizer, folder, task)
        else:
            write_transformers(model, tokenizer, folder)
            if (use := record_of_use(task, opened, report)) is not None:
                write_json(folder / USE_FILE, use)
        if (texts := answers_in(model.config.id2label)) is not None:
            (folder / "answers.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n", encoding="utf-8")
        card = model_card(model, report, task=task, **opened.provenance())
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "conversion.txt").write_text("\n".join(report.rows()) + "\n", encoding="utf-8")
    say(*str(report).split("\n"))
    say(f"{type(model).__name__} is in {target}; {target / 'conversion.txt'} lists every tensor")
    return target


main = door(convert, "convert")


if __name__ == "__main__":
    enter(main, "convert", task_as_a_value(sys.argv[1:]))
