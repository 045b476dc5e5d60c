"""Released folders that are not as they should be: one sentence with file and row, and nothing left of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from tests import golden
from tests.door_in_process import composed, refused_in_process
from vinvl.published import convert_published
from vinvl.run.folders import register_resolvers

REPLICA = golden.FOLDER / "published/replica"
VQA = "vqa/train2014_qla_mrcnn.json"
TASKS = {"vqa2": "vqa", "coco_retrieval": "retrieval", "coco_captions": "captioning"}


def given(root: Path, name: str) -> list[str]:
    return [
        f"task={TASKS.get(name, name)}", f"data={name}_published", f"published.root={root}",
        f"published.stores={root / 'stores'}",
        f"data.tokenizer={REPLICA / 'vocabulary'}", "data.num_workers=0",
    ]  # fmt: skip


def coco(root: Path) -> Path:
    (folder,) = (root / "image_features").glob("coco_*")
    return folder / "model_0060000"


def changed(path: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Changes JSON in a file of the root."""

    def rewrite(root: Path) -> None:
        file = coco(root) / path if "/" not in path else root / path
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return rewrite


def without_q(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [records[0], {name: value for name, value in records[1].items() if name != "q"}, *records[2:]]


def swapped(rows: dict[str, int]) -> dict[str, int]:
    (one, first), (other, second), *more = rows.items()
    return {one: second, other: first, **dict(more)}


def another_key(root: Path) -> None:
    path = root / "coco_ir/minival_captions.pt"
    torch.save({**torch.load(path, weights_only=True), 424242: ["a dog"] * 5}, path)


def shifted(root: Path) -> None:
    path = coco(root) / "features.lineidx"
    first, *more = path.read_text().split()
    path.write_text("\n".join([first, *(str(int(one) + 1) for one in more)]) + "\n")


def another_answer(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [records[0], {**records[1], "an": [4000]}, *records[2:]]


@pytest.mark.parametrize(
    ("name", "folders", "damage", "words"),
    [
        ("vqa2", "vqa", changed(VQA, without_q), ["qla_mrcnn.json: ", "`q` at $[1]"]),
        ("nlvr2", "nlvr2", changed("nlvr2/nlvr2_train.json", without_q), ["nlvr2_train.json: ", "field `q` at $[1]"]),
        ("vqa2", "vqa", changed(VQA, another_answer), ["record 2 has the answer number 4000"]),
        ("coco_retrieval", "coco_ir", changed("imageid2idx.json", swapped), ["imageid2idx.json sends image", "row"]),
        ("coco_retrieval", "coco_ir", shifted, ["features.lineidx sends line 2 of", "the index is of another file"]),
        ("coco_retrieval", "coco_ir", another_key, ["has no image 424242 (asked for by", "minival_captions.pt image"]),
    ],
)  # fmt: skip
def test_what_does_not_belong_together(
    tmp_path: Path, name: str, folders: str, damage: Callable[[Path], object], words: list[str]
) -> None:
    root = tmp_path / "root"
    for folder in [folders, *(["image_features"] if folders == "coco_ir" else [])]:
        shutil.copytree(REPLICA / folder, root / folder)
    damage(root)
    told = refused_in_process("train", tmp_path, tmp_path / "run", *given(root, name))
    assert all(word in told for word in words), told
    assert not [path for path in root.rglob("*") if ".partial" in path.name]


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("vqa2", "nlvr2", ["vqa", "does not exist"]),
        ("gqa", "vqa", ["gqa", "does not exist"]),
        ("nlvr2", "GQA", ["nlvr2", "does not exist"]),
        ("coco_retrieval", "nocaps", ["train_captions.pt", "does not exist"]),
        ("coco_captions", "nocaps", ["coco_caption", "does not exist"]),
    ],
)
def test_a_folder_of_another_task(tmp_path: Path, name: str, other: str, words: list[str]) -> None:
    told = refused_in_process("train", tmp_path, tmp_path / "run", *given(REPLICA / other, name))
    assert all(word in told for word in words), told


def test_indices_are_not_needed(tmp_path: Path) -> None:
    register_resolvers()
    shutil.copytree(REPLICA / "coco_caption", tmp_path / "coco_caption", ignore=shutil.ignore_patterns("*.lineidx"))
    assert len(convert_published(tmp_path, tmp_path / "stores")) == 3


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            lambda lines: lines[::-1],
            r"another order than split 'train': .*train\.label\.tsv line 2 .* features of row 2",
        ),
        (
            lambda lines: [*lines, "777" + lines[0][lines[0].index("\t") :]],
            r"1 images without a record .* row 4, '777'",
        ),
    ],
)
def test_rows_that_are_not_those_of_the_labels_are_told(
    tmp_path: Path, lines: Callable[[list[str]], list[str]], words: str
) -> None:
    root = tmp_path / "root"
    shutil.copytree(
        REPLICA / "coco_caption", root / "coco_caption", ignore=shutil.ignore_patterns("*.lineidx", "*.hw.*")
    )
    path = root / "coco_caption/train.feature.tsv"
    path.write_text("".join(lines(path.read_text().splitlines(keepends=True))))
    with composed("train", tmp_path, tmp_path / "run", *given(root, "coco_captions")) as config:
        module = instantiate(config.data)
    with pytest.warns(UserWarning, match=words):
        module.setup("fit")
