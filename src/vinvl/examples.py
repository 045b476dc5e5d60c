"""What an evaluation said of each example, as a Parquet file: by it two evaluations of one split can be compared."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from vinvl.data.table import BLOCK, TEXT, TEXTS, RecordTable, first_repeat
from vinvl.regions.layout import View
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, reading
from vinvl.run.values import decoded_file

EXAMPLES = "examples.parquet"  # in the folder of a run
SPLITS = "examples_*.parquet"  # of an evaluation of several splits
BOXES = "boxes.json"  # beside them, of a detector
FORMAT = 2  # before, the best answers were not told
ABOUT = b"vinvl_examples"  # key of the schema's metadata
ROWS = 1 << 16  # that are Python objects at a time
LARGEST = 1e9  # percent, of a score: a mean of such is a number
RETRIEVAL = "retrieval"  # the task whose ids are unique within a direction only: a caption may be called as an image is


RIGHT_FROM = 50.0  # not published: of VQA's fractional accuracy, what two or more of ten people said
GROUPINGS = {  # column → what it is for a person, the coarser first
    "vqa": {"kind": "answer type", "group": "question type"},
    "gqa": {"group": "structural type", "kind": "semantic type"},
    "captioning": {"group": "domain"},
}
OTHERS = {"group": "group", "kind": "kind"}


class Outcome(NamedTuple):
    """One evaluated thing. The mean of all scores is the headline figure, of retrieval the R@1 of each direction."""

    id: str  # question id, NLVR2 identifier, image id (captions), image or caption id (retrieval)
    image_id: str  # what a bootstrap draws: examples of one picture are not independent; NLVR2: "LEFT RIGHT"
    score: float  # VQA accuracy 0 to 100, GQA and NLVR2 0 or 100, CIDEr · 100, retrieval 100 where the rank is 0
    group: str = ""  # question type, structural type of GQA, domain of NoCaps, direction of retrieval; "" of none
    text: str = ""  # what was asked: question, statement, caption that looks for its image
    answer: str = ""  # what the model said
    truth: tuple[str, ...] = ()  # people's answers, references, the label
    rank: int = -1  # retrieval: of the first true match, from 0; -1 elsewhere
    kind: str = ""  # another way to group: answer type of VQA, semantic type of GQA
    best: tuple[str, ...] = ()  # the most probable answers, captions or ids of images, best first; () if not known
    probabilities: tuple[float, ...] = ()  # of these

    def with_best(self, best: Sequence[tuple[int, float]], answers: Sequence[str]) -> "Outcome":
        """The same with the best of these answers, of which numbers and probabilities are given."""
        named = tuple(answers[number] for number, _ in best)
        return self._replace(best=named, probabilities=tuple(one for _, one in best))


SCHEMA = pa.schema(
    [
        ("id", TEXT),
        ("image_id", TEXT),
        ("score", pa.float64()),
        ("group", TEXT),
        ("text", TEXT),
        ("answer", TEXT),
        ("truth", TEXTS),
        ("rank", pa.int64()),
        ("kind", TEXT),
        ("best", TEXTS),
        ("probabilities", pa.list_(pa.float64())),
    ]
)
BROUGHT_LATER = ("best", "probabilities")
EARLIER = pa.schema([field for field in SCHEMA if field.name not in BROUGHT_LATER])  # of format 1


class AboutExamples(msgspec.Struct, frozen=True):
    """What a file of examples is of.

    Attributes:
        task: "vqa", "gqa", "nlvr2", "captioning", "retrieval", or the name of your own.
        split: as `data.splits` calls it.
        headline: name of the figure in results.json that the scores are shares of.
        source: the checkpoint, or the file of results, that was scored.
        files: names of the split's files.
        left_out: records of the split that were not scored, because they have no regions; they are no rows.
        regions: the files of the store of its images, with how each is read.
        stored_as: image id → that of the store, where it is another one.
    """

    task: str
    split: str
    headline: str
    source: str
    files: tuple[str, ...] = ()
    left_out: int = 0
    regions: tuple[tuple[str, View], ...] = ()
    stored_as: dict[str, str] = {}
    format: int = FORMAT


@dataclass(frozen=True, eq=False)
class Examples:
    """The N rows of a file, in the order of the split's records; `table` has the columns of `Outcome`."""

    path: Path
    about: AboutExamples
    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    def numpy(self, name: str) -> np.ndarray:
        """(N,) numbers of a column."""
        values: np.ndarray = self.table[name].to_numpy()
        return values

    def keys(self) -> pa.ChunkedArray:
        """(N,) texts, all different, by which an example is found in another file of the same split."""
        if self.about.task != RETRIEVAL:
            return self.table["id"]
        return pc.binary_join_element_wise(self.table["group"], self.table["id"], " ")


