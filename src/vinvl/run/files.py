"""Files and folders that appear under their names completely or not at all, and stay there when the power fails.

What is being made is beside its place under a name of its own, `.NAME.xxxxxxxx.partial`, with a lock on it. So
whoever writes NAME next can tell what a killed writer has left, and takes it away.
"""

import errno
import fcntl
import gc
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from vinvl.run.errors import UserError, cause_of_kind

# JSON that is read, with every failure told as one sentence.


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Within it a file is read: UserError if it is missing or unreadable."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; UserError if it is missing or unreadable."""
    with reading(path):
        return Path(path).read_bytes()


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte-order mark.

    Raises UserError, naming the file and where possible line and column, if it is missing, unreadable, empty, not UTF-8
    or not JSON.
    """
    return parse_json(read_bytes(path), str(path))


def json_object(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file consists of; raises UserError as `read_json` does, and if it is anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; get the file again.")
    return content


def parse_json(content: bytes, place: str) -> Any:
    """Parses UTF-8 bytes; `place` names them ("train.jsonl line 3") in the UserError that bad ones raise."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        newlines = content.count(b"\n", 0, error.start)
        line = f" on line {newlines + 1}" if b"\n" in content else ""
        raise UserError(f"{place} is not UTF-8 text (byte {error.start}{line}); save it as UTF-8.") from error
    if not text.strip():
        raise UserError(f"{place} is empty; it should hold JSON.")
    try:
        value = json.loads(text)
        if "\\u" in text:
            refuse_half_characters(value)
        return value
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        spot = f"{line}column {error.colno}: {error.msg}"
        raise UserError(f"{place} is not valid JSON ({spot}); it may be cut off or edited by hand.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not usable JSON ({error}).") from error


def refuse_half_characters(value: Any) -> None:
    """Raises ValueError where a text holds half of a surrogate pair, which no tokenizer, file or terminal takes."""
    open_values = [("$", value)]
    while open_values:
        where, one = open_values.pop()
        if isinstance(one, dict):
            open_values += [(f"a name in {where}", name) for name in one]
            open_values += [(f"{where}.{name}", item) for name, item in one.items()]
        elif isinstance(one, list):
            open_values += [(f"{where}[{index}]", item) for index, item in enumerate(one)]
        elif isinstance(one, str) and not one.isascii():
            try:
                one.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds half of a surrogate pair, \\ud800 to \\udfff") from None


def json_lines(path: str | Path, parse: Callable[[bytes, str], Any] = parse_json) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line of a JSON Lines file that is not blank; UTF-8, one line at a time.

    `parse` makes a value of a line and the words that name it. Raises UserError, naming file and line, as `read_json`
    does.
    """
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, parse(line.rstrip(), f"{path} line {number}")


def json_parts(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that are named; a folder stands for its *.json files in name order, as GQA's files come in parts.

    A missing NAME.json beside a folder NAME is that folder, as in GQA's own script. UserError if there are none.
    """
    files: list[Path] = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        folder = path.with_suffix("") if path.suffix == ".json" and not path.exists() else path
        found = sorted(folder.glob("*.json")) if folder.is_dir() else [path]
        if not found:
            raise UserError(f"{path} is a folder without .json files: give the one that the files are in.")
        files += found
    if not files:
        raise UserError("No file is named: give at least one file or folder.")
    return files


def begins_a_list(path: str | Path) -> bool:
    """Whether a file is one JSON list, and not JSON Lines."""
    try:
        with open(path, "rb") as file:
            start = file.read(1024).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return False  # the reader that follows says why
    return start.lstrip().startswith(b"[")


@contextmanager
def no_cycle_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no cycles; looking for cycles among them takes as long as the parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Files and folders that are written.

