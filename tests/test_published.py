"""The stores of one task's released folder, where some of its files are not there."""

import shutil
from pathlib import Path

import pytest

from tests import golden
from vinvl.published import convert_published
from vinvl.run.folders import register_resolvers

REPLICA = golden.FOLDER / "published" / "replica"


def test_what_is_missing_is_said_and_the_rest_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_resolvers()
    folder = tmp_path / "datasets" / "coco_caption"
    shutil.copytree(REPLICA / "coco_caption", folder)
    (folder / "val.feature.tsv").unlink()
    (folder / "test.hw.tsv").unlink()
    made = convert_published(folder, tmp_path / "stores")
    told = capsys.readouterr().err
    assert f"missing: {folder / 'val.feature.tsv'}" in told and f"missing: {folder / 'test.hw.tsv'}" in told
    assert [path.name for path in made] == ["coco_caption_train.h5"]
    assert list(tmp_path.rglob("*.h5")) == made


@pytest.mark.parametrize("place", ["GQA", "GQA/0.4", "datasets/gqa"])
def test_one_task_becomes_its_stores_alone(tmp_path: Path, place: str) -> None:
    register_resolvers()
    shutil.copytree(REPLICA / "GQA" / "0.4", tmp_path / place)
    shutil.copytree(REPLICA / "nlvr2", tmp_path / "nlvr2")
    made = convert_published(tmp_path / place, tmp_path / "stores")
    assert made == [tmp_path / "stores" / "gqa" / "regions.h5"] == list(tmp_path.rglob("*.h5"))
