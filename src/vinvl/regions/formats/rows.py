"""One image of somebody else's features → `Regions`, with the checks and refusals that all formats have in common.

What is refused here does not say where it stands: whoever reads a row or a file puts that in front (`at`).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

try:
    import pybase64  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # installations without it decode a twentieth as fast
    pybase64 = None  # type: ignore[assignment, unused-ignore]

from vinvl.regions.layout import ShardHeader
from vinvl.regions.regions import BOX_TOLERANCE, Regions, finite, inverted, out_of_bounds
from vinvl.run.errors import UserError
from vinvl.run.files import put_in_place
from vinvl.run.lines import in_order
from vinvl.run.values import checked_id, shown

# What is found in a source, and what of it an earlier run has done.


class Found(NamedTuple):
    """An image or why it cannot be used, or None if an earlier run has done it."""

    place: str  # in the files
    regions: Regions | UserError | None
    position: int  # bytes of input that are read by now
    note: str = ""  # what is odd about it, to be told once of all


class Done(NamedTuple):
    """What an earlier run has done of a source: so many of what is `Found`, which end at that position."""

    images: int = 0
    position: int = 0
    unread: frozenset[int] = frozenset()  # positions of those that it could not read


Item = TypeVar("Item")
ITEMS_AT_ONCE = 16


def images_of_items(
    items: Sequence[Item], read: Callable[[Item], Found], workers: int, done: Done, at_once: int = ITEMS_AT_ONCE
) -> Iterator[Found]:
    """The images of files, records or tensors. `read` gives one with its own size for the position."""
    position = done.position
    yield from (Found("", None, position) for _ in items[: done.images])
    batches = (items[start : start + at_once] for start in range(done.images, len(items), at_once))
    for batch in in_order(partial(_read_all, read), batches, workers):
        for one in batch:
            position += one.position
            yield one._replace(position=position)


def _read_all(read: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    return [read(item) for item in items]


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts the place in front of what is refused."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


SKIP = "skip"
NAMED = 5  # told at the end and kept in the store; if there are more, all are listed in a file beside it
LONGEST_REASON = 400


class _Note(msgspec.Struct):
    """What a shard says of the source: how much of it is done, and what was left out since the shard before."""

    images: int = 0
    position: int = 0
    left_out: list[tuple[int, int, str]] = []  # number of what is `Found`, from 1; position; reason


class Journal:
    """What has been taken from a source and what was left out: by an earlier run, as its shards say, and by this one.

    All that was left out is listed in a file, so that memory does not grow with it.

    Attributes:
        done: by an earlier run.
        first: why the first few were left out.
        notes: what else is to be told at the end.
        provenance: what the store says of it, kept up to date; None where the first that is damaged is refused.
    """

    def __init__(self, on_damaged: str, scratch: Path, shards: Sequence[ShardHeader] = ()) -> None:
        self.first: list[str] = []
        self.notes: list[str] = []
        self.skips, self.count = on_damaged == SKIP, 0
        self.provenance: dict[str, Any] | None = None
        if self.skips:
            self.provenance = {"on_damaged": SKIP, "left_out": 0, "left_out_first": self.first}
        self._list, notes = scratch / "left_out.txt", [_Note()]
        for shard in shards:
            try:
                notes.append(msgspec.json.decode(shard.provenance or "", type=_Note))
            except msgspec.DecodeError:
                raise UserError(f"{shard.path} is no shard of a conversion: delete {shard.path.parent}.") from None
        before = [one for note in notes for one in note.left_out]
        self._reasons = {number: reason for number, _, reason in before}
        self._now = _Note(notes[-1].images, notes[-1].position)
        self.done = Done(self._now.images, self._now.position, frozenset(position for _, position, _ in before))
        if self.done.images != sum(shard.num_images for shard in shards) + len(before):
            raise UserError(f"{shards[-1].path} says another number of images than the shards hold: delete its folder.")

    def take(self, number: int, position: int) -> bool:
        """Whether the image of this number is to be written; what an earlier run has left out is told again."""
        if number > self.done.images:
            self._now.images, self._now.position = number, position
        elif number in self._reasons:
            self.add(UserError(self._reasons[number]))
        return number > self.done.images

    def leave_out(self, reason: UserError) -> None:
        """Leaves out what was taken last. Raises the reason unless what is damaged is skipped."""
        self.add(reason)
        self._now.left_out.append((self._now.images, self._now.position, str(reason)[:LONGEST_REASON]))

    def tell(self, note: str) -> None:
        """Has something told at the end, once."""
        if note and note not in self.notes:
            self.notes.append(note)

    def add(self, reason: UserError) -> None:
        """Leaves out what is no image of the source. Raises the reason unless what is damaged is skipped."""
        if self.provenance is None:
            raise UserError(
                f"{reason} (features.on_damaged={SKIP} leaves out what is damaged, and names it.)"
            ) from None
        sentence = str(reason)[:LONGEST_REASON]
        self.count = self.provenance["left_out"] = self.count + 1
        if len(self.first) < NAMED:
            self.first.append(sentence)
        with self._list.open("a", encoding="utf-8") as file:
            file.write(sentence + "\n")

    def note(self) -> dict[str, Any]:
        """For the shard that is finished now."""
        told: dict[str, Any] = msgspec.to_builtins(self._now)
        self._now.left_out = []
        return told

    def keep_list(self, target: Path) -> Path | None:
        """The list beside a new store, in place of a former one's; None where the first few are all."""
        if self.count <= NAMED:
            return None
        kept = target.with_name(f"{target.name}.left_out.txt")
        put_in_place(self._list, kept)
        return kept


