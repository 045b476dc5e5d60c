"""A small generated world of pictures, regions, questions, statements and captions, in real datasets' files."""

from vinvl.demo.files import DemoWorld
from vinvl.demo.world import (
    NUM_TEST_IMAGES,
    NUM_TRAIN_IMAGES,
    NUM_VAL_IMAGES,
    QUESTIONS_PER_IMAGE,
    ensure_demo_world,
    generate_demo_world,
)

__all__ = [
    "NUM_TEST_IMAGES",
    "NUM_TRAIN_IMAGES",
    "NUM_VAL_IMAGES",
    "QUESTIONS_PER_IMAGE",
    "DemoWorld",
    "ensure_demo_world",
    "generate_demo_world",
]
