"""Pictures in a TSV, a zip or tar archive or an LMDB: which there are, and the bytes of each.

The place of a picture is the path of its file. Within a container it is a text: what a person is shown (val.zip/a.jpg),
NUL, and numbers that say where it lies. Each is read by itself from there, so that threads, processes and forks share
nothing, and no name in an archive ever becomes a file.
"""

from __future__ import annotations

import binascii
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import yaml

from vinvl.regions.formats.lmdb_folder import Record, read_records, read_value
from vinvl.regions.formats.rows import MOST_BYTES, at
from vinvl.regions.formats.tsv import line_parts
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, reading
from vinvl.run.values import shown

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
HEAD = 16  # bytes by which a picture is known
FIRST_LINES = 8  # of a TSV, of which one at least must hold a whole picture's beginning
NO_PICTURES = (b"keys", b"__keys__", b"__len__", b"length", b"num-samples", b"num_samples")  # of an LMDB
TAR_HEAD = 262  # bytes by which a tar archive is known
LMDB_FILE = "data.mdb"  # in a folder of that kind
PLAIN_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what is unpacked byte by byte, up to a limit
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of its name and of what else is said


class Entry(NamedTuple):
    """A picture that was found, before it has an id."""

    place: str
    name: str  # its path below the folder or in the archive, its key, or its id
    kind: str = "path"  # or "key", from which an id is taken without a rule, or "id", which somebody gave
    problem: str = ""  # why it cannot be used


def name_of(place: str | os.PathLike[str]) -> str:
    """What a person is shown of a place: the path, or container and key."""
    return os.fspath(place).rpartition("\0")[0] or os.fspath(place)


def is_picture(head: bytes, suffix: str = "") -> bool:
    """Whether a file's first `HEAD` bytes are those of a picture.

    Behind other suffixes than those of pictures a TIFF is none: it may be a camera's raw file, which begins as one.
    """
    tiff = head.startswith((b"II*\0", b"MM\0*")) and suffix.lower() in ("", *SUFFIXES)
    webp, bmp = head.startswith(b"RIFF") and head[8:12] == b"WEBP", head.startswith(b"BM") and head[6:10] == bytes(4)
    return tiff or webp or bmp or head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))


def opened(place: str | os.PathLike[str], most: int = MOST_BYTES) -> BinaryIO:
    """The bytes of the picture at a place, of a member of an archive `most` of them.

    Raises OSError for a file, and UserError for what is in a container.
    """
    told, _, numbers = os.fspath(place).rpartition("\0")
    if not told:
        return open(place, "rb")
    kind, length, *where = numbers.split()
    path = Path(told[: int(length)])
    path = path / LMDB_FILE if path.is_dir() else path
    with at(told), reading(path), path.open("rb") as file:
        return io.BytesIO(_READERS[kind](file, most, *map(int, where)))


def _place(path: Path, key: str, kind: str, *where: int) -> str:
    return f"{path}/{key}\0{' '.join(map(str, (kind, len(str(path)), *where)))}"


def container_of(path: Path) -> Iterator[Entry] | None:
    """The pictures of a container, known by its content; None for another file or folder.

    Raises UserError if the container is damaged or cannot be read.
    """
    if path.is_dir():
        return _lmdb_pictures(path) if (path / LMDB_FILE).is_file() else None
    if (rows := _rows_of_set(path)) is not None:
        return _tsv_pictures(*rows)
    with reading(path), path.open("rb") as file:
        head = file.read(TAR_HEAD)
    if head[257:] == b"ustar":
        return _tar_pictures(path)
    if head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return _zip_pictures(path)
    if head[16:20] == b"\xde\xc0\xef\xbe":
        return _lmdb_pictures(path)
    return _tsv_pictures(path) if not is_picture(head) and _holds_base64(path) else None


# A TSV: key and the picture in base64, in whichever column; the published extractor takes the last.


def _holds_base64(path: Path) -> bool:
    with reading(path), path.open("rb") as file:
        lines = [file.readline(2**20) for _ in range(FIRST_LINES)]
    return any(is_picture(_decoded(_picture_column(line)[:16])) for line in lines)


