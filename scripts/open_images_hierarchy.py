"""The class hierarchy of Open Images as `decoding.constraints.hierarchy` takes it: JSON of {class: parent class}.

    python scripts/open_images_hierarchy.py bbox_labels_600_hierarchy.json class-descriptions-boxable.csv hierarchy.json

Both inputs are downloads of the Open Images site; the top of the hierarchy, "Entity", is no class and is left out.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vinvl.run.files import read_json, write_json


def parents(node: dict[str, Any], names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(class, parent class) of all kinds of things below a node; its parts, as wheels of a car, are no kinds of it."""
    for child in node.get("Subcategory", []):
        if node["LabelName"] in names and child["LabelName"] in names:
            yield names[child["LabelName"]], names[node["LabelName"]]
        yield from parents(child, names)
    for part in node.get("Part", []):
        yield from parents(part, names)


def main(arguments: list[str]) -> None:
    if len(arguments) != 3:
        sys.exit(__doc__)
    hierarchy, descriptions, output = map(Path, arguments)
    with descriptions.open(encoding="utf-8", newline="") as file:
        names = {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2}
    found = dict(parents(read_json(hierarchy), names))
    write_json(output, found)
    print(f"{len(found)} classes with a parent: {output}")


if __name__ == "__main__":
    main(sys.argv[1:])
