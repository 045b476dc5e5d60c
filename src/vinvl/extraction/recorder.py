"""What the devices find goes into the journal of the store; what is broken is kept for the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from vinvl.data.pictures import Unusable
from vinvl.data.store import LabelMap
from vinvl.data.store.journal import JournalPart, committed_images
from vinvl.data.store.spool import RowShapes
from vinvl.errors import UserError
from vinvl.extraction.feed import PictureBatch
from vinvl.extraction.module import Detected
from vinvl.progress import Show, progress
from vinvl.signals import StopRequest

LOOK_SECONDS = 2.0  # between two looks at how far other processes are


class Stopped(Exception):  # noqa: N818, it is no error
    """The process was asked to stop and did; what was done is committed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Stopped as asked to; what was done is kept, and the same command goes on with the rest.")
        self.exit_code = exit_code


class Recorder(Callback):
    """Adds every batch's regions to this process's part of the journal; stops on SIGTERM, SIGUSR1 and Ctrl-C.

    Args:
        target: the store; its journal has begun when prediction starts.
        begin: called first, on rank 0 alone; the others wait for it.
        shapes, label_map: of the store.
        total: pictures in all.
        done: pictures that were in the store or its journal before.
        commit_seconds: see `JournalPart`.

    Attributes:
        unusable: pictures of this process that could not be used.
    """

    def __init__(
        self,
        target: Path,
        begin: Callable[[], None],
        shapes: RowShapes,
        label_map: LabelMap,
        *,
        total: int,
        done: int,
        commit_seconds: float,
    ) -> None:
        self._target, self._begin, self._shapes, self._label_map = target, begin, shapes, label_map
        self._total, self._done, self._commit_seconds = total, done, commit_seconds
        self.unusable: list[Unusable] = []
        self._journal: JournalPart | None = None
        self._added = 0
        self._request = StopRequest("these pictures")
        self._others: _Others | None = None
        self._stack = ExitStack()
        self._show: Show = lambda now, note="": None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._request.listen()
        if trainer.is_global_zero:
            self._begin()
        trainer.strategy.barrier()
        self._journal = JournalPart(
            self._target, trainer.global_rank, self._shapes, self._label_map, self._commit_seconds
        )
        if trainer.is_global_zero:
            self._others = _Others(self._target, trainer.global_rank)
            self._show = self._stack.enter_context(progress("images", self._total, self._done))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PictureBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        found: Detected = outputs
        assert self._journal is not None
        self.unusable.extend(found[1])
        paths = dict(zip(batch.ids, batch.paths, strict=True))
        for regions in found[0]:
            try:
                self._journal.add([regions])
                self._added += 1
            except UserError as error:
                if isinstance(error.__cause__, OSError):
                    raise
                self.unusable.append(Unusable(paths[regions.image_id], str(error)))
        if self._others is not None:
            now = self._done + self._added + len(self.unusable) + self._others.added()
            self._show(now, f", {len(self.unusable):,} broken" if self.unusable else "")
        if self._request.received is not None:
            raise Stopped(self._request.exit_code)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.finish()

    def finish(self) -> None:
        """Commit what has been added."""
        self._stack.close()
        if self._journal is not None:
            journal, self._journal = self._journal, None
            journal.commit()
            journal.close()


class _Others:
    """How many images the other processes have committed since this one began."""

    def __init__(self, target: Path, own: int) -> None:
        self._target, self._own = target, own
        self._before = self._now = committed_images(target, besides=own)
        self._looked = time.monotonic()

    def added(self) -> int:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._now = committed_images(self._target, besides=self._own)
        return self._now - self._before