ID_PATTERN = "features.id_pattern"
OSCAR_DIM = 2048
PositiveInt = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class FeatureOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `features` of conf/convert.yaml, which tells what each is for."""

    predictions: Path | None = None
    sizes: Path | None = None
    assume_size: tuple[PositiveInt, PositiveInt] | None = None
    labels: Path | None = None
    detector: str | None = None
    dtype: Literal["float16", "float32"] = "float16"
    dim: PositiveInt | None = None
    transposed: bool | None = None
    grid: tuple[PositiveInt, PositiveInt] | None = None
    class_offset: Annotated[int, msgspec.Meta(ge=0)] | None = None
    id_pattern: str | None = None
    id_prefix: str = ""
    classes: bool = True
    clip_boxes: bool = False
    on_damaged: Literal["refuse", "skip"] = "refuse"
    images_per_shard: PositiveInt | None = None
    workers: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.id_pattern is not None:
            check_pattern(self.id_pattern, ID_PATTERN)

    @property
    def oscar_dim(self) -> int:
        """D of Oscar's rows."""
        return self.dim or OSCAR_DIM


def options_of(settings: Mapping[str, Any]) -> FeatureOptions:
    """Checked options, the rest as in conf/convert.yaml. Raises UserError, naming it, for a setting of no use."""
    given = dict(settings)
    for name in {"detector", "id_pattern", "id_prefix", "predictions", "sizes", "labels"} & given.keys():
        if type(given[name]) in (int, float):
            given[name] = str(given[name])  # YAML took it for a number
    try:
        return msgspec.convert(given, FeatureOptions, dec_hook=lambda kind, value: kind(value).expanduser())
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        name = place.strip("`").split("[")[0]
        named = f".{name} is {shown(settings[name])}" if name else ""
        raise UserError(f"features{named}: {reason}; conf/convert.yaml says what it may be.") from None


# Image ids out of longer names, by a regular expression that a person gives.


