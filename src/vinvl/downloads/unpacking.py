"""Files out of an archive that may be anybody's: nothing lands outside of its folder, and nothing is left half."""

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from vinvl.run.errors import UserError
from vinvl.run.files import free_room, put_in_place, work_folder

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
SHOWN = 5


class Member(NamedTuple):
    """What an archive says of one of its files. opened: opens it; None for a folder, and for a link or device."""

    name: str
    is_folder: bool
    opened: Callable[[], IO[bytes]] | None


def unpack(archive: Path, makes: Sequence[str], folder: Path) -> str | None:
    """Puts the files and folders that `makes` names into a folder, each of them whole; those that are there stay.

    They may lie in other folders within the archive (questions1.2/val.json for val.json). What else is in it is left
    out, and so are the owners, modes and dates that it states. Returns what the archive lacks, in a sentence.

    Raises:
        UserError: the archive is damaged, names places outside of its folder, or holds links; or the disk is full.
            Nothing is left of it then.
    """
    wanted = [name for name in makes if not (folder / name).exists()]
    with work_folder(folder / archive.name) as work:
        seen = list[str]()
        try:
            _unpack_into(work, archive, wanted, seen)
        except DAMAGED as error:
            raise UserError(f"{archive} is damaged ({error or type(error).__name__}): get it again.") from error
        os.sync()
        missing = [name for name in wanted if not (work / name).exists()]
        for name in wanted:
            if name in missing:
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            put_in_place(work / name, folder / name, durable=False)
    has = ", ".join(seen[:SHOWN]) + (f" and {len(seen) - SHOWN:,} more" if len(seen) > SHOWN else "")
    return f"{archive.name} does not hold {', '.join(missing)}, but {has or 'nothing'}" if missing else None


def _unpack_into(work: Path, archive: Path, wanted: Sequence[str], seen: list[str]) -> None:
    """Writes the wanted members below `work`, and adds the names of all files to `seen`."""
    before = dict[str, tuple[str, ...]]()  # of what is wanted: the folders in which it lies in the archive
    with _opened(archive, work, wanted) as members:
        for member in members:
            path = _safe(member, archive)
            if member.is_folder:
                continue
            seen.append(member.name)
            for name in wanted:
                parts = PurePosixPath(name).parts
                start = next((at for at in range(len(path.parts)) if path.parts[at : at + len(parts)] == parts), None)
                if start is None or before.setdefault(name, path.parts[:start]) != path.parts[:start]:
                    continue
                target = work.joinpath(*path.parts[start:])
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise UserError(f"{archive} holds {member.name} twice: get it again, or from elsewhere.")
                assert member.opened is not None
                with member.opened() as content, open(target, "xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                break


def _safe(member: Member, archive: Path) -> PurePosixPath:
    """The place of a member. Raises UserError where it is outside of the archive's folder, or no ordinary file."""
    path = PurePosixPath(member.name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in (path.parts or ("",))[0]
    if outside or "\0" in member.name:
        raise UserError(f"{archive} holds {member.name!r}, a place outside of its folder: it is not to be trusted.")
    if member.opened is None and not member.is_folder:
        raise UserError(f"{archive} holds {member.name!r}, a link or device: it is not to be trusted.")
    return path


@contextmanager
def _opened(archive: Path, work: Path, wanted: Sequence[str]) -> Iterator[Iterator[Member]]:
    """The members of a zip, or of a tar packed in any way, in their order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            _check_room(file, archive, work, wanted)
            yield _of_zip(file, archive)
        return
    try:
        opened = tarfile.open(archive, "r|*")  # noqa: SIM115 (closed below)
    except tarfile.ReadError as error:
        with open(archive, "rb") as raw:
            begin = raw.read(20)
        raise UserError(f"{archive} is neither zip nor tar; it begins with {begin!r}: get it again.") from error
    with opened:
        yield _of_tar(opened)


def _check_room(file: zipfile.ZipFile, archive: Path, work: Path, wanted: Sequence[str]) -> None:
    """Raises UserError, from the error that the disk would give, where what is wanted does not fit."""
    names = [PurePosixPath(name).name for name in wanted]
    size = sum(one.file_size for one in file.infolist() if any(name in one.filename for name in names))
    free = free_room(work)
    if size > free:
        told = f"{archive} takes {size / 1e9:,.2f} GB unpacked, and {free / 1e9:,.2f} GB are free"
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UserError(f"{told}: make room, and give the command again.") from full


def _of_zip(file: zipfile.ZipFile, archive: Path) -> Iterator[Member]:
    for one in file.infolist():
        mode = one.external_attr >> 16
        if one.flag_bits & 1:
            raise UserError(f"{archive} is encrypted: get it from elsewhere.")
        ordinary = not one.is_dir() and (not stat.S_IFMT(mode) or stat.S_ISREG(mode))
        yield Member(one.filename, one.is_dir(), partial(file.open, one) if ordinary else None)


def _of_tar(file: tarfile.TarFile) -> Iterator[Member]:
    for one in file:
        opened: Callable[[], IO[bytes]] | None = partial(file.extractfile, one) if one.isreg() else None  # type: ignore[assignment]
        yield Member(one.name, one.isdir(), opened)
