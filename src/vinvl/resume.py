"""Going on with a run: which checkpoint, whether it is of this very run, and what of the run's folder is kept."""

import zlib
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from omegaconf import DictConfig

from vinvl.checkpointing import remove_partial_checkpoints
from vinvl.errors import UserError
from vinvl.faults import AUTO, CHECKPOINTS
from vinvl.options import leaves
from vinvl.runs import resolve_checkpoint, task_class
from vinvl.tasks.base import VinVLTask
from vinvl.tasks.checkpoints import load_into, read_checkpoint
from vinvl.trained.tokenizers import refuse_other_words, words_of_run

ORDER = "training_order"  # in the run_config that a checkpoint carries: what the order of the batches follows from
RECIPE = (  # what a run is made of: with another value it would be another run
    "seed",
    "task._target_",
    "task.options",
    "model.config",
    "optim",
    "data",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    ORDER,
)
HARMLESS = (  # how it is worked on, and what is scored afterwards
    "model.config.attn_implementation",  # what model.attention says
    "task.options.java_metrics",
    "data.num_workers",
    "data.index_workers",
    "data.pin_memory",
    "data.cache",
    "data.token_cache",
    "data.verify_regions",
    "data.eval_batch_size",
    "data.test_split",
    "data.predict_split",
    "data.prepare",
)
NAMES_SHOWN = 4  # of the values in which two runs differ


def resume_path(config: DictConfig) -> Path | None:
    """The checkpoint that `config.ckpt_path` means, None where the run begins anew.

    `auto` is the `last` of the run's own folder once there is one.

    Raises:
        UserError: there is no such checkpoint.
    """
    if config.ckpt_path is None:
        return None
    if config.ckpt_path != AUTO:
        return resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    path = Path(config.paths.output_dir) / CHECKPOINTS / "last.ckpt"
    return path if path.is_file() else None


class OrderedData(Protocol):
    """A datamodule whose batches are made up by the lengths of its examples."""

    @property
    def datasets(self) -> Mapping[str, Any]: ...


def training_order(datamodule: OrderedData, world_size: int) -> dict[str, int]:
    """What, besides seed and batch size, the order of the training batches follows from.

    ranks: processes that share the batches. items: examples of an epoch. lengths: a checksum of their lengths, by which
    batches are made up; files that were moved have the same, files that were changed hardly ever.
    """
    lengths = np.ascontiguousarray(datamodule.datasets["train"].lengths(), dtype=np.int64)
    return {"ranks": world_size, "items": len(lengths), "lengths": zlib.crc32(lengths.data)}


def check_resumable(task: VinVLTask, path: Path) -> None:
    """Refuses to go on from a checkpoint of another task, another model or another run, before anything is touched.

    Raises:
        UserError: names what differs, and how to begin a new run from the weights instead.
    """
    checkpoint = read_checkpoint(path)
    found = task_class(checkpoint, path)
    if type(task) is not found:
        raise UserError(f"{path} is a checkpoint of {found.__name__}, and this run trains {type(task).__name__}.")
    refuse_another_run(checkpoint["vinvl"]["run_config"], task.run_config, path, RECIPE, f"model.init={path}")
    refuse_other_words(words_of_run(checkpoint), task.words or {}, str(path), "data.tokenizer")
    load_into(task, checkpoint, path)


def refuse_another_run(
    before: Mapping[str, Any], now: Mapping[str, Any], path: Path, recipe: tuple[str, ...], instead: str
) -> None:
    """Refuses to go on with a run that was given other values than this one.

    Args:
        before, now: run configurations.
        path: the checkpoint, for the message.
        recipe: keys, or sections, that make a run what it is.
        instead: what begins a new run from the weights, for the message.

    Raises:
        UserError: names what differs.
    """
    differing = list(differences(before, now, recipe))
    if differing:
        shown = "; ".join(f"{key} was {before!r} and is {now!r}" for key, before, now in differing[:NAMES_SHOWN])
        more = f"; and {len(differing) - NAMES_SHOWN} more" if len(differing) > NAMES_SHOWN else ""
        raise UserError(
            f"{path} is of another run, whose batches or updates would not go on here: {shown}{more}. Give what that "
            f"run was given, or begin a new run from its weights with ckpt_path=null {instead}."
        )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], recipe: tuple[str, ...] = RECIPE
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value then, value now) of all that makes these run configurations those of two different runs.

    A file of the same name in another place counts as the same: `training_order` tells whether its examples are. A key
    that only one of them has is passed over, because another version of vinvl may have added it.
    """
    then, current = dict(leaves(before)), dict(leaves(now))
    for key, value in current.items():
        if _within(key, recipe) and not _within(key, HARMLESS) and key in then and not _same(then[key], value):
            yield key, then[key], value


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _same(before: object, now: object) -> bool:
    if isinstance(before, str) and isinstance(now, str):
        return Path(before).name == Path(now).name
    return before == now


def tidy_run_folder(folder: Path) -> None:
    """Before a run goes on in its folder: half-written checkpoints go, and the log of the time before is kept.

    Lightning's CSV logger begins a new `metrics.csv` and deletes the old one; that is `metrics.1.csv` then, or 2, 3, …
    """
    remove_partial_checkpoints(folder / CHECKPOINTS)
    log = folder / "csv" / "metrics.csv"
    if log.is_file():
        free = next(path for number in count(1) if not (path := log.with_name(f"metrics.{number}.csv")).exists())
        log.rename(free)
