"""A small generated world of pictures, regions, questions, statements and captions, in real datasets' files."""

from vinvl.demo.world import DemoWorld, ensure_demo_world

__all__ = ["DemoWorld", "ensure_demo_world"]