def _picture_column(line: bytes) -> bytes:
    """The column behind the key that begins as a picture in base64 does; the last one where none does."""
    columns = [_bare(one) for one in line.split(b"\t")[1:]]
    return next((one for one in columns if is_picture(_decoded(one[:16]))), columns[-1] if columns else b"")


def _bare(column: bytes) -> bytes:
    """Base64 that Python 3 has written as it shows bytes, or the kind for addresses, as it should be."""
    column = column.strip()
    column = column[2:].rstrip(b"'\"") if column[:2] in (b"b'", b'b"') else column
    return column.translate(bytes.maketrans(b"-_", b"+/"))


def _decoded(column: bytes) -> bytes:
    """b"" for what is no base64."""
    try:
        return binascii.a2b_base64(column, strict_mode=True)
    except binascii.Error:
        return b""


def _tsv_pictures(path: Path, rows: Collection[int] | None = None) -> Iterator[Entry]:
    """Those of some rows, from 0, or of all; in the order of the file."""
    seen: dict[bytes, int] = {}
    number = 0
    for number, (start, stop, line) in enumerate(_lines(path), start=1):
        key, tab, _ = line.partition(b"\t")
        if not line.strip() or not (rows is None or number - 1 in rows):
            continue
        try:
            name, problem = key.decode("utf-8").strip(), "" if tab else "it has no column for a picture"
        except UnicodeDecodeError:
            name, problem = "", "its key is no UTF-8 text"
        if (first := seen.setdefault(key, number)) != number:
            problem = f"its key is that of line {first}"
        problem = f"{path} line {number} ({shown(name)}): {problem}." if problem else ""
        yield Entry(_place(path, name or f"line {number}", "tsv", start, stop), name, "key", problem)
    if rows and max(rows) >= number:
        raise UserError(
            f"{path} has {number:,} rows, and its linelist asks for row {max(rows):,} (from 0): get both again."
        )


