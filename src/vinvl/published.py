"""All features of the published folders → the stores that data=…_published reads: `vinvl.convert published=ROOT`.

What lies where, and which store is made of it, is said by conf/data/*_published.yaml alone.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vinvl.data.stores import StoreFile
from vinvl.run.errors import UserError, say
from vinvl.run.folders import config_directory
from vinvl.zoo import BESIDE, paths_in

DATA_OF_FOLDER = {
    "vqa": "vqa2_published",
    "gqa": "gqa_published",
    "GQA": "gqa_published",
    "nlvr2": "nlvr2_published",
    "coco_ir": "coco_retrieval_published",
    "flickr30k_ir": "flickr30k_published",
    "coco_caption": "coco_captions_published",
    "nocaps": "nocaps_published",
    "pretrain_corpus": "oscarplus_published",
}
KEPT = {".pt": 0.5}  # of the bytes of features, in float16: they are float32, and in TSV files base64 of it
KEPT_OF_TSV = 0.38
ROOM = 1.05  # for boxes and all else


@dataclass(frozen=True)
class FoundData:
    """A published data set: the stores that can be made or are there, and what is missing of its files."""

    name: str
    stores: list[StoreFile]
    missing: list[str]

    @property
    def sources(self) -> list[str]:
        """The features that are there."""
        return [store.source for store in self.stores if store.source is not None and Path(store.source).exists()]

    @property
    def to_make(self) -> list[StoreFile]:
        return [store for store in self.stores if not Path(store.path).exists()]

    def bytes_needed(self) -> int:
        """Of the stores that are not there yet, and of the largest once more, while its shards are merged."""
        sizes = [_bytes_of(Path(str(store.source))) for store in self.to_make]
        return sum(sizes) + max(sizes, default=0)


def convert_published(folder: Path, stores: Path) -> list[Path]:
    """Makes all stores that the features in a published root, or in one task's folder, are there for.

    Says before what was found, what is missing and how much room it takes. Stores that are there stay; what was killed
    goes on. Returns the stores.

    Raises:
        UserError: nothing is found, there is too little room, or features cannot be used.
    """
    root, names = chosen(folder)
    found = [data for name in names if (data := look_at(name, root, stores)).sources]
    if not found:
        raise UserError(
            f"{folder} holds no published features: give the folder that holds {', '.join(sorted(DATA_OF_FOLDER))} and "
            "image_features as downloaded, or one of these."
        )
    for data in found:
        _tell(data)
    needed, free = sum(data.bytes_needed() for data in found), _free(stores)
    say(f"room: {needed / 1e9:,.2f} GB needed in {stores}, {free / 1e9:,.2f} GB free", error=True)
    if needed > free:
        raise UserError(
            f"{stores} has {free / 1e9:,.2f} GB free, and the stores take {needed / 1e9:,.2f} GB: pass to=FOLDER on a "
            "larger disk, or the folder of one task."
        )
    made = {store.path: store for data in found for store in data.stores}
    for store in made.values():
        store.make()
    say(f"{len(made)} stores are in {stores}; data=…_published reads them with published.stores={stores}")
    return [Path(path) for path in made]


def look_at(name: str, root: Path, stores: Path) -> FoundData:
    """What there is of a published data set, `name` of its configuration, below a root."""
    loaded: Any = OmegaConf.load(Path(config_directory()) / "data" / f"{name}.yaml")
    places = {"root": str(root), "stores": str(stores)}
    config: Any = OmegaConf.create({"published": places, "paths": {"data_dir": str(stores)}, "data": loaded}).data
    given = [node for node in (config.get("regions"), *(config.get("stores") or {}).values()) if node is not None]
    listed: dict[str, StoreFile] = {}
    missing = [
        path for path in paths_in(OmegaConf.to_container(config.splits, resolve=True)) if not Path(path).exists()
    ]
    for node in given:
        plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig | ListConfig) else node
        for one in plain if isinstance(plain, list) else [plain]:
            try:
                files = StoreFile.listed(one, f"{name}: a store")
            except UserError:  # a pattern that stands for nothing
                missing.append(str(one["from"]))
                continue
            for file in files:
                needed = [file.source, *(file.features.get(name) for name in BESIDE)]
                lacking = [str(path) for path in needed if path and not Path(str(path)).exists()]
                if file.source is not None and (not lacking or Path(file.path).exists()):
                    listed[file.path] = file
                missing += lacking
    return FoundData(name, list(listed.values()), list(dict.fromkeys(missing)))


def chosen(folder: Path) -> tuple[Path, list[str]]:
    """The root, and the configurations of what lies there; of one task if the folder is that task's."""
    there = {path.stem for path in (Path(config_directory()) / "data").glob("*_published.yaml")}
    for place in (folder, folder.parent):
        if DATA_OF_FOLDER.get(place.name) in there:
            above = place.parent  # image_features may lie beside datasets
            return above.parent if above.name == "datasets" else above, [DATA_OF_FOLDER[place.name]]
    return folder, [name for name in dict.fromkeys(DATA_OF_FOLDER.values()) if name in there]


def _tell(data: FoundData) -> None:
    told = [f"{data.name}: {len(data.stores)} stores, {len(data.stores) - len(data.to_make)} of them there already"]
    told += [f"  {store.path} of {store.source}" for store in data.to_make]
    told += [f"  missing: {path}" for path in data.missing]
    say(*told, error=True)


def _bytes_of(source: Path) -> int:
    """How large the store of some features will be, about."""
    files = [source] if source.is_file() else [path for path in source.iterdir() if path.is_file()]
    features = [path for path in files if "predictions" not in path.name]
    return int(ROOM * sum(path.stat().st_size * KEPT.get(path.suffix, KEPT_OF_TSV) for path in features))


def _free(folder: Path) -> int:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
