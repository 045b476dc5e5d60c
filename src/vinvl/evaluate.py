"""Score a checkpoint: `python -m vinvl.evaluate ckpt_path=FILE [data.test_split=NAME]`.

`python -m vinvl.evaluate results=FILE data=NAME`: score a file of results, without a model.
`python -m vinvl.evaluate published=ROOT/TASK ckpt_path=FOLDER`: figures on a released data set beside those published.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter, telling
from vinvl.run.errors import say
from vinvl.run.files import write_json
from vinvl.run.folders import NAMED_CHECKPOINTS
from vinvl.run.options import open_sections, task_as_a_value
from vinvl.run.overrides import command_overrides, given_values
from vinvl.run.progress import part_of, print_results, profiler, report
from vinvl.zoo import COLUMNS, compared, comparing, recipe_of, scorable_splits, zoo

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from vinvl.restore import Restored


def evaluate(config: DictConfig) -> dict[str, float]:
    """A checkpoint's scores on `data.test_split`; results.json goes to `config.paths.output_dir`."""
    if config.published.compare is not None:
        return evaluate_published(config)
    from vinvl.results import refuse_mixed, score_results

    refuse_mixed(given_values(command_overrides()))
    if config.results is not None:
        return score_results(config)
    restored = scored(config)
    if restored.task.trainer.is_global_zero:
        split = restored.data.test_split
        report(
            restored.task,
            Path(config.paths.output_dir),
            split=split,
            checkpoint=str(restored.path),
            left_out=restored.datamodule.skipped.get(split, 0),
        )
    return restored.task.scores


def scored(config: DictConfig) -> Restored:
    """The checkpoint, evaluated on the test split: `task.scores`."""
    from pytorch_lightning import seed_everything

    from vinvl.restore import restore
    from vinvl.run.callbacks import progress
    from vinvl.run.memory import FittingBatch
    from vinvl.run.survival import StopAtOnce

    seed_everything(config.seed, verbose=False)
    restored = restore(config, "test")
    restored.datamodule.setup("test")
    own = {"callbacks": [progress(), StopAtOnce(), FittingBatch()], "profiler": profiler(config)}
    trainer: pl.Trainer = instantiate(config.trainer, **own, logger=False, enable_checkpointing=False)
    trainer.test(restored.task, datamodule=restored.datamodule, verbose=False)
    return restored


def evaluate_published(config: DictConfig) -> dict[str, float]:
    """Scores of a checkpoint on the splits of a released data set, and a table of them beside those published.

    Returns the scores of the first split. Raises UserError if files of the release are missing.
    """
    name, given, missing = str(config.published.compare), given_values(command_overrides()), list[Path]()
    if config.ckpt_path not in NAMED_CHECKPOINTS:
        path = Path(str(config.ckpt_path)).expanduser()
        path = path if path.exists() else Path(config.published.root) / path
        config.ckpt_path, missing = str(path), [] if path.exists() else [path]
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    chosen = str(config.data.test_split) if "data.test_split" in given else None
    results: dict[str, Restored] = {}
    for split in scorable_splits(name, plain, chosen, missing):
        config.data.test_split = split
        for key, value in zoo()["scored"][name]["splits"].get(split, {}).get("set", {}).items():
            config.data[key] = given.get(f"data.{key}", value)
        results[split] = scored(config)
    first = next(iter(results.values()))
    if first.task.trainer.is_global_zero:
        tell_published(config, results, only=chosen is not None)
    return first.task.scores


def tell_published(config: DictConfig, results: dict[str, Restored], *, only: bool) -> None:
    """Prints the table of our figures beside those published, of the scored splits `only`; writes results.json."""
    name, output, first = str(config.published.compare), Path(config.paths.output_dir), next(iter(results.values()))
    recipe, notes = recipe_of(name, first.path, first.task.config.hidden_size)
    scores = {split: one.task.scores for split, one in results.items()}
    rows = compared(name, recipe, scores, only)
    waiting = {one.split: None for one in rows if one.split in zoo()["scored"][name].get("server", ())}
    if waiting:
        command = f"vinvl.predict data={name} published.root={config.published.root} ckpt_path={first.path}"
        notes.append(f"{', '.join(waiting)}: needs the server, for which there is python -m {command}")
    if any("†" in (one.figure or "") for one in rows):
        notes.append("† quoted from memory of the paper, unchecked")
    trainers = {split: one.task.trainer for split, one in results.items()}
    left_out = {split: one.datamodule.skipped[split] for split, one in results.items()}
    notes += [f"{count:,} records of {split} without regions, not scored" for split, count in left_out.items() if count]
    parts = {split: part_of(tester.num_test_batches, tester.test_dataloaders) for split, tester in trainers.items()}
    notes += [f"{split}: {part} only" for split, part in parts.items() if part is not None]
    table = {"recipe": recipe, "rows": [one.plain() for one in rows], "notes": notes}
    told = {"split": next(iter(results)), "checkpoint": str(first.path), "headline": first.task.headline}
    write_json(output / "results.json", told | {"scores": first.task.scores, "scores_of": scores, "published": table})
    files = {"run folder": output, "results": output / "results.json", "checkpoint": first.path}
    for split, one in results.items():
        own = {} if len(results) == 1 else {"name": f"examples_{split}.parquet"}
        files |= one.task.write_examples(output, split, str(one.path), left_out[split], **own)
    title = f"{name} beside the published {recipe}" if recipe else f"{name}, with nothing published to compare"
    print_results(title, [one.row() for one in rows], files, COLUMNS)
    say(*notes)


main = door(evaluate, "evaluate")


if __name__ == "__main__":
    with telling():
        arguments = open_sections(comparing(task_as_a_value(sys.argv[1:])))
    enter(main, "evaluate", arguments, restored=("data", "decoding"))
