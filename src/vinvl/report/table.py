"""The short table that ends a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def print_results(title: str, rows: Sequence[tuple[str, str]], files: Mapping[str, Path]) -> None:
    """Prints (what, value) rows as a table, and below it where the run's files lie."""
    console = Console()
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for what, value in rows:
        table.add_row(what, value)
    console.print(table)
    for what, path in files.items():
        # Not through rich: it would wrap long paths, and a wrapped path cannot be copied.
        print(f"{what + ':':<18}{path}")
