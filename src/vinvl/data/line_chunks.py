"""A file of lines in pieces that workers read, each on its own."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from vinvl.errors import UserError

CHUNK_BYTES = 16 * 2**20


class Chunk(NamedTuple):
    """Whole lines of a file: bytes start to stop, the first of them being line `first_line`, counted from 1."""

    path: str
    start: int
    stop: int
    first_line: int

    def content(self) -> bytes:
        """The lines, read anew."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.stop - self.start)


def split_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> tuple[list[Chunk], str]:
    """The chunks of a file, and the hexadecimal digest of its content; one pass over it.

    Raises:
        UserError: the file is missing or unreadable.
    """
    digest = hashlib.blake2b(digest_size=16)
    chunks: list[Chunk] = []
    position, line = 0, 1
    try:
        with path.open("rb") as file:
            while block := file.read(chunk_bytes):
                block += file.readline()  # up to the end of the line that the block ends in
                digest.update(block)
                chunks.append(Chunk(str(path), position, position + len(block), line))
                position += len(block)
                line += block.count(b"\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    return chunks, digest.hexdigest()
