"""Rows of held-out images are found by every name and by their looks, and nothing else is."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from tests.pretraining.raw import karpathy, write
from tests.pretraining.samples import write_lines
from vinvl.demo.scene import render_scene, sample_scene
from vinvl.pictures.likeness import Alike, bits_of, waves_of
from vinvl.pretraining.command import main
from vinvl.pretraining.decontamination import decontaminate
from vinvl.pretraining.held_out import HeldOut, keys_of, keys_of_address, take_links, take_set
from vinvl.run import values
from vinvl.run.errors import UserError

HEX = "0013ea2087020901"
NAMES: dict[str, tuple[str, set[str]]] = {  # a name → one key of its image
    "published": ("coco_391895", {"coco:391895"}),
    "file of 2014": ("COCO_val2014_000000391895.jpg", {"coco:391895"}),
    "with a prefix": ("coco_COCO_val2014_000000391895", {"coco:391895"}),
    "file of 2017": ("train2017/000000391895.jpg", {"coco:391895"}),
    "GQA": ("gqa_2386621", {"vg:2386621"}),
    "GQA's own": ("gqa_n578564", {"vg:n578564"}),
    "Flickr30k": ("flickr30k_1000092795", {"flickr:1000092795"}),
    "Flickr's file": ("4385058960_b0f291553e.jpg", {"flickr:4385058960"}),
    "Open Images": (f"oi_3_{HEX}", {f"oi:{HEX}"}),
    "its file": (f"{HEX}.jpg", {f"oi:{HEX}"}),
    "anybody's": ("391895", {"coco:391895", "vg:391895", "flickr:391895"}),
    "a row of the web": ("googlecc_0_5", set()),
    "own": ("photos/Kitchen.png", {"name:kitchen"}),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(case: str) -> None:
    name, keys = NAMES[case]
    spaces = {"coco", "vg", "flickr", "oi", *(key.partition(":")[0] for key in keys)}
    assert {key for key in keys_of(name) if key.partition(":")[0] in spaces} == keys


@given(st.text(max_size=20), st.sampled_from(["coco_", "gqa_", "oi_", "sbu_", "", "x/"]))
def test_every_name_has_its_own_key(name: str, prefix: str) -> None:
    assert f"id:{prefix}{name}" in keys_of(prefix + name)
    assert keys_of_address(f"http://{name}")[0].startswith("url:")


def test_addresses() -> None:
    assert "flickr:4385058960" in keys_of_address("http://static.flickr.com/2723/4385058960_b0f291553e.jpg")
    assert keys_of_address("http://a.b/4385058960_b0f291553e.jpg") == ["url:a.b/4385058960_b0f291553e.jpg"]
    assert "vg:51" in keys_of_address("https://cs.stanford.edu/people/rak248/VG_100K_2/51.jpg")
    assert "coco:7" in keys_of_address("http://images.cocodataset.org/val2017/000000000007.jpg")
    assert keys_of_address("https://www.a.b/51.jpg") == keys_of_address("http://a.b/51.jpg") == ["url:a.b/51.jpg"]


# What is held out, in its official forms, about one image each, and the rows of which corpora these are.


def sets(folder: Path) -> dict[str, Path]:
    karpathy_images = [
        {"cocoid": 1, "filename": "COCO_val2014_000000000001.jpg", "split": "test", "sentences": ["a"]},
        {"cocoid": 2, "filename": "COCO_val2014_000000000002.jpg", "split": "train", "sentences": ["a"]},
    ]
    flickr_images = [
        {"filename": "1000092795.jpg", "split": "test", "sentences": ["a"]},
        {"filename": "1000092796.jpg", "split": "val", "sentences": ["a"]},
    ]
    statement = {"identifier": "test1-0-1-0", "left_url": "https://a.b/left.jpg", "right_url": "https://a.b/right.jpg"}
    return {
        "coco": karpathy(folder / "dataset_coco.json", karpathy_images),
        "flickr30k": karpathy(folder / "dataset_flickr30k.json", flickr_images),
        "vqa": write(folder / "vqa.json", {"questions": [{"question_id": 1, "image_id": 3, "question": "?"}]}),
        "gqa": write(folder / "gqa.json", {"1": {"imageId": "n4", "question": "?"}, "2": {"imageId": "5"}}),
        "nlvr2": write(folder / "nlvr2.json", json.dumps(statement)),
        "nocaps": write(folder / "nocaps.json", {"images": [{"id": 0, "open_images_id": HEX, "file_name": "0.jpg"}]}),
        "ids": write(folder / "ids.txt", "kitchen_017.jpg\n\nhttps://a.b/listed.jpg\n"),
    }


CLEAN = [
    {"image_id": "coco_2"}, {"image_id": "coco_5"}, {"image_id": "gqa_1"}, {"image_id": "gqa_3"}, {"image_id": "sbu_1"},
    {"image_id": "flickr30k_1000092796"}, {"image_id": "googlecc_3", "url": "https://a.b/other.jpg"},
    {"image_id": 2, "source": "coco"}, {"image_id": 1, "source": "gqa"}, {"image_id": "oi_0013ea2087020902"},
]  # fmt: skip
HELD_OUT: dict[str, list[dict[str, Any]]] = {
    "coco": [{"image_id": "coco_1"}, {"image_id": 1, "source": "coco_captions"}, {"image_id": "1"},
             {"image_id": "x", "file_name": "COCO_val2014_000000000001.jpg"}],
    "flickr30k": [{"image_id": "flickr30k_1000092795"},
                  {"image_id": "sbu_7", "url": "http://static.flickr.com/2723/1000092795_b0f291553e.jpg"}],
    "vqa": [{"image_id": "coco_3"}, {"image_id": "COCO_test2015_000000000003"}],
    "gqa": [{"image_id": "gqa_n4"}, {"image_id": "gqa_5"}, {"image_id": 5, "source": "vg_qa"}],
    "nlvr2": [{"image_id": "test1-0-1-img1"}, {"image_id": "googlecc_1", "url": "http://a.b/left.jpg"}],
    "nocaps": [{"image_id": HEX}, {"image_id": f"oi_3_{HEX}"}],
    "ids": [{"image_id": "kitchen_017"}, {"image_id": "sbu_9", "url": "https://a.b/listed.jpg"}],
}  # fmt: skip


def corpus(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_lines(path, [{"text": f"caption {number}", **row} for number, row in enumerate(rows)])


def left_out(output: Path) -> list[dict[str, str]]:
    with (output / "left_out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_held_out_rows_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given_sets = [f"{form}={path}" for form, path in sets(tmp_path).items()]
    dirty = [row for rows in HELD_OUT.values() for row in rows]
    one = corpus(tmp_path / "one.jsonl", [*CLEAN, *dirty])
    other = corpus(tmp_path / "other.jsonl", [*dirty, *CLEAN])
    before, command = one.read_bytes(), ["decontaminate", str(one), str(other), "--held-out", *given_sets]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert one.read_bytes() == before
    assert (tmp_path / "out" / "one.jsonl").read_bytes() == b"".join(before.splitlines(True)[: len(CLEAN)])
    assert len((tmp_path / "out" / "other.jsonl").read_bytes().splitlines()) == len(CLEAN)
    listed = left_out(tmp_path / "out")
    assert {(row["corpus"], int(row["line"])) for row in listed} == {
        *((str(one), len(CLEAN) + 1 + number) for number in range(len(dirty))),
        *((str(other), 1 + number) for number in range(len(dirty))),
    }
    for form, path in sets(tmp_path).items():
        found = [row for row in listed if row["set"].startswith(f"{form} {path.name}") and row["corpus"] == str(one)]
        assert [row["image_id"] for row in found] == [str(row["image_id"]) for row in HELD_OUT[form]], form
    ways = {row["image_id"]: row["found_by"] for row in listed}
    assert (ways["coco_1"], ways["kitchen_017"], ways["googlecc_1"]) == ("id", "file name", "address")
    printed = capsys.readouterr().out
    assert f"{one}: {len(dirty)} of {len(dirty) + len(CLEAN)} rows left out" in printed
    assert f"{len(HELD_OUT['coco']) * 2}" in next(line for line in printed.splitlines() if "dataset_coco.json" in line)


def test_a_row_counts_in_every_set_and_a_number_of_nobodys_in_no_warning(tmp_path: Path) -> None:
    held = HeldOut()
    for form, name in (("coco", "dataset_coco.json"), ("ids", "own.txt")):
        write(tmp_path / "own.txt", "coco_1\n")
        sets(tmp_path)
        take_set(held, f"{form}={tmp_path / name}")
    rows = corpus(tmp_path / "one.jsonl", [{"image_id": "coco_1"}, {"image_id": "gqa_7"}, {"image_id": 7}])
    counts = decontaminate({"one.jsonl": rows}, held, None)
    assert sorted(name for name, _ in counts.found) == ["coco dataset_coco.json test", "ids own.txt"]
    assert set(counts.found.values()) == {1} and counts.left_out == {str(rows): 1}
    assert counts.of_visual_genome == 1


def test_check_writes_nothing_and_fails(tmp_path: Path) -> None:
    held = f"coco={sets(tmp_path)['coco']}"
    dirty, clean = corpus(tmp_path / "d.jsonl", HELD_OUT["coco"]), corpus(tmp_path / "c.jsonl", CLEAN)
    there = sorted(tmp_path.iterdir())
    assert main(["decontaminate", str(dirty), str(clean), "--held-out", held, "--check"]) == 1
    assert main(["decontaminate", str(clean), "--held-out", held, "--check"]) == 0
    assert sorted(tmp_path.iterdir()) == there


def test_visual_genomes_images_are_cocos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And Flickr's: through image_data.json and the addresses in COCO's files, one behind the other."""
    files = sets(tmp_path)
    flickr = "http://farm9.staticflickr.com/8186/1000092795_4e622c8349_z.jpg"
    coco = write(tmp_path / "captions.json", {"images": [{"id": 9, "flickr_url": flickr}, {"id": 8}]})
    data = [
        {"image_id": 61, "coco_id": 1, "flickr_id": None}, {"image_id": 62, "coco_id": 2, "flickr_id": 77},
        {"image_id": 63, "coco_id": 9, "flickr_id": 1000092795}, {"image_id": 64, "coco_id": None, "flickr_id": 5},
    ]  # fmt: skip
    genome = write(tmp_path / "image_data.json", data)
    rows = corpus(tmp_path / "rows.jsonl", [{"image_id": f"gqa_{number}"} for number in (61, 62, 63, 64)])
    both = ["--held-out", f"coco={files['coco']}", f"flickr30k={files['flickr30k']}"]
    assert main(["decontaminate", str(rows), *both, "--check"]) == 0
    assert "4 rows have numbers of Visual Genome or GQA" in capsys.readouterr().out
    links = ["--links", str(coco), str(genome)]
    assert main(["decontaminate", str(rows), *both, *links, "--output", str(tmp_path / "out")]) == 0
    found = [
        (row["image_id"], row["set"], row["found_by"], row["image_of_the_set"]) for row in left_out(tmp_path / "out")
    ]
    assert found == [
        ("gqa_61", "coco dataset_coco.json test", "link", "1"),
        ("gqa_63", "flickr30k dataset_flickr30k.json test", "link", "1000092795.jpg"),
    ]
    held = HeldOut()
    take_set(held, both[2])
    assert take_links(held, [genome, coco]) == 2  # image 63, then image 9 of COCO
    assert held.find(["coco:9"]) and not held.find(["coco:8"])
    other = write(tmp_path / "other.json", [{"image_id": 65, "coco_id": 9}])  # of which COCO's file tells only later
    take_set(held := HeldOut(), both[2])
    assert take_links(held, [other, coco]) == 2 and held.find(["vg:65"])


