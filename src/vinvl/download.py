"""Data sets, where their configuration expects them: `python -m vinvl.download vqa2`; without a name, what there is."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vinvl.downloads.listed import ListedFile, ListedPart, chosen_parts, listed_names, read_list
from vinvl.downloads.plan import check_room, folder_of, show_list, show_plan
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, cause_of_kind, say
from vinvl.run.folders import data_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error."""
    return run_command(lambda: _run(command_line().parse_args(arguments)))


def command_line() -> Parser:
    """Its options, which completion reads too."""
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
        show_list({name: read_list(name) for name in dict.fromkeys(names)})
        return 0
    for place in options.mirrors:
        if not place.startswith(("http://", "https://")) and not Path(place).expanduser().is_dir():
            raise UserError(f"--from {place} is no folder: give one, or a URL that begins with http:// or https://.")
    data_folder = Path(options.to or data_root()).expanduser()
    chosen = list(chosen_parts(options.names))
    show_plan(chosen, data_folder, files=options.plan)
    check_room(chosen, data_folder, options.keep)
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


if __name__ == "__main__":
    sys.exit(main())
