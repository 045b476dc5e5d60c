"""A small generated world of pictures, regions, questions, statements and captions, in real datasets' files."""

from vinvl.demo.files import DemoWorld
from vinvl.demo.world import ensure_demo_world

__all__ = ["DemoWorld", "ensure_demo_world"]
