"""The demo world as a pre-training corpus."""

import json
from pathlib import Path

from tests.conftest import TINY_WORLD
from vinvl.demo.world import DemoWorld, ensure_demo_corpus


def test_the_corpus_is_captions_descriptions_and_questions_with_true_answers(demo_data: Path) -> None:
    world = ensure_demo_corpus(demo_data / "demo", seed=0, **TINY_WORLD)
    rows = [json.loads(line) for line in world.pretraining_corpus("val").read_text().splitlines()]
    captions = json.loads(world.captions("val").read_text())["annotations"]
    questions = json.loads(world.gqa("val").read_text())
    told = {source: [row for row in rows if row["source"] == source] for source in ("captions", "descriptions")}
    assert [row["text"] for row in told["captions"]] == [caption["caption"] for caption in captions]
    assert not any("answer" in row or "tags" in row for part in told.values() for row in part)
    scenes = json.loads(world.scenes("val").read_text())["scenes"]
    seen = {(s["image_id"], o["size"], o["texture"], o["colour"], o["shape"]) for s in scenes for o in s["objects"]}
    described = {(row["image_id"], *row["text"].split()[1:]) for row in told["descriptions"]}
    assert described == seen and len(told["descriptions"]) == sum(len(scene["objects"]) for scene in scenes)
    asked = {(row["text"], str(row["image_id"])): row["answer"] for row in rows if "answer" in row}
    assert asked == {(q["question"], q["imageId"]): q["answer"] for q in questions.values()}


def test_the_corpus_is_made_once_and_belongs_to_the_world(demo_data: Path) -> None:
    world = ensure_demo_corpus(demo_data / "demo", seed=0, **TINY_WORLD)
    made = [world.pretraining_corpus(split).stat().st_mtime_ns for split in ("train", "val", "test")]
    again = ensure_demo_corpus(demo_data / "demo", seed=0, **TINY_WORLD)
    assert [again.pretraining_corpus(split).stat().st_mtime_ns for split in ("train", "val", "test")] == made
    assert world.pretraining_corpus("train").parent.name in DemoWorld(world.folder).top_level_names()
