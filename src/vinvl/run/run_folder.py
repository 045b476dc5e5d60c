"""A run folder before Hydra writes into it: there is room in it, and no other process at work."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import printable
from vinvl.run.files import lock
from vinvl.run.folders import LOCK, process_rank

ROOM = 1 << 16  # bytes for configuration and logs


class RunFolder(Callback):
    """Locks the folder of a run or a sweep as long as the process lives, however it ends; ranks other than 0 do not.

    What stands in the way ends the process with a sentence: Hydra would turn an exception into a warning.
    """

    def __init__(self) -> None:
        self._lock: int | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._take(config, "hydra.run.dir")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Of what Hydra has written, its own settings go: configuration and overrides tell the run."""
        if config.hydra.output_subdir is not None:
            (Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir / "hydra.yaml").unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, **_: Any) -> None:
        """TensorBoard's logger writes a file of hyperparameters where there are none."""
        for path in Path(config.hydra.runtime.output_dir).glob("*/hparams.yaml"):
            if path.read_text() == "{}\n":
                path.unlink()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._take(config, "hydra.sweep.dir")

    def _take(self, config: DictConfig, key: str) -> None:
        if config.hydra.output_subdir is None or process_rank() > 0:  # Hydra writes nothing, or it is another's folder
            return
        before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, config  # type: ignore[assignment]
        folder = Path(str(OmegaConf.select(config, key)))
        HydraConfig.instance().cfg = before
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            if lock(self._lock, inherited=False) is False:
                told = "wait for it, or stop it first, or pass another place with"
                sys.exit(printable(f"error: Another process is at work in {folder}: {told} {key}=FOLDER."))
            os.write(self._lock, bytes(ROOM))
            os.ftruncate(self._lock, 0)
        except OSError as error:
            if is_new:
                with suppress(OSError):
                    (folder / LOCK).unlink(missing_ok=True)
                    folder.rmdir()
            sys.exit(
                printable(
                    f"error: {folder} cannot be written ({error.strerror or error}): make room, check the permissions, "
                    f"or pass another place with {key}=FOLDER."
                )
            )
