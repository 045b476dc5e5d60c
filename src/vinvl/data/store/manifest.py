"""The manifest of a folder of shards: `manifest.json`, which lists files, their numbers of images and checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

from vinvl.data.store.layout import FORMAT_NAME, FORMAT_VERSION
from vinvl.errors import UserError
from vinvl.files import PARTIAL_SUFFIX, write_text_atomically

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """What a manifest says of a shard; `checksum` of its checksums, None in manifests of earlier versions."""

    file: str
    images: int
    checksum: int | None = None

    @classmethod
    def of(cls, file: str, images: int, checksums: Mapping[str, int] | None) -> ShardEntry:
        text = None if checksums is None else json.dumps(checksums, sort_keys=True)
        return cls(file, images, None if text is None else crc32(text.encode()))


def write_manifest(folder: Path, shards: Sequence[ShardEntry]) -> None:
    """Write the manifest of all shards."""
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "shards": [asdict(shard) for shard in shards],
    }
    write_text_atomically(folder / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> list[ShardEntry]:
    """The shards of a folder, in order.

    Raises UserError if the folder has no sound manifest of this version, or names a shard that is missing.
    """
    path = folder / MANIFEST_NAME
    if folder.name.endswith(PARTIAL_SUFFIX) or folder.parent.name.endswith(PARTIAL_SUFFIX):
        raise UserError(f"{folder} was left by a writer that did not finish; delete it and write the store again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is a folder without {MANIFEST_NAME}; name its .h5 files one by one.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write the store again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise UserError(f"{path} is not the manifest of a region store; its format is not {FORMAT_NAME}.")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has layout version {str(content.get('version'))[:20]}, this vinvl reads version "
            f"{FORMAT_VERSION}; update vinvl or write the store again."
        )
    shards = content.get("shards")
    if not isinstance(shards, list) or not shards:
        raise UserError(f"{path} lists no shards; write the store again.")
    return [_read_entry(path, entry) for entry in shards]


def _read_entry(path: Path, entry: object) -> ShardEntry:
    entry = entry if isinstance(entry, dict) else {}
    name, images, checksum = entry.get("file"), entry.get("images"), entry.get("checksum")
    if not isinstance(name, str) or not isinstance(images, int) or isinstance(images, bool):
        raise UserError(f"{path} has a shard entry without file and images; write the store again.")
    if checksum is not None and (not isinstance(checksum, int) or isinstance(checksum, bool)):
        raise UserError(f"{path}: the checksum of {name!a} is no whole number; copy or write the store again.")
    # A manifest must not lead out of its folder.
    if name != Path(name).name or "\0" in name:
        raise UserError(f"{path} names the shard {name!a}, which is not a plain file name; write the store again.")
    if not (path.parent / name).is_file():
        raise UserError(f"{path} names the shard {name!a}, which is missing; copy it here or write the store again.")
    # Where the manifest too is a link, somebody made a folder of links, as caches of downloads do.
    if not path.is_symlink() and (path.parent / name).resolve().parent != path.parent.resolve():
        raise UserError(
            f"{path} names the shard {name!a}, which is a link out of its folder; name the .h5 files one by one, or "
            "link the whole folder."
        )
    return ShardEntry(name, images, checksum)
