"""Score a checkpoint: `python -m vinvl.evaluate ckpt_path=FILE [data.test_split=NAME]`."""

import sys
from pathlib import Path

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.restore import restore
from vinvl.run.callbacks import progress
from vinvl.run.door import door, enter
from vinvl.run.options import open_sections
from vinvl.run.progress import report
from vinvl.run.survival import StopAtOnce


def evaluate(config: DictConfig) -> dict[str, float]:
    """A checkpoint's scores on `data.test_split`; results.json goes to `config.paths.output_dir`."""
    pl.seed_everything(config.seed, verbose=False)
    restored = restore(config, "test")
    restored.datamodule.setup("test")
    trainer: pl.Trainer = instantiate(
        config.trainer, callbacks=[progress(), StopAtOnce()], logger=False, enable_checkpointing=False
    )
    trainer.test(restored.task, datamodule=restored.datamodule, verbose=False)
    if trainer.is_global_zero:
        split = restored.data.test_split
        report(
            restored.task,
            Path(config.paths.output_dir),
            split=split,
            checkpoint=str(restored.path),
            left_out=restored.datamodule.skipped[split],
        )
    return restored.task.scores


main = door(evaluate, "evaluate")


if __name__ == "__main__":
    enter(main, "evaluate", open_sections(sys.argv[1:]), restored=("data", "decoding"))
