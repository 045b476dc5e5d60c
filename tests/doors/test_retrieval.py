"""Retrieval through the doors: train, evaluate on one rank and two, a killed scoring run, predictions."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.door_in_process import (
    TINY,
    checkpoint,
    examples,
    refused_in_process,
    run_in_process,
    scored_alike,
    scores,
)
from tests.door_runs import ON_CPU, DoorProcess, door_environment, ranks_succeed, two_ranks

pytestmark = pytest.mark.slow

DEMO = [
    "task=retrieval", *TINY, "data.val_fold_images=3", "data.test_images=null", "data.block_images=2",
]  # fmt: skip
ON_ONE_CPU = "trainer.accelerator=cpu"
RECALLS = {f"{direction}/R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def trained(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what it printed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    return run, run_in_process("train", demo_data, run, *DEMO)


def test_a_run_shows_a_pair_of_each_kind_and_ends_with_both_directions(trained: tuple[Path, str]) -> None:
    run, printed = trained
    for words in ("matched: image", "mismatched: image", "Scoring 6 images with 30 captions: 180 pairs in 3 blocks"):
        assert words in printed
    for words in ("image → text: R@1, R@5, R@10", "text → image: R@1, R@5, R@10", "6 images with 30 captions"):
        assert words in printed
    assert RECALLS | {"recall_mean"} <= scores(run).keys()


def of_all_pairs(scores: Path) -> list[Path]:
    """The files with the scores of all pairs, one fold in three blocks."""
    files: list[Path] = []
    for told in scores.glob("*/candidates.json"):
        blocks = sorted(told.parent.glob("*.npy"))
        if len(blocks) == 3 and "rerank_top" not in json.loads(told.read_text())["settings"]:
            files += blocks
    return files


def assert_same_files(one: Path, other: Path) -> None:
    first, second = map(of_all_pairs, (one, other))
    assert len(first) == 3
    assert [path.name for path in first] == [path.name for path in second]
    for path, twin in zip(first, second, strict=True):
        assert path.read_bytes() == twin.read_bytes()


def killed_after_a_block(tmp_path: Path, demo_data: Path, overrides: list[str]) -> None:
    """An evaluation that is killed when one block is on the disk, in `tmp_path / "scores"`."""
    # A worker that is slow with its second block, so that the kill finds the first on the disk.
    script = (
        "import sys, time, vinvl.retrieval.run as files\n"
        "write, seen = files.ScoreFiles.write, []\n"
        "def slow(self, number, scores):\n"
        "    time.sleep(60 * len(seen)); seen.append(number); write(self, number, scores)\n"
        "files.ScoreFiles.write = slow\n"
        "from vinvl.evaluate import main\nmain()\n"
    )
    process = DoorProcess(tmp_path, "-c", script, *overrides, environment=door_environment(demo_data) | ON_CPU)
    process.wait_until(lambda: list((tmp_path / "scores").glob("*/*.npy")) != [])
    process.signalled(signal.SIGKILL)


def test_a_killed_scoring_run_goes_on_where_it_was_on_two_ranks(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    overrides = [checkpoint(run), ON_ONE_CPU, f"++data.scores_dir={tmp_path / 'scores'}"]
    killed_after_a_block(tmp_path, demo_data, overrides)
    (done,) = (tmp_path / "scores").glob("*/*.npy")
    written = done.stat().st_mtime_ns
    told = ranks_succeed(tmp_path, demo_data, "evaluate", *overrides, "hydra.run.dir=again")
    assert "1 blocks are scored already" in told and done.stat().st_mtime_ns == written
    assert_same_files(tmp_path / "scores", run / "retrieval_scores")
    assert scores(tmp_path / "again") == scores(run)
    rows = examples(run)
    assert rows == examples(tmp_path / "again") and len(rows) == 6 + 30


def test_a_damaged_block_is_scored_anew(trained: tuple[Path, str], demo_data: Path, tmp_path: Path) -> None:
    run, _ = trained
    shutil.copytree(run / "retrieval_scores", tmp_path / "scores")
    damaged = sorted((tmp_path / "scores").glob("*/*.npy"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    given = [checkpoint(run), ON_ONE_CPU, f"++data.scores_dir={tmp_path / 'scores'}"]
    told = run_in_process("evaluate", demo_data, tmp_path / "out", *given)
    assert "1 damaged or foreign files" in told and damaged.name in told and "2 blocks are scored already" in told
    assert_same_files(tmp_path / "scores", run / "retrieval_scores")
    assert scores(tmp_path / "out") == scores(run)


def test_folds_of_candidates_and_other_limits_have_scores_of_their_own(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    before = set((run / "retrieval_scores").iterdir())
    given = [checkpoint(run), ON_ONE_CPU, "++data.test_candidates=3"]
    told = run_in_process("evaluate", demo_data, tmp_path / "out", *given)
    assert "mean of 2 folds of 3 images, 30 captions in all" in told
    folds = scores(tmp_path / "out")
    assert len(examples(tmp_path / "out")) == 36
    assert folds["text_to_image/R@5"] == 100 and folds["chance/text_to_image/R@1"] == pytest.approx(100 / 3)
    assert len(set((run / "retrieval_scores").iterdir()) - before) == 1


def test_two_stages_of_a_killed_run_on_two_ranks_are_those_of_one(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    overrides = [checkpoint(run), ON_ONE_CPU, "++data.rerank_top=1"]
    told = run_in_process("evaluate", demo_data, tmp_path / "one", *overrides)
    ours, full = scores(tmp_path / "one"), scores(run)
    pairs = round(ours["scored_pairs"] * 180 / 100)
    assert 30 <= pairs <= 36 and f"{pairs} pairs of 180 ({100 * pairs / 180:.2f} %)" in told
    assert {name: full[name] - ours[name] for name in RECALLS} == {
        name.removeprefix("lost/"): value for name, value in ours.items() if name.startswith("lost/")
    }
    assert "lost against scoring all pairs" in told
    (folder,) = {path.parent for path in (run / "retrieval_scores").glob("*/*.npy") if np.load(path).min() < -1e20}
    elsewhere = [*overrides, f"++data.scores_dir={tmp_path / 'scores'}"]
    killed_after_a_block(tmp_path, demo_data, elsewhere)
    told = ranks_succeed(tmp_path, demo_data, "evaluate", *elsewhere, "hydra.run.dir=again")
    assert "1 blocks are scored already" in told and "lost against" not in told
    for path in folder.glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "scores" / folder.name / path.name).read_bytes()
    again = scores(tmp_path / "again")
    assert again == {name: value for name, value in ours.items() if not name.startswith("lost/")}


def test_two_stages_with_all_candidates_are_one(trained: tuple[Path, str], demo_data: Path, tmp_path: Path) -> None:
    run, _ = trained
    given = [checkpoint(run), ON_ONE_CPU, "++data.rerank_top=6", f"++data.scores_dir={tmp_path / 'scores'}"]
    run_in_process("evaluate", demo_data, tmp_path / "out", *given)
    ours = scores(tmp_path / "out")
    assert ours.pop("scored_pairs") == 100 and ours == scores(run)
    for path in (tmp_path / "scores").glob("*/*.npy"):
        (twin,) = (one for one in of_all_pairs(run / "retrieval_scores") if one.name == path.name)
        np.testing.assert_array_equal(np.load(path), np.load(twin))


def test_a_dual_encoder_is_made_once_and_chooses_the_same_on_two_ranks(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    given = [checkpoint(run), ON_ONE_CPU, "++data.rerank_top=1", "++data.rerank_steps=3"]
    one, two = tmp_path / "one", tmp_path / "two"
    told = run_in_process(
        "evaluate", demo_data, tmp_path / "out", *given, "++data.rerank_by=dual_encoder", f"++data.scores_dir={one}"
    )
    (made,) = one.glob("dual_encoder_*.safetensors")
    assert f"3 updates; it will be kept as {made}" in told
    (folder,) = (path.parent for path in one.glob("*/candidates.json"))
    # As a file of one's own, for which no training split is needed.
    elsewhere = [*given, f"++data.rerank_by={made}", "++data.train_split=none", f"++data.scores_dir={two}"]
    told = ranks_succeed(tmp_path, demo_data, "evaluate", *elsewhere, "hydra.run.dir=again")
    assert "Distilling" not in told and scores(tmp_path / "again") == scores(tmp_path / "out")
    assert len(sorted(folder.glob("*.npy"))) == 3
    for path in folder.glob("*.npy"):
        assert path.read_bytes() == (two / folder.name / path.name).read_bytes()
    save_file(load_file(made), tmp_path / "other.safetensors", {"format": "vinvl dual encoder 1", "model": "0" * 24})
    other = [*given, f"++data.rerank_by={tmp_path / 'other.safetensors'}"]
    assert "is a dual encoder of another model" in refused_in_process("evaluate", demo_data, tmp_path / "no", *other)


def test_predictions_of_two_stages_begin_with_what_the_model_scored(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    run_in_process("predict", demo_data, tmp_path / "out", checkpoint(run), ON_ONE_CPU, "++data.rerank_top=1")
    images = [json.loads(line) for line in (tmp_path / "out" / "image_to_text.jsonl").open()]
    captions = [json.loads(line) for line in (tmp_path / "out" / "text_to_image.jsonl").open()]
    assert len(images) == 6 and len(captions) == 30
    for record in (*images, *captions):
        found = [entry["score"] for entry in record["top"]]
        assert found == sorted(found, reverse=True) and len(found) in (6, 10) and found[0] > 0
    assert any(record["top"][-1]["score"] == 0 for record in captions)  # in the cheap order


def test_predictions_are_the_best_captions_and_images(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, folder = trained[0], tmp_path / "out"
    run_in_process("predict", demo_data, folder, checkpoint(run), ON_ONE_CPU)
    images = [json.loads(line) for line in (folder / "image_to_text.jsonl").read_text().splitlines()]
    captions = [json.loads(line) for line in (folder / "text_to_image.jsonl").read_text().splitlines()]
    assert len(images) == 6 and len(captions) == 30
    assert all(len(image["top"]) == 10 for image in images) and all(len(one["top"]) == 6 for one in captions)
    for record in (*images, *captions):
        found = [entry["score"] for entry in record["top"]]
        assert found == sorted(found, reverse=True) and all(0 <= value <= 1 for value in found)
    (scored,) = {path.parent for path in of_all_pairs(run / "retrieval_scores")}
    own = ["data=demo_retrieval", "data.test_images=null", "data.block_images=2"]
    scored_alike(demo_data, tmp_path / "folder", scored, run, *own)
    best = {(row["group"], row["id"]): (row["best"], row["probabilities"]) for row in examples(run)}
    for way, name, records in (("image_to_text", "caption", images), ("text_to_image", "image_id", captions)):
        for one in records:
            own_id = str(one["image_id" if way == "image_to_text" else "caption_id"])
            assert best[way, own_id] == (
                [top[name] for top in one["top"][:5]],
                [top["score"] for top in one["top"][:5]],
            )
    first = sum(one["top"][0]["image_id"] == one["image_id"] for one in captions) / 30
    assert first * 100 == pytest.approx(scores(run)["text_to_image/R@1"])
    first = sum(image["top"][0]["image_id"] == image["image_id"] for image in images) / 6
    assert first * 100 == pytest.approx(scores(run)["image_to_text/R@1"])


def test_images_without_regions_have_first_candidates_and_are_counted(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    content = json.loads((demo_data / "demo" / "dataset_demo.json").read_text())
    images = [image for image in content["images"] if image["split"] == "test"]
    for key in ("cocoid", "imgid", "filename"):
        images[2].pop(key, None)
    images[2]["cocoid"] = 424242
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"images": images}))
    given = [checkpoint(run), "trainer.accelerator=cpu", "++data.on_missing=skip", f"++data.scores_dir={tmp_path}/all"]
    given += [f"++data.splits.own={{karpathy:{own},splits:[test]}}"]
    told = run_in_process("predict", demo_data, tmp_path / "out", *given, "++data.predict_split=own")
    assert "6 predictions" in told and "1 of them, of images without regions, are the first candidates" in told
    found = [json.loads(line) for line in (tmp_path / "out" / "image_to_text.jsonl").open()]
    assert [one.get("filled_in", False) for one in found] == [place == 2 for place in range(6)]
    assert found[2]["image_id"] == "424242" and len(found[2]["top"]) == 10
    captions = [json.loads(line) for line in (tmp_path / "out" / "text_to_image.jsonl").open()]
    filled = [one for one in captions if one.get("filled_in")]
    assert len(captions) == 30 and len({one["caption_id"] for one in captions}) == 30
    assert [one["caption"] for one in filled] == [one["raw"] for one in images[2]["sentences"]]
    assert {one["image_id"] for one in filled} == {"424242"} and [len(one["top"]) for one in filled] == [5] * 5
    told = run_in_process("evaluate", demo_data, tmp_path / "scored", *given, "++data.test_split=own")
    assert "records without regions, not scored" in told
    assert json.loads((tmp_path / "scored" / "results.json").read_text())["left_out"] == 1
    assert len(examples(tmp_path / "scored")) == 5 + 25


def test_two_ranks_validate_as_one(demo_data: Path, tmp_path: Path) -> None:
    given = [*DEMO, "trainer.max_epochs=0", "data.val_fold_images=2"]
    ranks_succeed(tmp_path, demo_data, "train", *given, "hydra.run.dir=two")
    run_in_process("train", demo_data, tmp_path / "one", *given)
    assert scores(tmp_path / "two") == scores(tmp_path / "one")


def test_scores_that_cannot_be_kept_are_refused_with_a_sentence_by_every_rank(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run, _ = trained
    (tmp_path / "file").write_text("")
    folder = f"++data.scores_dir={tmp_path / 'file' / 'scores'}"
    ranks = two_ranks(tmp_path, demo_data, "evaluate", checkpoint(run), folder)
    assert [rank.wait() for rank in ranks] == [1, 1]
    assert "for the scores cannot be made" in ranks[0].printed()
    assert not any("Traceback" in rank.printed() for rank in ranks)
