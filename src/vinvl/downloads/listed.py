"""What is where: the files of conf/download, or of a list of one's own, as parts of data sets and their files."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec
import yaml
from msgspec import Struct

from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.folders import config_directory

ALL = "all"  # NAME/all: every part


class ListedFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file to download.

    url: where it is; of several the first is tried first. None where a person must fetch it: `by_hand` says how.
    named: its name; None: the last part of the first URL.
    to: its folder below the data folder; None: that of its part.
    makes: files and folders of the archive that it is, which are unpacked to the same places in `to`; none: it stays as
        it is.
    bytes: its size, and `hash` ("sha256:…", "md5:…"), where somebody has published them.
    about_gb: a rough size, for the plan alone.
    folder: the URL is a folder of Azure's storage, `https://ACCOUNT/CONTAINER/FOLDER`, whose files its server lists.
    numbers: first and last of such files, whose number is {n} in url and makes.
    pictures_of: a JSON file of `to` with COCO's `images`, whose `coco_url` are the files; `named` is their folder.
    """

    url: str | list[str] = []
    named: str | None = None
    to: str | None = None
    makes: list[str] = []
    bytes: int | None = None
    hash: str | None = None
    about_gb: float | None = None
    by_hand: str | None = None
    folder: bool = False
    numbers: tuple[int, int] | None = None
    pictures_of: str | None = None

    @property
    def urls(self) -> list[str]:
        """The places to try, in order."""
        return [self.url] if isinstance(self.url, str) else self.url

    @property
    def name(self) -> str:
        """What it is called."""
        return self.named or unquote(PurePosixPath(urlsplit(self.urls[0]).path).name)

    def targets(self, folder: Path) -> list[Path]:
        """What is there when it has been downloaded."""
        return [folder] if self.folder else [folder / name for name in self.makes or [self.name]]

    def each(self) -> list["ListedFile"]:
        """The files that it stands for."""
        if self.numbers is None:
            return [self]
        first, last = self.numbers
        numbered = [
            ([url.replace("{n}", str(n)) for url in self.urls], [name.replace("{n}", str(n)) for name in self.makes])
            for n in range(first, last + 1)
        ]
        return [msgspec.structs.replace(self, url=urls, makes=makes, numbers=None) for urls, makes in numbered]


class ListedPart(Struct, frozen=True, forbid_unknown_fields=True):
    """Files that are downloaded together, to a folder below the data folder unless they name another."""

    what: str
    to: str
    files: list[ListedFile]
    known: str = ""


class ListedData(Struct, frozen=True, forbid_unknown_fields=True):
    """A data set.

    page: where people read about it.
    known: what is known of its links, and of its licence where one must agree to it.
    usual: the parts that its name alone stands for.
    read_by: choices of configuration that read it where it is put.
    then: place below the data folder → what makes it, of all that these read and no part holds.
    """

    what: str
    page: str
    known: str
    parts: dict[str, ListedPart]
    usual: list[str] = []
    read_by: list[str] = []
    then: dict[str, str] = {}


def listed_names() -> list[str]:
    """The data sets of conf/download."""
    return sorted(path.stem for path in (Path(config_directory()) / "download").glob("*.yaml"))


def read_list(name: str) -> ListedData:
    """A data set of conf/download, or that of a file NAME.yaml. Raises UserError."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    else:
        if name not in (known := listed_names()):
            near = get_close_matches(name, known, n=1)
            meant = f": did you mean {near[0]}?" if near else f": there are {', '.join(known)}, or a list FILE.yaml."
            raise UserError(f"There is no data set '{name}' to download{meant}")
        path = Path(config_directory()) / "download" / f"{name}.yaml"
    try:
        data = msgspec.convert(yaml.safe_load(read_bytes(path)), ListedData)
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no list of downloads ({reason}): see conf/download/vqa2.yaml for its form."
        ) from error
    parts = {
        name: msgspec.structs.replace(part, files=[one for file in part.files for one in file.each()])
        for name, part in data.parts.items()
    }
    for part in parts.values():
        for file in part.files:
            _check(file, part, path)
    return msgspec.structs.replace(data, parts=parts)


def chosen_parts(words: list[str]) -> Iterator[tuple[str, ListedData, dict[str, ListedPart]]]:
    """Name, data set and chosen parts of each NAME, NAME/PART or NAME/all. Raises UserError."""
    for word in words:
        is_file = word.endswith((".yaml", ".yml"))
        name, _, part = (word, "", "") if is_file else word.partition("/")
        data = read_list(name)
        if part and part != ALL and part not in data.parts:
            raise UserError(f"{name} has no part '{part}': give one of {', '.join(data.parts)}, or {name}/{ALL}.")
        if not part and not (data.usual or is_file):
            parts = ", ".join(f"{name}/{one}" for one in data.parts)
            raise UserError(f"Say which part of {name}: {parts}, or {name}/{ALL}.")
        wanted = [part] if part and part != ALL else data.usual if not part and data.usual else list(data.parts)
        yield Path(name).stem if is_file else name, data, {one: data.parts[one] for one in wanted}


def is_inside(place: str) -> bool:
    """Whether a path stays below the folder that it is relative to."""
    parts = PurePosixPath(place).parts
    return bool(parts) and not place.startswith(("/", "~")) and ".." not in parts and not {"\\", "\0"} & set(place)


def _check(file: ListedFile, part: ListedPart, path: Path) -> None:
    """What a list of one's own may have wrong, and a place outside of the data folder."""
    if not file.urls and not (file.named and (file.by_hand or file.pictures_of)):
        raise UserError(f"{path}: a file without url needs named and by_hand, a sentence that says how it is had.")
    for url in file.urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise UserError(f"{path}: {url} is no http or https address.")
    for place in (file.to or part.to, file.name, file.pictures_of or file.name, *file.makes):
        if not is_inside(place):
            raise UserError(f"{path}: {place!r} is no place below the data folder.")
    if "/" in file.name:
        raise UserError(f"{path}: {file.name!r} is no name of a file; its folder is said with to.")