def answered_rows(
    records: RecordTable, answered: np.ndarray, names: Sequence[str]
) -> Iterator[tuple[int, float, tuple[Any, ...], list[tuple[int, float]]]]:
    """Of each answered record (`AnswersSeen.compute`): number of the answer, score, what the record says, best answers.

    It says something in each of the columns `names`; None where the records have no such column. Best answers are
    numbers with their probabilities.
    """
    table = records.table.select([name for name in names if name in records])
    for start in range(0, len(answered), BLOCK):
        rows = answered[start : start + BLOCK]
        (places, numbers, scores), best = rows[:, :3].T, np.split(rows[:, 3:], 2, axis=1)
        block = table.take(pa.array(places.astype(np.int64)))
        columns = [block[name].to_pylist() if name in records else [None] * len(block) for name in names]
        ranked = [
            list(zip(own, found, strict=True))
            for own, found in zip(best[0].astype(np.int64).tolist(), best[1].tolist(), strict=True)
        ]
        told = zip(*columns, strict=True)
        yield from zip(numbers.astype(np.int64).tolist(), scores.tolist(), told, ranked, strict=True)


def write_examples(path: Path, examples: Iterable[Outcome], about: AboutExamples) -> int:
    """Writes a file of examples, which is whole or not there; returns their number. Raises UserError if it cannot."""
    left, count = iter(examples), 0
    schema = SCHEMA.with_metadata({ABOUT: msgspec.json.encode(about)})
    with atomic_write(path, "wb") as file:
        options = {"compression": "zstd", "write_page_checksum": True}
        with parquet.ParquetWriter(file, schema, **options) as writer:
            while block := list(islice(left, ROWS)):
                columns = zip(zip(*block, strict=True), SCHEMA, strict=True)
                arrays = [pa.array(values, column.type) for values, column in columns]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                count += len(block)
    return count


def read_examples(path: str | Path) -> Examples:
    """Reads what `write_examples` has written.

    Raises UserError if the file is missing, damaged, of another program or version, has no rows, has an id twice, or
    scores that are no numbers.
    """
    path = Path(path)
    again = "evaluate again with python -m vinvl.evaluate"
    try:
        with reading(path), open(path, "rb"):
            pass  # the system says why it cannot be; what Arrow says of damage below is an OSError too
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            said = (schema.metadata or {}).get(ABOUT)
            if said is None or not (schema.equals(SCHEMA) or schema.equals(EARLIER)):
                raise UserError(f"{path} holds no examples of vinvl.evaluate, which are in a file {EXAMPLES}.")
            about, table = msgspec.json.decode(said, type=AboutExamples), file.read()
            for field in [SCHEMA.field(name) for name in BROUGHT_LATER if name not in schema.names]:
                table = table.append_column(field, pa.array([[]] * len(table), field.type))
        table.validate(full=True)
    except msgspec.DecodeError as error:
        raise UserError(f"{path} does not say what it is of ({error}): it is damaged; {again}.") from error
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged, or no Parquet file ({reason}); {again}.") from error
    if not 1 <= about.format <= FORMAT:
        raise UserError(f"{path} has format {about.format}, and this version reads {FORMAT}: {again}.")
    examples = Examples(path, about, table)
    refuse_unusable(examples)
    return examples


