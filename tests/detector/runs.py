"""Training runs of a detector of a few thousand weights on the tiny demo world, in processes that can be killed."""

from tests.conftest import TINY_WORLD

WORLD = [f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()]
TINY_DETECTOR = [
    "detector.architecture.blocks=[1,1,1,1]",
    "detector.architecture.stem_channels=8",
    "detector.architecture.first_stage_channels=16",
    "detector.min_size=96",
    "detector.architecture.anchor_sizes=[24]",
    "training.region_samples=8",
    "training.rpn_samples=16",
    "training.rpn_proposals=20",
]
TINY = [*WORLD, *TINY_DETECTOR, "data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu", "torch_threads=1"]
# 24 pictures, flipped or not and of two sizes: 6 batches an epoch; an evaluation, a saved update and the end of an
# epoch fall on different batches.
RUN = [
    *TINY,
    "data.min_sizes=[64,96]",
    "data.max_size=1333",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "callbacks.last.every_n_train_steps=2",
    "+callbacks.samples_per_second.every_n_steps=2",
    "ckpt_path=auto",
    "hydra.run.dir=run",
]


DETECTOR = {"door": "train_detector", "task": "vinvl.detector.task.DetectorTask"}
"""What `survival_runs.start` starts."""
