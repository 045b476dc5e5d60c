"""One vocabulary of classes for several data sets: read, or merged by name with aliases; and each set's class map."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.json import Decoder

from vinvl.data.open_images import class_descriptions
from vinvl.detector.annotations import SUFFIX, open_annotations
from vinvl.regions.regions import BACKGROUND_NAMES, LONGEST_NAME, MOST_NAMES, LabelMap, first_indices, flat_map
from vinvl.run.errors import UserError
from vinvl.run.files import new_folder, read_bytes, write_text_atomically
from vinvl.run.values import check_fields, decoded, shown

STUFF = re.compile(r"(.+)-(?:other|stuff)|([^-]+)-([^-]+)", re.DOTALL)  # COCO's "wall-other", and "wall-brick"
SET_NAME = r"^[\w.-]+$"
FLAT = "class2ind.json"  # published files are NAME_class2ind.json
REPORT = "report.txt"
_ALIASES = Decoder(dict[str, str | list[str]])


def normal_form(name: str) -> str:
    """A name by which classes are compared: "Hot_air-Balloon " is "hot air balloon"."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def plain_name(name: str) -> str:
    """The name of a new class: in lower case, with spaces, without COCO's "-other" and "-stuff"."""
    plain = " ".join(name.replace("_", " ").lower().split())
    return re.sub(r"(?<=.)-(other|stuff)$", "", plain) or name


@dataclass(frozen=True)
class ClassMap:
    """What the names of classes stand for in a vocabulary; several names may have one index.

    Attributes:
        indices: name → index, from 1.
        source: the file, for messages.
    """

    indices: Mapping[str, int]
    source: str

    def find(self, name: str) -> int | None:
        """The index of a name, None if it has none.

        It is looked for as it is written; without regard to capitals, spaces, "_" and "-"; and as GRIT reads the names
        of COCO's stuff: "wall-other" and "door-stuff" as "wall" and "door", "wall-brick" as "brick wall".

        Raises UserError where names that differ in writing alone have several indices and none is written so.
        """
        if (index := self.indices.get(name, self.indices.get(name.lower()))) is not None:
            return index
        alike = self._alike.get(normal_form(name), {})
        if len(alike) > 1:
            written = " and ".join(f"{shown(one)} ({index})" for index, one in alike.items())
            raise UserError(f"{self.source} has {written}: write {shown(name)} as one of them.")
        if not alike and (parts := STUFF.fullmatch(name.lower().strip())) is not None:
            whole, last, first = parts.groups()
            return self.find(whole or f"{first} {last}")
        return next(iter(alike), None)

    @cached_property
    def _alike(self) -> dict[str, dict[int, str]]:
        forms: dict[str, dict[int, str]] = {}
        for name, index in self.indices.items():
            forms.setdefault(normal_form(name), {}).setdefault(index, name)
        return forms


def class_map_of(path: str | Path) -> ClassMap:
    """The class map in a file: flat JSON of names and indices (`*_class2ind.json`), or what `LabelMap.from_file` reads.

    Raises UserError, naming the file, if it is missing or none, or has a name with two indices.
    """
    return name_maps(path)[0]


def name_maps(path: str | Path) -> tuple[ClassMap, ClassMap]:
    """The class map in a file, as `class_map_of`, and the same of attributes, which is empty if it names none."""
    text = read_bytes(path).decode("utf-8-sig", "replace")
    indices = flat_map(text, str(path)) if text.lstrip().startswith("{") else None
    if indices is not None:
        return ClassMap({name: index for name, index in indices.items() if index > 0}, str(path)), ClassMap(
            {}, str(path)
        )
    labels = LabelMap.from_file(path)
    classes = map_of_names(labels.classes, str(path))
    for index, name in enumerate(labels.classes):
        if index > 0 and name and classes.indices[name] != index:
            raise UserError(f"{path} has {shown(name)} as {classes.indices[name]} and as {index}: give it one index.")
    return classes, map_of_names(labels.attributes, str(path))


def map_of_names(names: Sequence[str], source: str) -> ClassMap:
    """The index of each name from 1 on, the first where it comes twice; a blank is none."""
    return ClassMap({name: index for name, index in first_indices(names).items() if name and index > 0}, source)


# A vocabulary that is made.