def check_pattern(pattern: str, setting: str) -> None:
    """Raises UserError, naming the setting, for what is no regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"{setting}={pattern!r} is no regular expression ({error}).") from None
    if groups < 1:
        raise UserError(f"{setting}={pattern!r} has no group in brackets to take the id from, such as '0*(\\d+)$'.")


def id_by_pattern(name: str, pattern: str | None, setting: str) -> str:
    """What the first group of a pattern finds in a name, UserError if nothing; the name itself without a pattern."""
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None or not match[1]:
        raise UserError(f"{setting}={pattern!r} does not fit {name!r}.")
    return match[1]


# What the writer of the store does not know: whether boxes fit their image, and what others take for numbers.


def regions_of(
    image_id: str,
    features: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    options: FeatureOptions,
    *,
    classes: Any = None,
    class_scores: Any = None,
    attributes: Any = None,
    attribute_scores: Any = None,
) -> Regions:
    """The regions of an image, of that id in the file, in the data types of the store.

    Of features (R, D), boxes (R, 4) in pixels, width and height, and what else a file says, as `Regions` has it;
    attributes may be (R,). Raises UserError for numbers that are not finite, numbers of rows that differ, and boxes
    that are no boxes of this image.
    """
    if features.ndim != 2:
        raise UserError(f"features have shape {features.shape}, expected a row for each region.")
    count = len(features)
    name = options.id_prefix + id_by_pattern(image_id, options.id_pattern, ID_PATTERN)
    if not name.isprintable():
        raise UserError("its id has characters that cannot be printed; the file may be damaged.")
    if not options.classes:
        classes = class_scores = attributes = attribute_scores = None
    table = _whole(_rows(attributes, count, "attributes", columns=1), "attributes")
    if attribute_scores is None:
        attribute_scores = np.zeros(table.shape)  # of other shapes the store refuses the rest
    return Regions(
        image_id=name,
        features=finite(features, "features", np.dtype(options.dtype)),
        boxes=_boxes(boxes, count, size, clip=options.clip_boxes),
        classes=_whole(_rows(classes, count, "classes"), "classes"),
        class_scores=_rows(class_scores, count, "class_scores").astype(np.float32),
        attributes=table,
        attribute_scores=_rows(attribute_scores, count, "attribute_scores", columns=1).astype(np.float32),
        width=size[0],
        height=size[1],
    )


def _boxes(boxes: np.ndarray, count: int, size: tuple[int, int], *, clip: bool) -> np.ndarray:
    if boxes.shape != (count, 4):
        raise UserError(f"boxes are {boxes.shape} of {boxes.dtype}, expected ({count}, 4) numbers.")
    boxes, edge, pixels = (
        finite(boxes, "boxes", np.dtype(np.float32)),
        np.array([size], dtype=np.float32),
        f"{size[0]} x {size[1]}",
    )
    if count and min(size) > 16 and float(boxes.max()) <= 1 + BOX_TOLERANCE:
        raise UserError(f"no box reaches beyond pixel 1 of {pixels}; boxes are expected in pixels.")
    if (bad := inverted(boxes, edge)).any():
        raise UserError(f"{_box(boxes, bad)} is inverted; x1 y1 x2 y2 was expected.")
    if clip:
        return np.clip(boxes, 0, np.tile(edge, 2))
    if (bad := out_of_bounds(boxes, edge)).any():
        remedy = "width and height may be the wrong way round, or pass features.clip_boxes=true"
        raise UserError(f"{_box(boxes, bad)} lies outside of the image of {pixels}; {remedy}.")
    return boxes


def _box(boxes: np.ndarray, bad: np.ndarray) -> str:
    region = int(np.argmax(bad))
    return f"box {region} ({', '.join(f'{number:.6g}' for number in boxes[region].tolist())})"


def numbers(value: Any, what: str) -> np.ndarray:
    """An array of numbers, of one dimension or more. Raises UserError for anything else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):  # lists of unlike lengths, or of no numbers
        array = np.zeros(0, dtype=object)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(f"{what} are {array.shape} of {array.dtype}, expected numbers.")
    return array


def _rows(values: Any, count: int, what: str, columns: int = 0) -> np.ndarray:
    """(R,) or (R, K) numbers; zeros, or of no columns, where there are none."""
    if values is None:
        return np.zeros((count, 0) if columns else count, dtype=np.int32)
    array = numbers(values, what)
    array = array[:, None] if columns and array.ndim == 1 else array
    if array.ndim != 1 + columns or len(array) != count:
        raise UserError(f"{what} are {array.shape} of {array.dtype}, expected numbers for each of {count} regions.")
    return array


def _whole(array: np.ndarray, what: str) -> np.ndarray:
    """int32; int64 and floats that are whole numbers have been seen in files."""
    if array.size and not ((array >= 0) & (array < 2**31) & (array == np.floor(array))).all():
        raise UserError(f"{what} hold {array.min()} to {array.max()}, expected whole numbers from 0.")
    return array.astype(np.int32)


def id_in(column: bytes) -> str:
    """The image id of a row. Raises UserError if it is empty, too long or no UTF-8."""
    try:
        return str(checked_id(column.decode("utf-8").strip(), "the image id, column 1 of the row,"))
    except UnicodeDecodeError:
        raise UserError("the image id, column 1 of the row, is no UTF-8 text.") from None


