"""Statements of the demo world as the records of NLVR2."""

from __future__ import annotations

from collections.abc import Sequence

from vinvl.data.demo.generate import image_file_name
from vinvl.data.demo.scene import Scene
from vinvl.data.demo.statements import Statement

NUM_DIRECTORIES = 100  # NLVR2 deals its training pairs out to this many


def nlvr2_records(split: str, scenes: Sequence[Scene], statements: Sequence[Statement]) -> list[dict[str, object]]:
    """One record per pair, with NLVR2's keys and the pictures' own ids beside them.

    NLVR2 derives image names from the identifier `split-set-pair-sentence`. Here a picture serves in many pairs, so
    `left_image_id` and `right_image_id` name the two; `synset` and `query` hold subject and family of the statement.

    Args:
        split: train | dev | test1, the first field of the identifier.
        scenes: the pictures that the pairs of `statements` mean by their position.
        statements: one set each, always with sentence number 0.
    """
    records: list[dict[str, object]] = []
    for set_number, statement in enumerate(statements):
        for pair_number, (left, right, truth) in enumerate(statement.pairs):
            ids = [scenes[position].image_id for position in (left, right)]
            record: dict[str, object] = {
                "validation": {},
                "sentence": statement.sentence,
                "left_url": image_file_name(ids[0]),
                "writer": "demo",
                "label": str(truth),
                "right_url": image_file_name(ids[1]),
                "synset": statement.subject,
                "query": statement.family,
                "identifier": f"{split}-{set_number}-{pair_number}-0",
                "left_image_id": str(ids[0]),
                "right_image_id": str(ids[1]),
            }
            # As in NLVR2: only train has directories, only the other splits were validated by more people.
            if split == "train":
                record["directory"] = set_number % NUM_DIRECTORIES
            else:
                record["extra_validations"] = {}
            records.append(record)
    return records
