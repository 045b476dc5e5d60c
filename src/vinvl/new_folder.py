"""A folder that appears under its name whole or not at all, and never in the place of another."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vinvl.errors import UserError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `path` at the end; whatever goes wrong, nothing is left of it.

    It lies beside `path` under a temporary name until then, so that the renaming stays within one file system.

    Raises:
        UserError: there is something of that name already, or the disk cannot be written to.
    """
    path = Path(path).expanduser()
    refuse_existing(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            refuse_existing(path)  # renaming would replace an empty folder that has come up in the meantime
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({_reason(error)}); nothing is left of it.") from error
    except RuntimeError as error:  # what torch.save makes of a disk that is full
        if "write" not in str(error):
            raise
        raise UserError(f"{path} cannot be written ({_reason(error)}); nothing is left of it.") from error


def refuse_existing(path: Path) -> None:
    """
    Raises:
        UserError: there is a file, a folder or a link of that name.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists already, and nothing is overwritten: give another name.")


def _flush(folder: Path) -> None:
    """Has the files written out before the folder gets its name: a full disk may show only then."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
