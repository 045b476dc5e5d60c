"""Result files that are there already, scored without a model: `python -m vinvl.evaluate results=FILE data=NAME`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.data.module import RegionDataModule, file_names, plain
from vinvl.data.table import RecordTable
from vinvl.examples import EXAMPLES, About, Example, write_examples
from vinvl.restore import TASK_OF_DATA
from vinvl.run.errors import UserError, say
from vinvl.run.files import write_json
from vinvl.run.overrides import command_overrides, given_values
from vinvl.run.progress import print_results

WRONG, LEAVE_OUT, REFUSE = MISSING = ("wrong", "leave_out", "refuse")


class Scored(NamedTuple):
    """What a room says of a file of results."""

    scores: dict[str, float]  # under the names that an evaluation of a checkpoint gives them
    headline: str
    rows: list[tuple[str, str]]  # for a person
    examples: Iterable[Example]
    told: Sequence[str] = ()  # what is missing in the file, or foreign
    missing: int = 0


def score_results(config: DictConfig) -> dict[str, float]:
    """Scores `config.results` on `data.test_split`; results.json and examples.parquet go to the run folder.

    Raises UserError if the file is none of the task's, names a record twice, or none of the split's.
    """
    path, split = Path(str(config.results)).expanduser(), str(config.data.test_split)
    if config.missing not in MISSING:
        raise UserError(f"missing={config.missing} is no way to count what is missing: give {', '.join(MISSING)}.")
    if not path.exists():
        raise UserError(f"results={path} does not exist: give the file of results that is to be scored.")
    data: Any = instantiate(config.data)
    room = TASK_OF_DATA.fullmatch(type(data).__module__)
    if not isinstance(data, RegionDataModule) or room is None or room[1] == "pretraining":
        raise UserError(
            f"results={path}: data of {type(data).__name__} have no result files; give data=NAME of a task."
        )
    refuse_other_task(given_values(command_overrides()), room[1])
    if data.prepare is not None:
        data.prepare()
    records: Any = data.read_split(split)
    if not records.annotated:
        raise UserError(f"Split '{split}' has no annotations to score {path} by: pass data.test_split=NAME.")
    extra = {"attentions": config.attentions} if room[1] == "gqa" else {}
    found: Scored = import_module(f"vinvl.{room[1]}.results").score(data, records, path, str(config.missing), **extra)
    tell(
        found,
        About(room[1], split, found.headline, str(path), tuple(file_names(plain(data.split_files(split))))),
        config,
    )
    return found.scores


def refuse_other_task(given: Mapping[str, Any], room: str) -> None:
    """Raises UserError if the command names another task than that of the data."""
    wanted = given.get("task_name")
    if wanted is not None and str(wanted) != room:
        raise UserError(
            f"task={wanted} is given, and the data are of {room}: pass data=NAME of the task, or leave it out."
        )


def tell(found: Scored, about: About, config: DictConfig) -> None:
    """Writes what was found and prints the table of it."""
    folder = Path(config.paths.output_dir)
    written = {"split": about.split, "results": about.source, "headline": found.headline, "scores": found.scores}
    write_json(folder / "results.json", written | ({"missing": found.missing} if found.missing else {}))
    write_examples(folder / EXAMPLES, found.examples, about)
    files = {"run folder": folder, "results": folder / "results.json", "examples": folder / EXAMPLES}
    print_results(f"{about.source} on '{about.split}'", found.rows, {**files, "scored file": Path(about.source)})
    say(*found.told, error=True)


# What a file of results says of the records of a split.


@dataclass(frozen=True)
class Said:
    """What was said of each record.

    Attributes:
        values: of each of the N records; `absent` where nothing was said of one that counts as wrong.
        places: the records that count, ascending.
        told: sentences about what is missing or foreign.
        missing: records that nothing was said of.
    """

    values: list[Any]
    places: list[int]
    told: list[str]
    missing: int


def matched(
    rows: Iterable[tuple[str, str, Any]],
    names: Sequence[Mapping[str, int]],
    records: RecordTable,
    path: Path,
    missing: str,
    absent: Any = "",
) -> Said:
    """Brings what a file says to the records that it says it of.

    Args:
        rows: place in the file for messages, what a record is called, and what is said of it.
        names: ways to call records → their places; the first that knows a name counts.
        missing: one of `MISSING`: count records without an answer as wrong, leave them out, or refuse the file.
        absent: the value of one that counts as wrong.

    Raises:
        UserError: a record is there twice, none is of the split, or some are missing and that is refused.
    """
    nothing = object()
    values, first, foreign, num_foreign = [nothing] * len(records), dict[int, str](), "", 0
    for place, name, value in rows:
        found = next((of[name] for of in names if name in of), None)
        if found is None:
            foreign, num_foreign = foreign or f"{place} ({name})", num_foreign + 1
            continue
        if found in first:
            raise UserError(f"{place} is about {name} again, which {first[found]} is about: keep one of the two.")
        values[found], first[found] = value, place
    noun = records.form.noun
    if not first:
        known = next(iter(names[0]), "")
        begin = f"{foreign} is not among them" if num_foreign else "the file is empty"
        raise UserError(f"{path} says nothing of the {noun} of this split, which are called like {known}: {begin}.")
    told, lacking = [], [place for place, value in enumerate(values) if value is nothing]
    if num_foreign:
        told.append(f"{num_foreign:,} entries are of none of the {noun} of this split and do not count: {foreign} …")
    if lacking:
        share = f"{len(lacking):,} of {len(records):,} {noun} are missing in {path}, the first: {records.describe(lacking[0])}"
        if missing == REFUSE:
            raise UserError(f"{share}; complete the file, or pass missing=wrong or missing=leave_out.")
        how = "they count as wrong (missing=leave_out leaves them out)" if missing == WRONG else "they are left out"
        told.append(f"{share}; {how}.")
    kept = [place for place, value in enumerate(values) if missing == WRONG or value is not nothing]
    return Said([absent if one is nothing else one for one in values], kept, told, len(lacking))


def by_name(names: Iterable[Any]) -> dict[str, int]:
    """Names of records → their places; the first of equal ones."""
    found: dict[str, int] = {}
    for place, name in enumerate(names):
        found.setdefault(str(name), place)
    return found


def numbered(texts: Sequence[str], places: Sequence[int]) -> tuple[list[str], list[int]]:
    """The different texts at these places, and the number of each among them."""
    numbers: dict[str, int] = {}
    chosen = [numbers.setdefault(texts[place], len(numbers)) for place in places]
    return list(numbers), chosen
