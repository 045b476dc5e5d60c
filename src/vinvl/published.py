"""All that data=…_published makes of the published folders: `vinvl.convert published=ROOT`; and what is missing there.

What lies where, and what is made of it, is said by conf/data/*_published.yaml alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vinvl.data.stores import StoreFile
from vinvl.pretraining.published import make_published_corpus, read_settings
from vinvl.run.errors import UserError, say
from vinvl.run.files import free_room
from vinvl.run.folders import config_directory
from vinvl.run.machine import cores
from vinvl.run.published import published_file
from vinvl.zoo import DATA_OF_FOLDER, chosen, cost_of, files_of, made_of, what_to_get, zoo

KEPT = {".pt": 0.5}  # of the bytes of features, in float16: they are float32, and in TSV files base64 of it
KEPT_OF_TSV = 0.38
ROOM = 1.05  # for boxes and all else
ROOM_OF_CORPUS = 5  # times the corpus: tags stand beside every text, and it is indexed


@dataclass(frozen=True)
class FoundData:
    """A published data set: what can be made or is there already, and what is missing of its files.

    stores: of features that are there, or made already.
    corpus: the setting `data.corpus`, where its yaml is there.
    there: whether any of its files is.
    missing: file → what cannot be had without it.
    """

    name: str
    stores: list[StoreFile]
    corpus: Mapping[str, Any] | None
    there: bool
    missing: dict[str, str]

    @property
    def made_of(self) -> dict[str, str]:
        """Each store, and the corpus → what it is made of."""
        corpus = {self.corpus["to"]: self.corpus["from"]} if self.corpus else {}
        return {**{store.path: str(store.source) for store in self.stores}, **corpus}

    @property
    def to_make(self) -> dict[str, Path]:
        """Those of them that are not there yet."""
        return {path: Path(source) for path, source in self.made_of.items() if not Path(path).exists()}


def convert_published(folder: Path, stores: Path) -> list[Path]:
    """Makes all that the files in a published root, or in one task's folder, are there for.

    Says before what was found, what is missing with what that costs, and how much room it takes. What is there stays;
    what was killed goes on. Returns the stores, and the folder of the pre-training corpus.

    Raises:
        UserError: nothing is found, there is too little room, or files cannot be used.
    """
    root, names = chosen(folder)
    looked = [look_at(name, root, stores) for name in names]
    found = [data for data in looked if data.there]
    if not any(data.stores or data.corpus for data in found):
        raise UserError(
            f"{folder} holds no published features: give the folder that holds {', '.join(sorted(DATA_OF_FOLDER))} and "
            "image_features as downloaded, or one of these."
        )
    for data in found:
        _tell(data)
    if absent := [data.name for data in looked if not data.there]:
        say(f"nothing in {root} for {', '.join(absent)}: no such runs", error=True)
    sizes = [_bytes_of(source) for data in found for source in data.to_make.values()]
    needed, free = (
        sum(sizes) + max(sizes, default=0),
        free_room(stores),
    )  # the largest twice, while its shards are merged
    say(f"room: {needed / 1e9:,.2f} GB needed in {stores}, {free / 1e9:,.2f} GB free", error=True)
    if needed > free:
        raise UserError(
            f"{stores} has {free / 1e9:,.2f} GB free, and the stores take {needed / 1e9:,.2f} GB: pass to=FOLDER on a "
            "larger disk, or the folder of one task."
        )
    made: dict[str, Any] = {store.path: store for data in found for store in data.stores}
    for store in made.values():
        store.make()
    for one in filter(None, (data.corpus for data in found)):
        make_published_corpus(Path(one["from"]), Path(one["to"]), one["validation_share"], cores())
        made[one["to"]] = one
    say(f"{len(made)} stores are in {stores}; data=…_published reads them with published.stores={stores}")
    return [Path(path) for path in made]


def look_at(name: str, root: Path, stores: Path) -> FoundData:
    """What there is of a published data set, `name` of its configuration, below a root."""
    loaded: Any = OmegaConf.load(Path(config_directory()) / "data" / f"{name}.yaml")
    whole = OmegaConf.create({"published": {"root": str(root), "stores": str(stores)}, "data": loaded})
    del loaded.defaults
    data: Any = OmegaConf.to_container(whole.data, resolve=True)
    corpus, splits = data.get("corpus"), [split for split, files in data["splits"].items() if files is not None]
    wanted: dict[str, list[str]] = {corpus["from"]: splits} if corpus else {}  # file → the splits that it is for
    for split in splits:
        for path in files_of(data, split):
            if stores not in Path(path).parents:
                wanted.setdefault(path, []).append(split)
    missing = {path: cost_of(path, name, used, splits) for path, used in wanted.items() if not Path(path).exists()}
    for named in zoo()["more"].get(name, ()):
        path = published_file(*named.split(","), _root_=whole)
        missing |= {} if Path(path).exists() else {path: cost_of(path, name, splits, splits)}
    nodes = (data.get("regions"), *(data.get("stores") or {}).values())
    listed = {file.path: file for node in nodes if node is not None for file in _listed(node)}
    return FoundData(
        name,
        [file for file in listed.values() if all(Path(path).exists() for path in made_of(file))],
        corpus if corpus and corpus["from"] not in missing else None,
        bool(wanted.keys() - missing.keys()),
        missing,
    )


def _listed(node: Any) -> Iterator[StoreFile]:
    for one in node if isinstance(node, list) else [node]:
        with suppress(UserError):  # a pattern that stands for nothing
            yield from StoreFile.listed(one, "a store")


def _tell(data: FoundData) -> None:
    told = [f"{data.name}: {len(data.made_of)} stores, {len(data.made_of) - len(data.to_make)} of them there already"]
    told += [f"  {path} of {source}" for path, source in data.to_make.items()]
    told += [f"  missing: {what_to_get(path)}: {cost}" for path, cost in data.missing.items()]
    say(*told, error=True)


def _bytes_of(source: Path) -> int:
    """How large the store of some features will be, or the corpus of a yaml, about."""
    if source.suffix == ".yaml":
        return ROOM_OF_CORPUS * read_settings(source)[0].stat().st_size
    files = [source] if source.is_file() else [path for path in source.iterdir() if path.is_file()]
    features = [path for path in files if "predictions" not in path.name]
    return int(ROOM * sum(path.stat().st_size * KEPT.get(path.suffix, KEPT_OF_TSV) for path in features))
