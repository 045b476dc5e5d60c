"""The table of what was released and reported, and our figures beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from tests.conftest import refusal
from tests.door_runs import call_door, succeed
from tests.test_conf import composed
from vinvl.run.errors import UserError
from vinvl.zoo import DATA_OF_FOLDER, Compared, comparing, files_of, recipe_of, scorable_splits, what_to_get, zoo

REPLICA = golden.FOLDER / "published/replica"
TASKS = ("vqa", "gqa", "nlvr2", "coco_ir", "flickr30k_ir")
RECORDED = {task: golden.facts(f"published/expected/{task}") for task in TASKS}
CAPTIONING = "image_captioning/coco_captioning_base_xe/checkpoint-59-66360"
ON_CPU = ["trainer=cpu", "data.num_workers=0"]


@pytest.mark.parametrize("name", sorted(set(DATA_OF_FOLDER.values())))
def test_it_is_known_where_the_release_had_every_file(name: str) -> None:
    data = composed("evaluate", f"data={name}")["data"]
    listed = [path for split in data["splits"] if data["splits"][split] for path in files_of(data, split)]
    assert listed and all(path.startswith("/published/") or "oscarplus" in path for path in listed)
    for path in listed:
        assert what_to_get(path).startswith(f"{path}: ")


def test_every_scored_split_is_one_of_its_data() -> None:
    for name, scored in zoo()["scored"].items():
        data = composed("evaluate", f"data={name}")["data"]
        assert set(scored["splits"]) <= set(data["splits"])
        assert {key for one in scored["splits"].values() for key in one.get("set", {})} <= set(data)


def test_figures_are_of_known_splits_and_metrics() -> None:
    for name, recipe in zoo()["recipes"].items():
        for split, figures in recipe.get("figures", {}).items():
            scored = zoo()["scored"][recipe["data"]]
            assert split in {*scored["splits"], *scored.get("server", ())} or recipe["note"], name
            assert set(figures) <= {"accuracy", *scored["metrics"].values()}
            assert all(0 < float(figure.rstrip("†")) < 200 for figure in figures.values())


def recalls(task: str, setting: str) -> dict[str, float]:
    found = RECORDED[task]["datasets"][setting]["evaluation"]
    ways = {"text": found["i2t_retrieval"], "image": found["t2i_retrieval"]}
    return {f"{way} {k}": 100 * share for way, shares in ways.items() for k, share in shares.items()}


def accuracy(task: str, key: str) -> dict[str, float]:
    found = RECORDED[task][key]
    return {"accuracy": 100 * (found[1] if isinstance(found, list) else found)}


VQA_VAL = {"in-training score": 100 * RECORDED["vqa"]["evaluate_val_score"]}
GQA_VAL, GQA_TESTDEV = (accuracy("gqa", f"evaluate_{split}_accuracy") for split in ("val", "test-dev"))
NLVR2_DEV, NLVR2_TEST = (accuracy("nlvr2", f"evaluate_{split}") for split in ("val", "test1"))
COCO = {"test": recalls("coco_ir", "test_5k"), "test_1k": recalls("coco_ir", "test_1k")}
SCORED: Any = [  # folder, checkpoint, what else is said, split → our recorded figures, published ones of other splits
    ("vqa", "vqa/base/best", [], {"val": VQA_VAL}, 2),
    ("GQA/0.4", "gqa/base/best", ["data.eval_batch_size=2"], {"val": GQA_VAL, "testdev": {}}, 1),
    ("GQA", "gqa/base/best", ["data.test_split=testdev_all"], {"testdev_all": GQA_TESTDEV}, 0),
    ("nlvr2", "nlvr2/base/best", [], {"test1": NLVR2_TEST, "dev": NLVR2_DEV}, 0),
    ("coco_ir", "coco_ir/base/checkpoint-0132780", [], COCO, 0),
    ("flickr30k_ir", "flickr30k_ir/base/checkpoint-0132780", [], {"test": recalls("flickr30k_ir", "test_1k")}, 0),
    ("coco_caption", CAPTIONING, ["decoding.num_beams=2"], {"test": {}}, 0),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stores are made, each once."""
    return tmp_path_factory.mktemp("data")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The table in the results.json of the only run."""
    (path,) = folder.glob("runs/evaluate/*/results.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["published"]["rows"]
    return rows


@pytest.mark.parametrize(("place", "checkpoint", "given", "recorded", "elsewhere"), SCORED)
def test_our_figures_beside_the_published(
    place: str, checkpoint: str, given: list[str], recorded: Any, elsewhere: int, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "")  # no Java, which takes long
    words = [f"published={REPLICA / place}", f"ckpt_path=model_ckpts/{checkpoint}", *ON_CPU, *given]
    printed, rows = succeed(tmp_path, data, "evaluate", *words), rows_of(tmp_path)
    for split, figures in recorded.items():
        ours = {one["metric"]: one["ours"] for one in rows if one["split"] == split}
        assert ours and {metric: ours[metric] for metric in figures} == pytest.approx(figures)
    (folder,) = tmp_path.glob("runs/evaluate/*")
    names = {f"examples_{split}.parquet" for split in recorded} if len(recorded) > 1 else {"examples.parquet"}
    assert {path.name for path in folder.glob("*.parquet")} == names
    others = [one for one in rows if one["split"] not in recorded]
    assert list(dict.fromkeys(one["split"] for one in rows[: len(rows) - len(others)])) == list(recorded)
    assert len(others) == elsewhere and all(one["published"] and one["ours"] is None for one in others)
    assert ("needs the server, for which there is python -m vinvl.predict data=" in printed) == (elsewhere > 0)
    known = [one for one in zoo()["recipes"].values() if checkpoint.startswith(one.get("checkpoint", "none"))]
    figures = known[0]["figures"] if known else {}
    for one in rows:
        figure = figures.get(one["split"], {}).get(one["metric"])
        assert one["published"] == (None if figure is None else float(figure.rstrip("†")))
        if one["published"] is None or one["ours"] is None:
            assert one["difference"] is None and one["within"] is None
        else:
            assert one["difference"] == one["ours"] - one["published"]
            assert one["within"] == (abs(one["difference"]) <= one["tolerance"])
        assert (figure or "–") in printed and (one["ours"] is None or f"{one['ours']:.2f}" in printed)


def test_nocaps_is_scored_with_its_official_captions_and_constraints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no Java, which takes long
    root = tmp_path / "it's a=root"
    for folder in ("nocaps", "coco_caption", "model_ckpts/image_captioning"):
        shutil.copytree(REPLICA / folder, root / "datasets" / folder if "/" not in folder else root / folder)
    words = [f"published={root}/datasets/nocaps", f"ckpt_path=model_ckpts/{CAPTIONING}", *ON_CPU]
    told = call_door(tmp_path, data, "evaluate", *words)
    assert "1 files or folders are missing" in refusal(told) and not list(tmp_path.glob("runs/evaluate/*"))
    assert f"missing: {root}/datasets/nocaps/nocaps_val_4500_captions.json: NoCaps' validation captions" in told.stderr
    listed = json.loads((root / "datasets/nocaps/nocaps_val_image_info.json").read_text())
    listed["annotations"] = [{"image_id": one["id"], "id": one["id"], "caption": "a dog"} for one in listed["images"]]
    (root / "datasets/nocaps/nocaps_val_4500_captions.json").write_text(json.dumps(listed))
    printed = succeed(tmp_path, data, "evaluate", *words, f"published.stores={tmp_path / 'stores'}")
    rows = rows_of(tmp_path)
    assert [one["metric"] for one in rows] == ["BLEU-4", "METEOR", "CIDEr", "SPICE"]
    assert all(one["published"] is None and one["split"] == "nocaps_val" for one in rows)
    assert "nothing published to compare" in printed


def test_what_is_missing_is_listed_with_what_it_is(data: Path, tmp_path: Path) -> None:
    shutil.copytree(REPLICA / "nlvr2", tmp_path / "nlvr2")
    for name in ("nlvr2_dev.json", "nlvr2_img_frcnn_feats.pt"):
        (tmp_path / "nlvr2" / name).unlink()
    words = [
        f"published={tmp_path}/nlvr2",
        "ckpt_path=model_ckpts/nlvr2/base/best",
        f"published.stores={tmp_path}/none",
    ]
    told = call_door(tmp_path, data, "evaluate", *words, *ON_CPU)
    assert "nlvr2_published cannot be scored: 3 files or folders are missing" in refusal(told)
    lines = [line.removeprefix(f"missing: {tmp_path}/") for line in told.stderr.splitlines() if "missing: " in line]
    assert lines == [
        f"model_ckpts/nlvr2/base/best: {zoo()['files'][-1]['what']} (model_ckpts/TASK, 0.4 GB base)",
        "nlvr2/nlvr2_img_frcnn_feats.pt: features of all of NLVR2's pictures (datasets/nlvr2, 28 GB)",
        "nlvr2/nlvr2_dev.json: NLVR2's statements (datasets/nlvr2)",
    ]
    assert not list(tmp_path.rglob("*.h5")) and not list(tmp_path.glob("runs/evaluate/*"))
    shutil.copytree(REPLICA / "model_ckpts/nlvr2", tmp_path / "model_ckpts/nlvr2")
    shutil.copy(REPLICA / "nlvr2/nlvr2_img_frcnn_feats.pt", tmp_path / "nlvr2")
    told = call_door(tmp_path, data, "evaluate", words[0], words[1].removesuffix("/best"), *ON_CPU)
    assert refusal(told).endswith("with data.test_split=test1 what is there is scored.")
    words[1] = words[1].removesuffix("/best")
    told = call_door(tmp_path, data, "evaluate", *words[:2], "data.test_split=test1", *ON_CPU)
    assert refusal(told).endswith(
        "base holds no weights; it needs a file model.safetensors or pytorch_model.bin, and it holds best."
    )


def test_a_split_that_the_release_may_lack_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    testdev = tmp_path / "gqa_bal_qla_testdev.json"
    for name in ("val.json", "features.pt"):
        (tmp_path / name).touch()
    store = {"from": f"{tmp_path}/features.pt", "to": f"{tmp_path}/store.h5"}
    data = {"splits": {"val": f"{tmp_path}/val.json", "testdev": str(testdev)}, "regions": store}
    assert scorable_splits("gqa_published", data, None, []) == ["val"]
    assert f"testdev is not scored without {testdev}: GQA's test-dev questions" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 files or folders are missing"):
        scorable_splits("gqa_published", data, "testdev", [])
    with pytest.raises(UserError, match="test_split=test is no split of gqa_published: choose one of val, testdev"):
        scorable_splits("gqa_published", data, "test", [])


ROOT = f"published.root='{REPLICA}'"


@pytest.mark.parametrize("value", ["{0}/vqa", "'{0}/vqa'", '"{0}/vqa/"', "{0}/nlvr2/../vqa", "{0}/vqa/cache"])
def test_how_a_folder_may_be_given(value: str) -> None:
    words = comparing(["trainer=cpu", f"published={value.format(REPLICA)}"])
    assert words == ["trainer=cpu", "data=vqa2_published", ROOT, "published.compare=vqa2_published"]


def test_home_quotes_and_what_a_task_adds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "GQA/0.4").mkdir(parents=True)
    assert comparing(["published=~/GQA/0.4"])[1] == f"published.root='{tmp_path}'"
    assert comparing(["published='~/it\\'s/nocaps'"])[1:] == [
        f"published.root='{tmp_path}/it\\'s'", "published.compare=nocaps_published", "decoding=constrained_published",
    ]  # fmt: skip
    assert comparing(["published=~/nocaps", "decoding=caption"])[-1] == "decoding=caption"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([f"published={REPLICA}"], "TASK being one of what is there, vqa, GQA, nlvr2, coco_ir, flickr30k_ir, coco_cap"),
        (["published=/nowhere/at/all"], "all is no folder of one task: .* TASK being one of vqa, gqa"),
        (
            [f"published={REPLICA}/pretrain_corpus"],
            "Nothing is published that .*pretrain_corpus could be scored against",
        ),
        ([f"published={REPLICA}/vqa", "data=vqa2"], "chooses the data, vqa2_published: leave out data="),
    ],
)
def test_what_is_no_folder_to_score(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        comparing(words)


def test_a_checkpoint_is_known_by_its_place_or_its_size() -> None:
    name = "coco_captions_published"
    placed = Path("image_captioning/coco_captioning_base_scst/checkpoint-15-66405")
    assert recipe_of(name, placed, 768) == ("coco_caption_base_scst", [])
    assert recipe_of(name, Path("vinvl-base-image-captioning"), 768)[0] is None  # before or after rewards
    assert recipe_of("nlvr2_published", Path("mine"), 1024) == ("nlvr2_large", [])
    found, (note,) = recipe_of("nlvr2_published", Path("nlvr2/base/best"), 8)
    assert found == "nlvr2_base" and "is 8 wide and nlvr2_base 768" in note
    found, (note,) = recipe_of("vqa2_published", Path("mine"), 8)
    assert found is None and "none of the released checkpoints" in note


def test_tolerances_and_differences() -> None:
    near, far = (Compared("accuracy", "test1", "83.08", ours, 6967) for ours in (83.15, 83.17))
    assert near.tolerance == pytest.approx(0.005 + 500 / 6967) and near.difference == pytest.approx(0.07)
    assert (near.within, far.within) == (True, False)
    assert far.row() == ("accuracy", "test1", "83.08", "83.17", "+0.09", "0.08", "no")
    assert Compared("R@1", "test", "74.6†", None, 5000).row() == ("R@1", "test", "74.6†", "–", "–", "0.15", "–")
