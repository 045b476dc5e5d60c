"""Weights, region features and annotations in and out: `python -m vinvl.convert`, which conf/convert.yaml describes."""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter
from vinvl.run.errors import UserError, say
from vinvl.run.files import new_folder, refuse_existing, write_json
from vinvl.run.options import task_as_a_value
from vinvl.run.overrides import section


def convert(config: DictConfig) -> Path:
    """What one of `WAYS` names → `config.to`."""
    given = [name for name in WAYS if OmegaConf.select(config, name) is not None]
    if len(given) != 1:
        raise UserError(f"Pass one of {', '.join(f'{name}=…' for name in WAYS)}, not {' and '.join(given) or 'none'}.")
    if config.to is None and given != ["published"]:
        raise UserError("to must be given: pass to=PATH, the folder, file or store to write.")
    return WAYS[given[0]](config)


def convert_stores(config: DictConfig) -> Path:
    """The published folders → stores in `config.to`."""
    from vinvl.published import convert_published

    stores = Path(config.paths.data_dir) / "published" if config.to is None else path_of(config.to)
    convert_published(path_of(config.published), stores)
    return stores


def convert_names(config: DictConfig) -> Path:
    """The names of the classes of several data sets → a folder `config.to` with one vocabulary of them."""
    from vinvl.detector.vocabulary import VocabularySettings, make_vocabulary

    say(*make_vocabulary(VocabularySettings(**section(config, "vocabulary")), path_of(config.to)))
    return path_of(config.to)


def convert_boxes(config: DictConfig) -> Path:
    """The annotations of a data set for detectors, as it is downloaded → the file `config.to`."""
    from vinvl.detector.conversion import ConversionSettings, convert_annotations
    from vinvl.pictures import ReadingOptions

    several, settings = OmegaConf.is_list(config.annotations), section(config, "data")
    sources = list(map(path_of, config.annotations if several else [config.annotations]))
    pictures = None if config.pictures is None else path_of(config.pictures)
    settings["reading"] = ReadingOptions(**settings["reading"])
    say(*convert_annotations(sources, pictures, path_of(config.to), ConversionSettings(**settings)))
    return path_of(config.to)


def convert_regions(config: DictConfig) -> Path:
    """Other people's region features → a store `config.to`, or a store → a folder in the format of others."""
    from vinvl.regions.formats.convert import run_conversion
    from vinvl.regions.formats.export import STORE_FORMATS, export_store

    source, target = path_of(config["from"]), path_of(config.to)
    if config.format in STORE_FORMATS:
        say(*export_store(source, target, config.format))
    elif config.format == "transformers":
        say(run_conversion(source, target, section(config, "features")))
    else:
        raise UserError(f"format is {config.format!r}; of features choose one of {', '.join(STORE_FORMATS)}.")
    return target


def convert_weights(config: DictConfig) -> Path:
    """Weights → a new folder `config.to`; says what became of every tensor."""
    import torch

    from vinvl.models.published import FORMATS, check_tokenizer, convert_model
    from vinvl.opening import OpenedModel, find_tokenizer, name_the_answers, rows_of_given
    from vinvl.predictor.trained import only_task_of

    target = path_of(config.to)
    if config.format not in FORMATS:
        raise UserError(f"format is {config.format!r}; choose one of {', '.join(FORMATS)}.")
    refuse_existing(target)
    opened = OpenedModel.of(str(config.weights))
    files, task = opened.files, config.task_name or opened.task
    torch.manual_seed(config.seed)
    model, report = convert_model(
        files, task, section(config, "config"), lambda size: rows_of_given(config.answers, files, size, new_ones=True)
    )
    name_the_answers(model, task, config.answers, files)
    name, tokenizer = find_tokenizer(config.tokenizer, files)
    check_tokenizer(model, tokenizer, name)
    task = task or only_task_of(model)
    with new_folder(target) as folder:
        write_model(folder, model, tokenizer, task, opened, report, as_oscar=config.format == "oscar")
    say(*str(report).split("\n"))
    say(f"{type(model).__name__} is in {target}; {target / 'conversion.txt'} lists every tensor")
    return target


def write_model(
    folder: Path, model: Any, tokenizer: Any, task: str | None, opened: Any, report: Any, *, as_oscar: bool
) -> None:
    """Weights, tokenizer, answers, model card and the list of tensors → a folder.

    Args:
        opened: the `OpenedModel` that it comes from.
        report: what became of its tensors.
        as_oscar: under the published names, not those of transformers.
    """
    from vinvl.models.published import model_card, write_oscar, write_transformers
    from vinvl.models.weights import answers_in
    from vinvl.opening import USE_FILE
    from vinvl.predictor.trained import record_of_use

    if as_oscar:
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


def path_of(given: object) -> Path:
    return Path(str(given)).expanduser()


WAYS = {
    "weights": convert_weights,
    "from": convert_regions,
    "annotations": convert_boxes,
    "vocabulary.base": convert_names,
    "published": convert_stores,
}
main = door(convert, "convert")


if __name__ == "__main__":
    enter(main, "convert", task_as_a_value(sys.argv[1:]))
