"""What is made of the released folders where some of their files are not there, and what that costs."""

import shutil
from pathlib import Path

import pytest

from tests import golden
from vinvl.published import convert_published
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.folders import register_resolvers

REPLICA = golden.FOLDER / "published" / "replica"


def test_what_is_missing_is_said_and_the_rest_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_resolvers()
    folder = tmp_path / "datasets" / "coco_caption"
    shutil.copytree(REPLICA / "coco_caption", folder)
    (folder / "val.feature.tsv").unlink()
    (folder / "test.hw.tsv").unlink()  # Oscar never opens it: boxes are in thousandths then
    made = convert_published(folder, tmp_path / "stores")
    told = capsys.readouterr().err
    assert f"missing: {folder / 'val.feature.tsv'}: features of a split of COCO (datasets/coco_caption): no va" in told
    assert ": no validation\n" in told and "hw.tsv" not in told
    assert [path.name for path in made] == ["coco_caption_train.h5", "coco_caption_test.h5"]
    assert set(tmp_path.rglob("*.h5")) == set(made)
    sizes = [{(one.width, one.height) for one in map(store.at, range(len(store)))} for store in map(RegionStore, made)]
    assert sizes[1] == {(1000, 1000)} and sizes[0].isdisjoint(sizes[1])


@pytest.mark.parametrize("place", ["GQA", "GQA/0.4", "datasets/gqa"])
def test_one_task_becomes_its_stores_alone(tmp_path: Path, place: str) -> None:
    register_resolvers()
    shutil.copytree(REPLICA / "GQA" / "0.4", tmp_path / place)
    shutil.copytree(REPLICA / "nlvr2", tmp_path / "nlvr2")
    made = convert_published(tmp_path / place, tmp_path / "stores")
    assert made == [tmp_path / "stores" / "gqa" / "regions.h5"] == list(tmp_path.rglob("*.h5"))


def test_what_each_missing_file_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_resolvers()
    for name in ("vqa", "coco_ir", "nocaps", "image_features"):
        shutil.copytree(REPLICA / name, tmp_path / name)
    (coco,) = (tmp_path / "image_features").glob("coco_*")
    removed = {
        tmp_path / "vqa/test2015_qla_mrcnn.json": "no predictions for the server, whose test-dev and test-std are the "
        "paper's figures; no split test_all",
        tmp_path / "vqa/cache/trainval_ans2label.pkl": "no run: questions name their answers by number",
        coco / "model_0060000/predictions.tsv": "no store of these features, whose tags and pictures' sizes it tells",
        tmp_path / "coco_ir/minival_caption_indexs_top20.pt": "no validation as published, data.val_hard_captions=FILE",
        tmp_path / "nocaps/val.cbsbox.tsv": "no constrained decoding",
        tmp_path / "nocaps/val.label.tsv": "no captions of NoCaps",
    }
    for path in removed:
        path.unlink()
    made = convert_published(tmp_path, tmp_path / "stores")
    told = capsys.readouterr().err.splitlines()
    for path, cost in removed.items():
        name = tmp_path / "vqa" / path.name if path.suffix == ".pkl" else path
        assert any(one.startswith(f"  missing: {name}: ") and one.endswith(f": {cost}") for one in told)
    (corpus,) = (one for one in told if "_gqa_sbu_oi_*.yaml" in one)
    assert corpus.endswith(": no pre-training")
    absent = "gqa_published, nlvr2_published, coco_captions_published"
    assert f"nothing in {tmp_path} for {absent}: no such runs" in told
    stores = tmp_path / "stores"
    assert stores / "coco.h5" not in made and {stores / "flickr30k.h5", stores / "oscarplus_gqa.h5"} < set(made)


def test_texts_without_features_make_nothing(tmp_path: Path) -> None:
    register_resolvers()
    shutil.copytree(REPLICA / "coco_ir", tmp_path / "coco_ir")
    with pytest.raises(UserError, match="holds no published features"):
        convert_published(tmp_path / "coco_ir", tmp_path / "stores")
    assert not (tmp_path / "stores").exists()