PARTIAL_SUFFIX = ".partial"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write, UTF-8 text or (`wb`) bytes, which replaces `path` when it is whole and on the disk.

    Its folder is made if it is missing. Whatever goes wrong, `path` is as it was and nothing is beside it.

    Raises UserError if it cannot be written; the operating system's error is its cause.
    """
    path = Path(path)
    with failure_told(path, "check folder, permissions and room"):
        partial, descriptor = _reserve(path, is_folder=False)
        try:
            with open(descriptor, mode, encoding=None if "b" in mode else "utf-8", closefd=False) as file:
                yield file
            put_in_place(partial, path)
        finally:
            _remove(partial)
            os.close(descriptor)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Writes a whole text with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON with `atomic_write`."""
    write_text_atomically(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `path` at the end; whatever goes wrong, nothing is left of it.

    Raises UserError if there is something of that name already, or the disk cannot be written to.
    """
    path = Path(path).expanduser()
    refuse_existing(path)
    with work_folder(path) as folder:
        yield folder
        refuse_existing(path)  # renaming would replace an empty folder that has come up in the meantime
        put_in_place(folder, path)


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` for what is on its way there (see `put_in_place`); it is removed at the end.

    Raises UserError if what is written into it, or the folder itself, finds no place.
    """
    with failure_told(target, "nothing is left of it; make room or see to permissions, and give the command again"):
        folder, descriptor = reserve_folder(target)
        try:
            yield folder
        finally:
            _remove(folder)
            os.close(descriptor)


def reserve_folder(target: Path) -> tuple[Path, int]:
    """A new folder beside `target`, and the open file whose lock says that its writer lives. Raises OSError."""
    return _reserve(target, is_folder=True)


def put_in_place(made: Path, target: Path, replaced: Path | None = None, *, durable: bool = True) -> None:
    """Gives a finished file or folder its name, once all of it is on the disk. Raises OSError.

    Args:
        made: on the file system of the target.
        target: replaced if it is a file or an empty folder.
        replaced: what becomes of another folder's name.
        durable: False does not wait for the disk: for what its reader checks, and makes again where the power failed.
    """
    if not durable:
        os.replace(made, target)
        return
    for folder, _, names in os.walk(made, topdown=False):
        for name in names:
            _flush(Path(folder, name))
        flush_folder(Path(folder))
    if not made.is_dir():
        _flush(made)
    if replaced is not None and target.exists():
        os.replace(target, replaced)
    os.replace(made, target)
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """The names in a folder are on the disk too; where folders cannot be flushed there is nothing to be done."""
    with suppress(OSError):
        _flush(folder)


def refuse_existing(path: Path) -> None:
    """Raises UserError if there is a file, a folder or a link of that name."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already, and nothing is overwritten: give another name.")


def remove_leftovers(folder: Path, names: str) -> None:
    """Removes what killed writers have left in a folder; what a living one is at is locked, and stays.

    Args:
        names: a regular expression of the names that were to be written.
    """
    partial = re.compile(rf"\.(?:{names})(?:\.[0-9a-f]{{8}})?{re.escape(PARTIAL_SUFFIX)}")
    with suppress(OSError):
        for name in os.listdir(folder):
            if partial.fullmatch(name):
                _remove_unlocked(folder / name)


def lock(descriptor: int, *, wait: bool = False, shared: bool = False, inherited: bool = True) -> bool | None:
    """Whether the lock of an open file is ours now; None on a network folder without locks, where nobody has one.

    It lasts until the file is closed or the process ends, however it ends. Processes that are forked keep it too unless
    it is not `inherited`: data workers outlive a killed run by seconds.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        (fcntl.flock if inherited else fcntl.lockf)(descriptor, how)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def is_open_file(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name: a lock on a removed file guards nothing."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def free_room(folder: Path) -> int:
    """How many bytes are free where a folder is, or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an exception: torch reports a failed write as an error of its own."""
    return cause_of_kind(error, OSError)


def reason_of(error: BaseException) -> str:
    """Why a write failed, in a few words; HDF5 reports more than a person wants to know."""
    failed = system_error(error)
    text = str(error) if failed is None else os.strerror(failed.errno) if failed.errno else str(failed)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


@contextmanager
def failure_told(path: Path, consequence: str) -> Iterator[None]:
    """Makes one sentence of whatever a write that fails raises, with the operating system's error as its cause."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        failed = system_error(error)
        if failed is None and isinstance(error, RuntimeError) and "write" not in str(error):
            raise
        raise UserError(f"{path} cannot be written ({reason_of(error)}); {consequence}.") from (failed or error)


def _reserve(target: Path, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder beside `target`, and a descriptor of it that holds its lock."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, re.escape(target.name))
    while True:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        if is_folder:
            partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if lock(descriptor) is not False and partial.exists():  # else it was taken for a leftover before it was locked
            return partial, descriptor
        os.close(descriptor)


def _remove_unlocked(partial: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if lock(descriptor):
            _remove(partial)
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