@dataclass(frozen=True)
class VocabularySettings:
    """What a vocabulary is made of. Raises UserError for what cannot be.

    Args:
        base: the file whose classes come first, in their order.
        sets: name of a data set → the file of its classes, or several.
        aliases: files of names that mean the same, see `read_aliases`; those of later files come first.
        new: what becomes of a class that the vocabulary does not have: "add" it at the end, "drop" it, or "refuse".
    """

    base: str
    sets: dict[Annotated[str, Meta(pattern=SET_NAME)], str | list[str]]
    aliases: str | list[str] | None = None
    new: Literal["add", "drop", "refuse"] = "add"

    def __post_init__(self) -> None:
        if not self.base or not self.sets:
            raise UserError("Give both vocabulary.base=FILE and 'vocabulary.sets={NAME: FILE, …}'.")
        check_fields(self, "vocabulary.")


@dataclass
class MappedNames:
    """What became of the names of one set; each is in one of the four."""

    same: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)  # to the name that the vocabulary has
    new: dict[str, str] = field(default_factory=dict)  # to the name that it has been given
    dropped: list[str] = field(default_factory=list)
    indices: dict[str, int] = field(default_factory=dict)  # of all but those dropped

    def class_map(self) -> dict[str, int]:
        """The class of each name, in lower case."""
        return {name.lower(): index for name, index in self.indices.items()}

    def lines(self, name: str) -> list[str]:
        """For the report."""
        mapped, total = len(self.same) + len(self.renamed), len(self.indices) + len(self.dropped)
        counts = f"{mapped:,} mapped, {len(self.renamed):,} of them to another name; {len(self.new):,} new"
        classes = f"{len(set(self.indices.values())):,} classes of the vocabulary"
        told = [f"{name}: {total:,} names: {counts}; {len(self.dropped):,} dropped. It has {classes}."]
        for what, names in (
            ("to another name", _pairs(self.renamed)),
            ("new", _pairs(self.new)),
            ("dropped", self.dropped),
            ("to the same name", self.same),
        ):
            told += [f"  {what}: {', '.join(names)}"] if names else []
        return told


def _pairs(names: Mapping[str, str]) -> list[str]:
    return [one if one == other else f"{one} → {other}" for one, other in names.items()]


def make_vocabulary(settings: VocabularySettings, folder: Path) -> list[str]:
    """Writes the vocabulary, the class map of each set and a report into a new folder; the lines of the report.

    `class2ind.json` is a flat map of all names to 1, 2, 3 …, those of the base first, then what the sets add, in their
    order; `SET_class2ind.json` are the classes of a set's names, in lower case.

    Raises:
        UserError: a file cannot be used, or a class is not in the vocabulary where that is refused.
    """
    vocabulary = read_base(settings.base)
    base_size, aliases = len(vocabulary), read_aliases(_files(settings.aliases))
    found = {}
    for name, files in settings.sets.items():
        names = list(dict.fromkeys(one for file in _files(files) for one in class_names(file)))
        found[name] = map_names(names, vocabulary, aliases, settings.base, add=settings.new == "add")
        vocabulary |= {one: found[name].indices[given] for given, one in found[name].new.items()}
    missing = {name: one.dropped for name, one in found.items() if one.dropped}
    if settings.new == "refuse" and missing:
        told = "; ".join(f"{name}: {', '.join(map(shown, names))}" for name, names in missing.items())
        raise UserError(
            f"{settings.base} has no class for names of the sets ({told}): say in vocabulary.aliases=FILE.json which "
            "they are, or pass vocabulary.new=drop or vocabulary.new=add."
        )
    report = [f"{len(vocabulary):,} classes, the first {base_size:,} of {settings.base}"]
    report += [line for name, one in found.items() for line in one.lines(name)]
    with new_folder(folder) as made:
        maps = {FLAT: vocabulary} | {f"{name}_{FLAT}": one.class_map() for name, one in found.items()}
        for file, indices in maps.items():
            write_text_atomically(made / file, json.dumps(indices, ensure_ascii=False, indent=0) + "\n")
        write_text_atomically(made / REPORT, "\n".join(report) + "\n")
    return [*report, f"They are in {folder}"]