def _rows_of_set(path: Path) -> tuple[Path, Collection[int] | None] | None:
    """The TSV of pictures that the yaml of a set of VinVL's names, and its rows there; None for another file."""
    try:
        content = yaml.safe_load(read_bytes(path)) if path.suffix in (".yaml", ".yml") else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("img"), str):
        return None
    pictures, *lists = (
        given if (given := Path(name)).is_file() else path.parent / name
        for name in (content["img"], content.get("linelist"))
        if isinstance(name, str)
    )
    listed = [read_bytes(one).split() for one in lists]
    if wrong := next((one for one in chain(*listed) if not one.isdigit() or len(one) > 18), None):
        raise UserError(
            f"{lists[0]} holds {shown(wrong.decode('utf-8', 'replace'))}, a row number a line was expected."
        )
    return pictures, frozenset(map(int, listed[0])) if listed else None


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(first byte, byte behind the last, beginning) of each line: as a .lineidx beside the file says, or by reading."""
    index = path.with_suffix(".lineidx")
    if not index.is_file():
        for part in line_parts(path):
            for start, columns, _, stop in part.rows():
                yield start, stop, b"\t".join([*columns[:1], *(one[:9] for one in columns[1:2])])[:1024]
        return
    size = path.stat().st_size
    with reading(path), path.open("rb") as file:
        starts = [int(one) if one.isdigit() else -1 for one in read_bytes(index).split()]
        for number, (start, stop) in enumerate(pairwise([*starts, size]), start=1):
            file.seek(max(start - 1, 0))
            head = file.read(min(1024, stop - start) + (start > 0)) if 0 <= start < stop <= size else b""
            if not head or start != (0 if number == 1 else start) or (start > 0 and head[:1] != b"\n"):
                raise UserError(f"{index} line {number} is not where a line of {path} begins: delete {index}.")
            yield start, stop, head[start > 0 :]


def _read_tsv(file: BinaryIO, most: int, start: int, stop: int) -> bytes:
    file.seek(start)
    line = file.read(min(stop - start, MOST_BYTES)).rstrip(b"\r\n")
    if b"\n" in line:
        raise UserError("there are two lines where its .lineidx has one: delete that file.")
    content = _decoded(_picture_column(line))
    if not content:
        raise UserError("it has no picture in base64, or one that is cut off.")
    return content


# A zip archive.


def _zip_pictures(path: Path) -> Iterator[Entry]:
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{path} is no zip archive, or cut off or damaged ({error}): get it again.") from None
    names: set[str] = set()
    for one in members:
        where = one.header_offset, one.compress_size, one.file_size, one.compress_type, one.CRC
        place, problem = _place(path, one.filename, "zip", *where), ""
        if one.is_dir():
            continue
        if one.filename in names:
            problem = "has the name of another one in the archive"
        elif one.flag_bits & 1:
            problem = "is encrypted: unpack the archive with its password"
        elif one.compress_type not in PLAIN_ZIP:
            problem = "is packed in another way than deflate: unpack the archive, or pack it anew"
        elif one.file_size > MOST_BYTES:
            problem = f"has {one.file_size:,} bytes, at most {MOST_BYTES:,} are read"
        names.add(one.filename)
        yield Entry(place, one.filename, problem=f"{name_of(place)} {problem}." if problem else "")


def _read_zip(file: BinaryIO, most: int, start: int, packed: int, size: int, method: int, crc: int) -> bytes:
    member = zipfile.ZipInfo()
    member.compress_size, member.file_size, member.compress_type, member.CRC = packed, size, method, crc
    file.seek(start)
    try:
        signature, name, more = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        if signature != b"PK\3\4":
            raise UserError("the archive is damaged where it begins.")
        file.seek(name + more, os.SEEK_CUR)
        with zipfile.ZipExtFile(file, "r", member) as content:
            return content.read(most)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error):
        raise UserError("the archive is cut off or damaged there.") from None


# A tar archive that is not compressed, as WebDataset's are.


def _tar_pictures(path: Path) -> Iterator[Entry]:
    cut = f"{path} is cut off or damaged"
    try:
        with reading(path), tarfile.open(path, "r:") as archive, path.open("rb") as file:
            members = archive.getmembers()
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes damage for the end
                raise UserError(f"{cut} behind its {len(members):,} first members: get it again.")
    except (tarfile.TarError, ValueError, OverflowError, struct.error, EOFError) as error:
        raise UserError(f"{cut} ({error}): get it again.") from None
    names: set[str] = set()
    for one in members:
        place, problem = _place(path, one.name, "tar", one.offset_data, one.size), ""
        if one.isdir():
            continue
        if one.name in names:
            problem = "has the name of another one in the archive"
        elif not one.isreg():
            problem = "is a link: unpack the archive"
        elif one.issparse() or one.size > MOST_BYTES:
            problem = f"is sparse, or has more than the {MOST_BYTES:,} bytes that are read"
        names.add(one.name)
        yield Entry(place, one.name, problem=f"{name_of(place)} {problem}." if problem else "")


def _read_tar(file: BinaryIO, most: int, start: int, size: int) -> bytes:
    file.seek(start)
    content = file.read(min(size, most))
    if len(content) < min(size, most):
        raise UserError("the archive is cut off there.")
    return content


# An LMDB: keys → pictures as their files are.


def _lmdb_pictures(path: Path) -> Iterator[Entry]:
    data = path / LMDB_FILE if path.is_dir() else path
    with reading(data), data.open("rb") as file:
        try:
            records = read_records(file)
        except UserError as error:
            raise UserError(f"{path} is no LMDB, or a damaged one ({error}); get it again.") from None
    for record in records:
        if record.key not in NO_PICTURES:
            name, page = record.key.decode("utf-8", "backslashreplace"), -1 if record.page is None else record.page
            yield Entry(_place(path, name, "lmdb", record.start, record.stop, page), name, "key")


def _read_lmdb(file: BinaryIO, most: int, start: int, stop: int, page: int) -> bytes:
    return read_value(file, Record(b"", start, stop, None if page < 0 else page))


_READERS: dict[str, Callable[..., bytes]] = {"tsv": _read_tsv, "zip": _read_zip, "tar": _read_tar, "lmdb": _read_lmdb}