def refuse_unusable(examples: Examples) -> None:
    """Raises UserError for a file without rows, with empty places, an id twice, or scores like nan or 1e300."""
    path, table = examples.path, examples.table
    if len(table) == 0:
        raise UserError(f"{path} holds no examples: nothing was scored.")
    empty = [name for name in table.column_names if table[name].null_count]
    lists = [name for name in table.column_names if pa.types.is_list(SCHEMA.field(name).type)]
    empty += [name for name in lists if pc.list_flatten(table[name]).null_count]
    lengths = [pc.list_value_length(table[name]) for name in BROUGHT_LATER]
    if not empty and not lengths[0].equals(lengths[1]):
        empty.append("probabilities")
    if "score" not in empty and not (np.abs(examples.numpy("score")) <= LARGEST).all():
        empty.append("score")
    if empty:
        raise UserError(f"{path} has rows without: {', '.join(empty)}; it is damaged.")
    if (repeat := first_repeat(examples.keys())) is not None:
        first, second, count = repeat
        raise UserError(
            f"{path} has the id {table['id'][second].as_py()!r} in row {first + 1} and again in row {second + 1} "
            f"({count:,} such repeats): each example must be there once."
        )


def examples_of(place: str | Path, split: str | None = None) -> Examples:
    """The examples of a file, of a run's folder, or of the newest run in a folder of runs.

    `split`: which, where an evaluation has scored several. Raises UserError if there are none, several, or those of
    another split.
    """
    found = read_examples(_file_of(Path(place).expanduser(), split))
    if split is not None and found.about.split != split:
        raise UserError(
            f"{found.path} is of split '{found.about.split}', and split {split} is asked for: leave that out."
        )
    return found


def _file_of(path: Path, split: str | None) -> Path:
    if not path.is_dir():
        return path
    names = [EXAMPLES, SPLITS] if split is None else [EXAMPLES, f"examples_{split}.parquet"]
    found = sorted(one for name in names for one in path.glob(name))
    if not found:
        runs = [one for name in names for one in path.glob(f"*/{name}")]
        newest = max(runs, key=lambda one: one.stat().st_mtime, default=None)
        found = [] if newest is None else [one for one in runs if one.parent == newest.parent]
    if not found:
        raise UserError(
            f"{path} has no {EXAMPLES}: give the folder of an evaluation, or evaluate again with "
            "python -m vinvl.evaluate, which writes it."
        )
    if len(found) > 1:
        listed = ", ".join(one.name for one in sorted(found))
        told = f"{found[0].parent} has the examples of several splits ({listed})"
        raise UserError(f"{told}: give one of these files, or say which split (--split NAME, or split=NAME).")
    return found[0]


def parts_of(task: str, image_id: str) -> list[str]:
    """The pictures of an example; NLVR2 has two."""
    return image_id.split(" ") if task == "nlvr2" else [image_id]


class SeenBox(msgspec.Struct):
    """A box in pixels of the original picture, x1 y1 x2 y2, with its class; a true one has the score 1."""

    name: str
    score: float
    corners: tuple[float, float, float, float]


class SeenPicture(msgspec.Struct):
    """A picture that a detector was tested on."""

    width: int  # pixels that the boxes are in
    height: int
    jpeg: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9+/]*=*$")]  # perhaps of another size, base64
    true: list[SeenBox]
    found: list[SeenBox]  # the best first
    missed: int  # of the true ones


def write_boxes(path: Path, pictures: Sequence[SeenPicture]) -> None:
    """Writes some pictures of a detector's test as JSON, completely or not at all."""
    with atomic_write(path, "wb") as file:
        file.write(msgspec.json.encode(pictures))


def read_boxes(path: Path) -> list[SeenPicture]:
    """What `write_boxes` has written. Raises UserError, naming the file, for anything else."""
    return decoded_file(path, list[SeenPicture], "file that the test of a detector writes")
