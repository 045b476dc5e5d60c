"""The files of a generated demo world."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY_WORLD
from tests.demo.samples import content
from tests.door_runs import DoorProcess, door_environment
from vinvl.demo import DemoWorld, ensure_demo_world
from vinvl.demo import world as making
from vinvl.demo.files import SPECIAL_TOKENS, SPELLING, write_tokenizer
from vinvl.demo.scene import SHAPES, crop_features, crop_pixels
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

SPLITS = {split: TINY_WORLD[f"num_{split}_images"] for split in ("train", "val", "test")}
SMALLEST = {"num_train_images": 2, "num_val_images": 1, "num_test_images": 1, "questions_per_image": 2}


def files_of(world: DemoWorld) -> dict[Path, bytes]:
    files = sorted(path for path in world.folder.rglob("*") if path.is_file())
    return {path.relative_to(world.folder): path.read_bytes() for path in files}


def test_same_seed_gives_the_same_files_for_any_number_of_workers(world: DemoWorld, tmp_path: Path) -> None:
    again = ensure_demo_world(tmp_path / "again", seed=0, workers=2, **TINY_WORLD)
    found, before = files_of(again), files_of(world)  # which other tests may have added to
    assert len(found) > sum(SPLITS.values()) and found == {name: before[name] for name in found}
    other = ensure_demo_world(tmp_path / "other", seed=5, workers=1, **SMALLEST)
    assert content(other.scenes("train"))["scenes"][0] != content(world.scenes("train"))["scenes"][0]


def test_another_version_would_have_another_number(world: DemoWorld) -> None:
    """Raise `VERSION` with this sum: worlds that are there already are then made again, and tables differ."""
    names = sorted(world.top_level_names() - making.MADE_LATER)
    contents = [(world.folder / name).read_bytes() for name in names if name.endswith(".json")]
    contents.append((world.tokenizer / "vocab.txt").read_bytes())
    assert (hashlib.sha256(b"".join(contents)).hexdigest()[:12], making.VERSION) == ("2218d71a8fe4", 7)


@pytest.mark.parametrize("split", SPLITS)
def test_stores_are_sound_and_hold_features_of_the_saved_pictures_alone(world: DemoWorld, split: str) -> None:
    store = RegionStore(world.store(split))
    assert store.verify() == []
    assert len(store) == SPLITS[split]
    assert store.label_map.classes[1:] == SHAPES
    for image_id in store.image_ids:
        regions = store[image_id]
        with Image.open(world.images / f"{int(image_id):012d}.png") as picture:
            pixels = np.asarray(picture)
        # From the picture and the boxes alone, without labels.
        expected = crop_features([crop_pixels(pixels, box) for box in regions.boxes])
        assert np.array_equal(regions.features, expected)
        assert (np.diff(regions.class_scores) <= 0).all()
        assert regions.attributes.shape == (len(regions), 2)


def test_tokenizer_spells_every_text_of_every_split(world: DemoWorld) -> None:
    from transformers import AutoTokenizer  # here, so that spawned processes do not pay for it

    tokenizer = AutoTokenizer.from_pretrained(str(world.tokenizer))
    assert tokenizer.is_fast
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3, 4]
    for split in SPLITS:
        texts = [entry["question"] for entry in content(world.questions(split))["questions"]]
        texts += [entry["caption"] for entry in content(world.captions(split))["annotations"]]
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
        answers = {question["answer"] for question in content(world.gqa(split)).values()}
        # A hidden piece of an answer would be guessed from its other pieces instead of the picture.
        assert {answer for answer in answers if len(tokenizer.tokenize(answer)) != 1} == set()
    pair = tokenizer("Is there a STAR?", "star circle")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens[0] == "[CLS]"
    assert tokens.count("[SEP]") == 2
    assert tokens.count("star") == 2
    assert pair["token_type_ids"] == [0] * (tokens.index("[SEP]") + 1) + [1] * (len(tokens) - tokens.index("[SEP]") - 1)


def test_words_of_later_texts_come_after_all_others_and_move_none(tmp_path: Path) -> None:
    texts = ["what is red?", "what is blue", "red red", "once"]
    later = ["neither is red", "neither is blue", "neither both", "both", "never"]
    write_tokenizer(texts, [], tmp_path / "first")
    write_tokenizer(texts, later, tmp_path / "both")
    first, both = (
        (tmp_path / name / "vocab.txt").read_text(encoding="utf-8").splitlines() for name in ("first", "both")
    )
    assert first == [*SPECIAL_TOKENS.values(), *SPELLING, "red", "is", "what"]
    assert both == [*first, "neither", "both"]


def test_marker_states_what_was_made(world: DemoWorld) -> None:
    marker = content(world.marker)
    assert (marker["seed"], marker["num_train_images"]) == (0, SPLITS["train"])
    assert set(marker["rates"]) >= {"missed_objects", "wrong_classes_and_attributes", "wrong_answers"}
    # Answer vocabularies, the corpus and a detector's annotations come with the first training.
    later = {"answers.json", "gqa_answers.json", "pretraining", "detection"}
    assert {path.name for path in world.folder.iterdir()} - later == world.top_level_names() - later


def test_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making.files, "write_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_world(tmp_path / "world", workers=2, seed=1, **SMALLEST)
    assert list(tmp_path.iterdir()) == []


def test_a_world_that_agrees_is_kept_another_replaced_and_foreign_files_are_refused(tmp_path: Path) -> None:
    folder, mine = tmp_path / "world", tmp_path / "world" / "thesis.txt"
    folder.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="holds no demo world"):
        ensure_demo_world(folder, seed=1, workers=1, **SMALLEST)
    assert mine.read_text() == "mine"
    mine.unlink()  # an empty folder is filled
    ensure_demo_world(folder, seed=1, workers=1, **SMALLEST)
    made = (folder / "train.h5").stat()
    ensure_demo_world(folder, seed=1, workers=1, **SMALLEST)
    assert (folder / "train.h5").stat().st_ino == made.st_ino
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        ensure_demo_world(folder, seed=2, workers=1, **SMALLEST)
    assert content(folder / "demo_world.json")["seed"] == 1 and mine.read_text() == "mine"
    mine.unlink()
    ensure_demo_world(folder, seed=2, workers=1, **SMALLEST)
    assert content(folder / "demo_world.json")["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize("name", ["num_train_images", "num_test_images", "questions_per_image"])
def test_sizes_out_of_range_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        ensure_demo_world(tmp_path / "world", workers=1, seed=1, **{**SMALLEST, name: 0})


def test_processes_that_ensure_at_once_share_one_world(tmp_path: Path) -> None:
    """Programs that do not ask whether they are the main one: workers do not run them again."""
    program = f"print(ensure_demo_world(Path('made/world'), seed=1, **{SMALLEST}).folder)\n"
    imports = "from pathlib import Path\nfrom vinvl.demo import ensure_demo_world\n"
    (tmp_path / "make_a_world.py").write_text(imports + program)
    environment = door_environment(tmp_path)
    processes = [DoorProcess(tmp_path, "make_a_world", environment=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    printed, place = "".join(process.printed() for process in processes), tmp_path / "made" / "world"
    assert printed.count(f"{place}\n") == 3 and printed.count("Generating") == 1
    assert list(place.parent.iterdir()) == [place]
    assert RegionStore(place / "train.h5").verify() == []
