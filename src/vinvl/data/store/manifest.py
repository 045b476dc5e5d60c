"""The manifest of a folder of shards: `manifest.json`, which lists the shard files and their numbers of images."""

from __future__ import annotations

import json
from pathlib import Path

from vinvl.data.store.layout import FORMAT_NAME, FORMAT_VERSION
from vinvl.errors import UserError
from vinvl.files import PARTIAL_SUFFIX, write_text_atomically

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path, shards: list[tuple[str, int]]) -> None:
    """Write (file name, number of images) of all shards."""
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "shards": [{"file": name, "images": images} for name, images in shards],
    }
    write_text_atomically(folder / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> list[tuple[Path, int]]:
    """The shard files of a folder with their declared numbers of images, in order.

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


def _read_entry(path: Path, entry: object) -> tuple[Path, int]:
    name, images = (entry.get("file"), entry.get("images")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(images, int) or isinstance(images, bool):
        raise UserError(f"{path} has a shard entry without file and images; write the store again.")
    # A manifest must not lead out of its folder.
    if name != Path(name).name or "\0" in name:
        raise UserError(f"{path} names the shard {name!a}, which is not a plain file name; write the store again.")
    if not (path.parent / name).is_file():
        raise UserError(f"{path} names the shard {name!a}, which is missing; copy it here or write the store again.")
    return path.parent / name, images
