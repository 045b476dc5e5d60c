"""A progress bar where a person looks on, and nothing where the output goes to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def progress_bar(total_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """A function that is told how many bytes are read and how many images there are by now."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda position, images: None
        return
    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[images]:,} images"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total_bytes, images=0)
        yield lambda position, images: bar.update(task, completed=position, images=images)