def test_splits_are_those_asked_for(tmp_path: Path) -> None:
    held = HeldOut()
    take_set(held, f"coco:train,test={sets(tmp_path)['coco']}")
    assert held.images == {"coco dataset_coco.json test": 1, "coco dataset_coco.json train": 1}
    with pytest.raises(UserError, match=r"has no image of the split 'tset'"):
        take_set(HeldOut(), f"coco:tset={tmp_path / 'dataset_coco.json'}")


def test_long_lists_of_annotations_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of COCO's instances are longer than one value may be."""
    monkeypatch.setattr(values, "_CHUNK", 100)
    monkeypatch.setattr(values, "_LONGEST_MEMBER", 400)
    annotations = [{"id": number, "segmentation": [[1, 2]]} for number in range(100)]
    file = write(tmp_path / "instances.json", {"images": [{"id": 1}], "annotations": annotations})
    take_set(held := HeldOut(), f"coco={file}")
    assert held.images == {"coco instances.json": 1}


# Looks.


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [render_scene(sample_scene(number, rng)) for number in range(count)]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((100, 75)),
    "twice": lambda image: image.resize((410, 310), Image.Resampling.BICUBIC),
    "recompressed": lambda image: jpeg(image, 40),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.08),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "grey": lambda image: image.convert("L"),
    "all": lambda image: jpeg(ImageEnhance.Brightness(image.resize((120, 90))).enhance(1.05), 60),
}


