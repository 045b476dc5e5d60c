"""Data sets, where their configuration expects them: `python -m vinvl.download vqa2`; without a name, what there is."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vinvl.downloads.listed import ListedData, ListedFile, ListedPart, chosen_parts, listed_names, read_list
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, cause_of_kind, say
from vinvl.run.files import free_room
from vinvl.run.folders import data_root

Chosen = list[tuple[str, ListedData, dict[str, ListedPart]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m vinvl.download",
        description="Download data sets to where their configuration expects them. What was cut off or killed goes on "
        "where it was when the command is given again; what is there stays as it is.",
    )
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="a data set, NAME/PART of it, NAME/all, or a list FILE.yaml; none: what there is",
    )
    add("--list", action="store_true", help="what there is, with sizes, and nothing is downloaded")
    add("--plan", action="store_true", help="what would be downloaded, from where to where, and nothing is")
    add("--to", metavar="FOLDER", help="the data folder (default: $VINVL_DATA, or data/)")
    add(
        "--from",
        dest="mirrors",
        action="append",
        default=[],
        metavar="FOLDER|URL",
        help="look here first; may be repeated",
    )
    add("--keep", action="store_true", help="keep archives beside what was unpacked")
    add("--unchecked", action="store_true", help="take files of another size or hash than is known, too")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.list or not options.names:
        names = [word.partition("/")[0] for word in options.names] or listed_names()
        _show_list({name: read_list(name) for name in dict.fromkeys(names)})
        return 0
    data_folder = Path(options.to or data_root()).expanduser()
    chosen = list(chosen_parts(options.names))
    _show_plan(chosen, data_folder)
    _check_room(chosen, data_folder, options.keep)
    if options.plan:
        return 0
    failed = list[str]()
    for name, data, parts in chosen:
        for part in parts.values():
            for file in part.files:
                failed += _fetched(file, part, data_folder, options)
        for place, how in data.then.items():
            if not (data_folder / place).exists():
                say(f"{name} then needs {data_folder / place}: {how.replace('{data}', str(data_folder))}")
    if failed:
        *others, last = failed
        say(*(f"not had: {one}" for one in others), error=True)
        known = " ".join(dict.fromkeys(data.known for _, data, _ in chosen))
        raise UserError(f"{last} {known}")
    say(f"All of {', '.join(options.names)} is in {data_folder}.")
    return 0


def _fetched(file: ListedFile, part: ListedPart, data_folder: Path, options: argparse.Namespace) -> list[str]:
    """Fetches a file, or those of a folder; why it was not had, for the others do not depend on it."""
    from vinvl.downloads.fetching import fetch, listed_by_server

    failed = list[str]()
    try:
        files = listed_by_server(file, file.to or part.to) if file.folder else [file]
    except UserError as error:
        return [str(error)]
    for one in files:
        try:
            fetch(
                one, folder_of(one, part, data_folder), options.mirrors, keep=options.keep, unchecked=options.unchecked
            )
        except UserError as error:
            if cause_of_kind(error, OSError) is not None:
                raise
            failed.append(str(error))
    return failed


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


def _show_list(sets: dict[str, ListedData]) -> None:
    for name, data in sets.items():
        say(f"{name}: {data.what}")
        for title, part in data.parts.items():
            mark, size = "*" if title in data.usual else " ", size_of(part.files)
            say(f"  {f'{name}/{title}':<25} {mark} {size:>17}  {part.what}")
    say("*: what the name alone stands for. --plan NAME says from where and to where.")


def _show_plan(chosen: Chosen, data_folder: Path) -> None:
    """What is to be had, from where to where, and what is known of it."""
    for name, data, parts in chosen:
        say(f"{name}: {data.what} ({data.page}). {data.known}")
        for title, part in parts.items():
            say(f"{name}/{title}: {part.what}. {part.known}".rstrip())
            for file in part.files:
                folder = folder_of(file, part, data_folder)
                targets = file.targets(folder)
                from_where = file.urls or [file.by_hand or f"the addresses in {file.pictures_of}"]
                there = all(target.exists() for target in targets) and not file.folder
                say(f"  {file.name} ({'is there' if there else size_of([file])}): {' or '.join(from_where)}")
                say(*(f"    → {target}" for target in targets))


def _check_room(chosen: Chosen, data_folder: Path, keep: bool) -> None:
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
    say(f"room: {needed / 1e9:,.2f} GB needed for what has a known size, {free / 1e9:,.2f} GB free in {data_folder}")
    if needed > free:
        raise UserError(
            f"{data_folder} has {free / 1e9:,.2f} GB free, and {needed / 1e9:,.2f} GB are needed: make room, pass --to "
            "FOLDER on a larger disk, or choose parts."
        )


if __name__ == "__main__":
    sys.exit(main())
