"""The short table that ends a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vinvl.errors import printable, say


def print_results(
    title: str, rows: Sequence[tuple[str, ...]], files: Mapping[str, Path], columns: Sequence[str] = ("", "")
) -> None:
    """Prints rows of what was measured and its values as a table, and below it where the run's files lie.

    `columns` names the columns of the rows; no header is shown where all names are empty.
    """
    console = Console()
    table = Table(title=Text(printable(title)), title_justify="left", show_header=any(columns))
    for number, name in enumerate(columns):
        table.add_column(Text(printable(name)), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
    for what, path in files.items():
        # Not through rich: it would wrap long paths, and a wrapped path cannot be copied.
        say(f"{what + ':':<18}{path}")