def waves(images: list[Image.Image]) -> np.ndarray:
    found = [waves_of(image) for image in images]
    assert all(one is not None for one in found)
    return np.stack([one for one in found if one is not None])


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_other_pictures_are_not(change: str) -> None:
    originals = scenes(60)
    pairs = Alike(waves(originals), 6).pairs(waves([CHANGES[change](image) for image in originals[:40]]))
    assert pairs[:, :2].tolist() == [[number, number] for number in range(40)]


def test_few_other_pictures_look_alike() -> None:
    """Of 2,999 thousand pairs of the demo's pictures, which are of few shapes on one background."""
    one, other = waves(scenes(1200)), waves(scenes(2500, seed=1))
    assert len(Alike(other, 6).pairs(one)) <= 6


@given(st.integers(0, 16), st.integers(0, 2**32))
def test_pairs_are_those_of_a_comparison_of_all(most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((4, 64)).astype(np.float32)
    near = (base[rng.integers(0, 4, 60)] + 0.25 * rng.standard_normal((60, 64))).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    one, other = near[:25], near[25:]
    differing = np.bitwise_count(bits_of(one)[:, None] ^ bits_of(other))
    wanted = np.argwhere((differing <= most) & (one @ other.T >= 0.9 + 1e-6))
    found = Alike(other, most).pairs(one)
    assert {tuple(pair) for pair in wanted.tolist()} <= {(a, b) for a, b, _ in found.tolist()}
    assert all(differing[a, b] == bits <= most for a, b, bits in found.tolist())


def test_a_picture_of_one_colour_is_like_nothing() -> None:
    assert waves_of(Image.new("RGB", (50, 40), "grey")) is None


def test_pictures_of_corpus_and_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = scenes(6)
    for folder in ("test", "web"):
        (tmp_path / folder).mkdir()
    for number, image in enumerate(originals[:3]):
        image.save(tmp_path / "test" / f"t{number}.png")
    for number, image in enumerate(originals[1:]):
        jpeg(image.resize((130, 97)), 70).save(tmp_path / "web" / f"{number:09d}.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "plain.png")
    (tmp_path / "web" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    rows = corpus(tmp_path / "rows.jsonl", [{"image_id": f"googlecc_{number:09d}"} for number in range(8)])
    command = ["decontaminate", str(rows), "--held-out", f"pictures={tmp_path / 'test'}", "--workers", "1"]
    prefixed = ["--pictures", f"googlecc_={tmp_path / 'web'}"]
    assert main([*command, *prefixed, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "5 of 8 rows have one of the pictures" in told.out and "1 pictures are of one colour" in told.out
    assert "broken.jpg" in told.err
    found = [
        (row["image_id"], row["found_by"], row["image_of_the_set"].split(" ")[0]) for row in left_out(tmp_path / "out")
    ]
    assert found == [("googlecc_000000000", "picture", "t1.png"), ("googlecc_000000001", "picture", "t2.png")]
    assert main([*command, "--pictures", str(tmp_path / "web"), "--check"]) == 1
    assert "No row's image is among the pictures: pass --pictures PREFIX=FOLDER" in capsys.readouterr().err
    assert main([*command, *prefixed, "--bits", "40", "--check"]) == 1 and "give 0 to 16" in capsys.readouterr().err


# What is wrong.


BAD: dict[str, tuple[str, str, str]] = {  # form, content, sentence
    "no questions": ("vqa", '{"images": []}', r"missing required field `questions`"),
    "a list": ("gqa", "[]", r"should be one JSON object"),
    "no image": ("gqa", '{"1": {"question": "?"}}', r"record 1: .*`imageId`"),
    "no statement": ("nlvr2", '{"sentence": "?"}', r"line 1: .*`identifier`"),
    "no ids": ("coco", '{"images": [{"file_name": "a.jpg"}]}', r"image 1 has neither id nor cocoid"),
    "of COCO": ("flickr30k", '{"images": [{"id": 1}]}', r"image 1 has no filename and split"),
    "no images": ("nocaps", '{"images": []}', r"names no image; give the file of a set of the form nocaps"),
    "no NoCaps": ("nocaps", '{"images": [{"id": 1}]}', r"image 1 has neither open_images_id nor file_name"),
    "empty": ("ids", "\n", r"names no image"),
    "no text": ("ids", "\udcff", r"is no text in UTF-8"),
    "JSON as a list": (
        "ids",
        '{"images": [{"id": 1, "url": "http://a"}]}',
        r"set line 1 is .*: give image ids or file names",
    ),
    "a null character": ("ids", "1\n2\0\n", r"set line 2 is '2.x00': give image ids"),
    "a long line": ("ids", "1\n" + "x" * 257, r"set line 2 is .*: give image ids"),
    "no form": ("snli", "", r"is no set: give FORM=FILE"),
    "split": ("gqa:val", "{}", r"is no set: give FORM=FILE"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form, content, sentence = BAD[case]
    (tmp_path / "set").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=sentence):
        take_set(HeldOut(), f"{form}={tmp_path / 'set'}")


def test_sets_of_one_name_stay_apart(tmp_path: Path) -> None:
    held = HeldOut()
    for folder, image in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "q.json", {"questions": [{"image_id": image}, {"image_id": image}]})
        take_set(held, f"vqa={tmp_path / folder / 'q.json'}")
    assert held.images == {"vqa q.json": 1, f"vqa {tmp_path / 'b' / 'q.json'}": 1}
    with pytest.raises(UserError, match=r"is given more than once; give each set once"):
        take_set(held, f"vqa={tmp_path / 'b' / 'q.json'}")


def test_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, out = ["--held-out", f"coco={sets(tmp_path)['coco']}"], str(tmp_path / "out")
    dirty = str(corpus(tmp_path / "d.jsonl", HELD_OUT["coco"]))
    broken = str(write(tmp_path / "b.jsonl", '{"image_id": "coco_7", "text": "a"}\n{"text": "a"}\n'))
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    for arguments, sentence in (
        ([dirty, *held, "--output", out], "Every row of "),
        ([broken, *held, "--output", out], "b.jsonl line 2: Object missing required field `image_id`"),
        ([str(tmp_path / "empty"), *held, "--output", out], "is a folder without .jsonl files"),
        ([dirty, dirty, *held, "--check"], "would both become d.jsonl"),
        ([dirty, *held, "--output", str(tmp_path / "there")], "there exists already"),
        ([dirty, *held, "--pictures", dirty, "--check"], "give --held-out pictures=FOLDER too"),
        ([dirty, *held, "--links", dirty, "--check"], "d.jsonl does not end after its object"),
        ([dirty, *held], "one of the arguments --output --check is required"),
    ):
        assert main(["decontaminate", *arguments]) == 1
        told = capsys.readouterr().err
        assert sentence in told and told.count("error: ") == 1
        assert not Path(out).exists() and not [*tmp_path.glob(".*")]
