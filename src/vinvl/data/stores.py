"""Which store the images of a split are in: made on first use where the configuration says of what, and kept open."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from vinvl.data.table import RecordTable
from vinvl.data.tags import positions_in
from vinvl.regions.caches import DeviceFeatures, SharedCopies, locked_folder
from vinvl.regions.layout import AS_IT_IS, View
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError, say
from vinvl.run.files import read_bytes, read_json
from vinvl.run.folders import process_rank
from vinvl.run.values import FilledText, Id

RAM, DEVICE = "ram", "device"  # where `data.cache` keeps features
FORM = "a store, a list of them, or {from: FEATURES, to: STORE, …} for one that is made on first use"
EACH = "*"  # in from, to and id_prefix: the name of a folder, for features that lie in one for each chunk


@dataclass(frozen=True)
class StoreFile:
    """A store and, where it may be made on first use, what of, with settings as conf/convert.yaml has them.

    view: how it is read; one store serves data sets that call its images by other ids.
    """

    path: str
    source: str | None
    features: dict[str, Any]
    view: View = AS_IT_IS

    @classmethod
    def listed(cls, given: Any, place: str) -> "list[StoreFile]":
        """Those that a plain value of the configuration names; `place` is "data.regions". UserError if it is none."""
        files = []
        for one in given if isinstance(given, list | tuple) else [given]:
            settings = dict(one) if isinstance(one, Mapping) else {"to": one}
            path, source = settings.pop("to", None), settings.pop("from", None)
            if not isinstance(path, str) or not isinstance(source, str if isinstance(one, Mapping) else str | None):
                raise UserError(f"{place} is {given!r}: give {FORM}.")
            try:
                view = msgspec.convert(settings.pop("read", {}), View)
            except msgspec.ValidationError as error:
                raise UserError(f"{place}: read of {path} takes id_prefix and classes ({error}).") from None
            each = source is not None and EACH in source
            files += _of_each(path, source, settings, view) if each else [cls(path, source, settings, view)]
        if not files:
            raise UserError(f"{place} names no store: give {FORM}.")
        return files

    def make(self) -> None:
        """Makes the store where it is not there; UserError also where it is there and made of something else."""
        if self.source is None:
            return
        source, path = Path(self.source).expanduser(), Path(self.path)
        from vinvl.regions.formats.convert import mark_of_source, run_conversion

        if not make_once(source, path, lambda: run_conversion(source, path, self.features)):
            return
        made_of, mark = RegionStore(path).provenance.get("converted_from"), mark_of_source(source, self.features)
        refuse_other(path, made_of, source, mark)


def make_once(source: Path, target: Path, make: Callable[[], str]) -> bool:
    """Makes a file or folder `target` of `source` where it is not there; True if both were there already.

    Rank 0 makes it, the others wait until it is there: under its name it is whole. Raises UserError if neither is.
    """
    while process_rank() > 0 and source.exists() and not target.exists():
        time.sleep(1)
    if target.exists() or not source.exists():
        if not target.exists():
            raise UserError(
                f"{target} does not exist, and neither does {source}, which it would be made of: get that, or name "
                "what you have made of it elsewhere."
            )
        return source.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(target.parent):  # of several runs one makes it, the others wait
        if not target.exists():
            say(f"{target} is made of {source}, once …", error=True)
            say(make(), error=True)
    return False


def refuse_other(target: Path, made_of: str | None, source: Path, mark: str) -> None:
    """Raises UserError if what `target` says that it was made of is not the mark of `source`; None says nothing."""
    if made_of is not None and made_of != mark:
        raise UserError(f"{target} was made of {made_of}, and {source} is {mark}: delete it, or name another one.")


def _of_each(path: str, source: str | None, settings: dict[str, Any], view: View) -> list[StoreFile]:
    """A store for each folder that the pattern of the features stands for or, without these, that is made already."""
    assert source is not None
    names = {name: Path(found) for name, found in _matches(source).items() if Path(found).is_dir()} or _matches(path)
    if not names:
        raise UserError(f"{source} stands for no folder of features, and {path} for no store; check the path.")

    def filled(value: Any, name: str) -> Any:
        return value.replace(EACH, name) if isinstance(value, str) else value

    return [
        StoreFile(
            filled(path, name),
            filled(source, name),
            {key: filled(one, name) for key, one in settings.items()},
            msgspec.structs.replace(view, id_prefix=filled(view.id_prefix, name)),
        )
        for name in sorted(names)
    ]


def _matches(pattern: str) -> dict[str, str]:
    """What `*` stands for in paths that there are."""
    before, _, after = pattern.partition(EACH)
    folder, start = Path(before).parent if not before.endswith("/") else Path(before), before.rpartition("/")[2]
    found = [path for path in folder.expanduser().glob(f"{start}{EACH}{after}")] if folder.is_dir() else []
    base = len(str(folder.expanduser())) + 1 + len(start)
    return {str(path)[base : len(str(path)) - len(after)]: str(path) for path in found}


@dataclass(frozen=True, eq=False)
class OpenStore:
    """A store with its features where `data.cache` wants them.

    store: its files are copies in shared memory where they are kept there.
    copies: holds these as long as it lives.
    on_device: all features, where they are kept on the device.
    """

    store: RegionStore
    copies: SharedCopies | None = None
    on_device: DeviceFeatures | None = None

    @classmethod
    def of(cls, files: Sequence[StoreFile], cache: str | None, contents: bool) -> "OpenStore":
        """Opened and looked at, with `contents` all of it. Raises UserError, naming the file, for what is wrong."""
        store = RegionStore([file.path for file in files], [file.view for file in files])
        store.require_sound(contents=contents)
        if cache == RAM:
            copies = SharedCopies([header.path for header in store.headers])
            return cls(RegionStore(copies.paths, [header.view for header in store.headers]), copies)
        return cls(store, None, DeviceFeatures(store) if cache == DEVICE else None)


# Record ids that are not those of the store.


OPEN_IMAGES = "open_images_id"


class ListedImage(msgspec.Struct, gc=False):
    id: Id
    open_images_id: Id | None = None
    file_name: FilledText | None = None

    def __post_init__(self) -> None:
        if self.open_images_id is None and self.file_name is None:
            raise ValueError("Object missing required field `open_images_id` or `file_name`")

    @property
    def called(self) -> Id:
        """By its name without suffix where Open Images has no id for it."""
        return PurePosixPath(self.file_name or "").stem if self.open_images_id is None else self.open_images_id


class ListedImages(msgspec.Struct):
    """Images of a COCO file, whose numbers are not what its pictures are called; of NoCaps they are of Open Images."""

    images: list[ListedImage]


def found_by_name(store: RegionStore, records: Any, places: np.ndarray) -> np.ndarray:
    """Where the images of records are in a store, (N,) int64, of which `places` says so by their ids, -1 for none.

    Where some are missing and more are found by what the records say that their pictures are called, all are looked
    for by that. NoCaps' ids in Open Images come first: by its own numbers, from 0, it would be given pictures of COCO.
    """
    open_images = isinstance(records, RecordTable) and OPEN_IMAGES in records
    if not isinstance(records, RecordTable) or places.ndim != 1 or ((places >= 0).all() and not open_images):
        return places
    by, best = "", places
    for column in (OPEN_IMAGES, "file_name", "image_file"):
        names = list(records.get(column) or [])
        for called in (names, [PurePosixPath(name).stem for name in names]):
            found = positions_in(store, np.array(called))
            count, before = (np.count_nonzero(one >= 0) for one in (found, best))
            if count > before or (column == OPEN_IMAGES and count and not by):
                by, best = column, found
        if by:
            if process_rank() == 0:
                warnings.warn(
                    f"The images of {records['file'][0]}s are looked up in {store!r} by {by}; "
                    "if they have other names there, pass data.image_ids=FILE.",
                    stacklevel=2,
                )
            break
    return best


def image_id_table(path: str | Path) -> dict[str, str]:
    """Image ids of records → those of the store.

    From JSON {id: id}, a list of images with their open_images_id or file_name as NoCaps and COCO have it, or a TSV of
    two columns.

    Raises:
        UserError: the file is missing, of another form, or has an id twice.
    """
    path = Path(path)
    pairs: list[tuple[Any, Any]]
    if path.suffix == ".tsv":
        lines = [line.split("\t") for line in read_bytes(path).decode("utf-8-sig", "replace").splitlines() if line]
        if wrong := next((number for number, columns in enumerate(lines, start=1) if len(columns) != 2), None):
            raise UserError(f"{path} line {wrong} has not two columns: a record's image id and the store's.")
        pairs = [(own.strip(), image.strip()) for own, image in lines]
    else:
        content: Any = read_json(path)
        try:
            if isinstance(content, dict) and isinstance(content.get("images"), list):
                pairs = [(one.id, one.called) for one in msgspec.convert(content, ListedImages).images]
            else:
                pairs = list(msgspec.convert(content, dict[str, Id]).items())
        except msgspec.ValidationError as error:
            raise UserError(
                f"{path} is no table of image ids ({error}): data.image_ids takes JSON of a record's image id → the "
                "store's, the images of NoCaps or COCO, or a TSV of two columns."
            ) from None
    table: dict[str, str] = {}
    for own, image in pairs:
        if table.setdefault(str(own), str(image)) != str(image):
            raise UserError(f"{path} has image {own} twice, as {table[str(own)]} and as {image}.")
    if not table:
        raise UserError(f"{path} names no images; data.image_ids needs some.")
    return table