def _digits(value: object) -> object:
    """The value; ValueError for a text of more than digits, of which Python takes 6_40 and 6e2 for numbers too."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str) and not re.fullmatch(r"\s*[0-9]+(\.0*)?\s*", text):
        raise ValueError(text)
    return value


def checked_size(width: object, height: object) -> tuple[int, int]:
    """Width and height in pixels from numbers or texts. Raises UserError for what is no positive whole number."""
    sizes = []
    for name, value in (("width", width), ("height", height)):
        try:
            plain = value.item() if isinstance(value, np.generic | np.ndarray) else value
            number = float(_digits(plain))  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if isinstance(value, bool) or not number.is_integer() or not 0 < number < 2**31:
            raise UserError(f"{name} is {shown(value)}, a positive number of pixels was expected.")
        sizes.append(int(number))
    return sizes[0], sizes[1]


# Base64 text → arrays, with the one check that catches whatever is cut or damaged: the number of bytes.

MOST_REGIONS = 2**20
MOST_BYTES = 2**27  # of all that files say about one image; a thousand regions take some ten million


def number_of_regions(text: Any) -> int:
    """The number of boxes that a row announces. Raises UserError for what is none."""
    try:
        count = int(_digits(text))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        count = -1
    if isinstance(text, bool | float) or not 0 <= count <= MOST_REGIONS:
        given = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        raise UserError(f"the number of boxes is {given[:40]!r}, a whole number was expected.")
    return count


def _decoded(text: bytes) -> bytes:
    if pybase64 is not None:
        with suppress(ValueError, binascii.Error):  # what is wrong is told below
            return bytes(pybase64.b64decode(text, validate=True))
    return binascii.a2b_base64(text)


def base64_rows(text: bytes | str, count: int, widths: tuple[int, ...] | None, what: str, dtype: str) -> np.ndarray:
    """(count, width) little-endian numbers of base64, read-only; width is one of `widths`, or (None) any.

    `what` names the numbers ("features") in the UserError for what is no base64, or not of the length of so many rows.
    """
    item = np.dtype(dtype).itemsize
    text = text.encode("ascii", "replace") if isinstance(text, str) else text
    if text[:2] in (b"b'", b'b"') and text[-1:] == text[1:2]:  # bytes that Python 3 has written as it shows them
        text = text[2:-1]
    try:
        content = _decoded(text)
    except (ValueError, binascii.Error) as error:
        raise UserError(f"{what} are no base64 ({error}); the row may be cut off or damaged.") from None
    # Characters that are not base64 are skipped without a word, so the length of the text is held against the content.
    if len(text) != 4 * -(-len(content) // 3):
        raise UserError(f"{what} hold characters that are not base64; the row may be damaged.")
    width = len(content) // (count * item) if count else (widths[0] if widths else 0)
    if width * count * item != len(content) or (widths is not None and width not in widths):
        expected = " or ".join(f"{count} x {one} x {item}" for one in widths or ("D",))
        raise UserError(f"{what} are {len(content):,} bytes of base64, expected {expected} for {count} boxes.")
    if what == "features" and (bits := _other_bits(content)):
        raise UserError(f"{what} are numbers of {bits} bits, expected are 32; save them as float32.")
    return np.frombuffer(content, dtype=dtype).reshape(count, width)


LOOKED_AT, LEAST = 8192, 256  # bytes, and numbers that tell


def _other_bits(content: bytes) -> int:
    """16 or 64 if the first numbers are halves or doubles, which as float32 are other numbers but numbers, else 0."""
    start = content[: min(len(content), LOOKED_AT) // 8 * 8]
    halves, words = np.frombuffer(start, "<u2"), np.frombuffer(start, "<u4")
    # The low half of a float32 is as good as random, or ends with 13 zeros where the number was a half.
    if np.count_nonzero(halves[::2] & 0x1FFF) >= LEAST and (halves & 0x7FFF).max() < 0x6400:  # 1,024
        return 16
    # The low word of a double ends with 29 zeros where the number was a float32. (Of others some are NaN as float32.)
    doubles = np.count_nonzero(words[1::2] & 0x1FFFFFFF) >= LEAST and not (words[::2] & 0x1FFFFFFF).any()
    return 64 if doubles else 0