def map_names(
    names: Iterable[str], vocabulary: Mapping[str, int], aliases: Mapping[str, Sequence[str]], source: str, *, add: bool
) -> MappedNames:
    """What the names of one set are in a vocabulary: as `ClassMap.find` has it, then by aliases.

    With `add` all others become new classes behind it: two of one set remain two, unless they are written alike.

    Raises UserError as `ClassMap.find` does; `source` names the vocabulary.
    """
    found, known, by_index = (
        MappedNames(),
        ClassMap(vocabulary, source),
        {index: one for one, index in vocabulary.items()},
    )
    added: dict[str, int] = {}
    for name in names:
        forms = dict.fromkeys(map(normal_form, (name, plain_name(name))))
        candidates = [name, *chain.from_iterable(aliases.get(form, ()) for form in forms)]
        index = next((one for one in map(known.find, candidates) if one is not None), None)
        if index is not None:
            found.indices[name] = index
            if by_index[index] == name.lower():
                found.same.append(name)
            else:
                found.renamed[name] = by_index[index]
        elif add:
            index = added.setdefault(normal_form(plain_name(name)), len(vocabulary) + len(added) + 1)
            found.new[name] = by_index.setdefault(index, plain_name(name))
            found.indices[name] = index
        else:
            found.dropped.append(name)
    return found


# The files that it is made of.


def read_base(path: str) -> dict[str, int]:
    """Names in lower case → 1, 2, 3 …, of a file as `class_names` reads it.

    Raises UserError, naming file and entry, also for a name in capitals in a flat map, or two that differ in these.
    """
    indices: dict[str, int] = {}
    is_flat = Path(path).suffix == ".json" and flat_map(_text_of(path), path) is not None
    for number, name in enumerate(class_names(path), start=1):
        is_background = name.startswith("_") and name.strip("_").lower() in BACKGROUND_NAMES
        if is_background or (is_flat and name != name.lower()):
            raise UserError(
                f"{path}: class {number} is {shown(name)}: a vocabulary has names in lower case, and no background."
            )
        if indices.setdefault(name.lower(), number) != number:
            raise UserError(
                f"{path}: class {number}, {shown(name)}, is class {indices[name.lower()]} too: leave one out."
            )
    return indices


def class_names(path: str) -> list[str]:
    """The names of the classes in a file, in order, without the background.

    A label map (VinVL's dicts, flat JSON, `labelmap.tsv`, a name a line), COCO's JSON with `categories`, Open Images'
    class descriptions, a CSV of id and name, or annotations in our form. Raises UserError, naming file and entry.
    """
    suffix = Path(path).suffix
    if suffix == ".csv":
        return list(class_descriptions(Path(path)).values())
    labels = open_annotations(Path(path))[1] if suffix == SUFFIX else LabelMap.from_file(path)
    names = [name for name in labels.classes[1:] if name]
    if not names:
        raise UserError(f"{path} names no classes: give a label map, or a list of a name a line.")
    return names


def read_aliases(paths: Sequence[str]) -> dict[str, list[str]]:
    """Name, in `normal_form` → names that mean the same, in the order in which they are to be looked for.

    A file is Visual Genome's `object_alias.txt`, names separated by commas in a line, the first being the usual one; or
    a JSON object of a name and those that mean the same, a text or a list. Of what stands in several places the last
    comes first.

    Raises UserError, naming file and entry.
    """
    aliases: dict[str, list[str]] = {}
    for path in paths:
        for group in alias_groups(path):
            for name in dict.fromkeys(map(normal_form, group)):
                aliases[name] = [*group, *aliases.get(name, ())]
    return aliases


def alias_groups(path: str) -> Iterator[list[str]]:
    """Names that mean the same, of a file as `read_aliases` has it, one space between words; some are of no name."""
    text = _text_of(path)
    if text.lstrip().startswith("{"):
        content = decoded(text.encode(), _ALIASES, path, remedy="give names with those that mean the same")
        given = [[name, *([others] if isinstance(others, str) else others)] for name, others in content.items()]
    else:
        given = [line.split(",") for line in text.splitlines()]
    for number, group in enumerate(given, start=1):
        names = [name for one in group if (name := " ".join(one.split()))]
        if any(len(name) > LONGEST_NAME for name in names) or len(given) > MOST_NAMES:
            raise UserError(f"{path} is no file of aliases (line {number}): give names, separated by commas, a line.")
        yield names


def _text_of(path: str) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give a file of names.") from None


def _files(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
