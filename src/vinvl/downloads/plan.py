"""What there is to download, what would be, from where to where, and whether there is room for it."""

from collections.abc import Sequence
from pathlib import Path

from vinvl.downloads.listed import ListedData, ListedFile, ListedPart
from vinvl.run.errors import UserError, say
from vinvl.run.files import free_room

Chosen = Sequence[tuple[str, ListedData, dict[str, ListedPart]]]
"""Name, data set and chosen parts; see `listed.chosen_parts`."""


def folder_of(file: ListedFile, part: ListedPart, data_folder: Path) -> Path:
    """Where a file of a part goes."""
    return data_folder / (file.to or part.to)


def size_of(files: Sequence[ListedFile]) -> str:
    """How large files are, for a person: "13.5 GB", "at least 2.0 MB", "size not known"."""
    sizes = [file.bytes or (file.about_gb or 0) * 1e9 for file in files]
    total = sum(sizes)
    if not total:
        return "size not known"
    told = f"{total / 1e9:,.1f} GB" if total >= 1e9 else f"{total / 1e6:,.1f} MB"
    return told if all(file.bytes for file in files) else f"about {told}" if all(sizes) else f"at least {told}"


def show_list(sets: dict[str, ListedData]) -> None:
    """The parts of data sets with their sizes."""
    for name, data in sets.items():
        say(f"{name}: {data.what}")
        for title, part in data.parts.items():
            mark, size = "*" if title in data.usual else " ", size_of(part.files)
            say(f"  {f'{name}/{title}':<25} {mark} {size:>17}  {part.what}")
    say("*: what the name alone stands for. --plan NAME says from where and to where.")


def show_plan(chosen: Chosen, data_folder: Path, *, files: bool) -> None:
    """What is to be had and what is known of it; with `files` also each of them, from where to where."""
    for name, data, parts in chosen:
        say(f"{name}: {data.what} ({data.page}). {data.known}")
        for title, part in parts.items():
            say(f"{name}/{title}: {part.what}. {part.known}".rstrip())
            for file in part.files if files else ():
                folder = folder_of(file, part, data_folder)
                targets = file.targets(folder)
                from_where = file.urls or [file.by_hand or f"the addresses in {file.pictures_of}"]
                there = all(target.exists() for target in targets) and not file.folder
                say(f"  {file.name} ({'is there' if there else size_of([file])}): {' or '.join(from_where)}")
                say(*(f"    → {target}" for target in targets))


def check_room(chosen: Chosen, data_folder: Path, keep: bool) -> None:
    """Raises UserError where what has a known size does not fit: archives need it twice, one after the other."""
    stay, pass_by = list[float](), list[float]()
    for _, _, parts in chosen:
        for part in parts.values():
            for file in part.files:
                folder = folder_of(file, part, data_folder)
                if all(target.exists() for target in file.targets(folder)) and not file.folder:
                    continue
                size = file.bytes or (file.about_gb or 0) * 1e9
                begun = folder / f".{file.name}.download"
                had = folder.rglob("*") if file.folder else begun.glob("*")
                there = sum(path.stat().st_size for path in had if path.is_file())
                stay.append(size if file.makes else max(size - there, 0))
                pass_by.append(max(size - there, 0) if file.makes else 0)
    needed, free = sum(stay) + (sum(pass_by) if keep else max(pass_by, default=0)), free_room(data_folder)
    told = f"{needed / 1e9:,.2f} GB needed for what has a known size" if needed else "no size is known"
    say(f"room: {told}, {free / 1e9:,.2f} GB free in {data_folder}")
    if needed > free:
        raise UserError(
            f"{data_folder} has {free / 1e9:,.2f} GB free, and {needed / 1e9:,.2f} GB are needed: make room, pass --to "
            "FOLDER on a larger disk, or choose parts."
        )
