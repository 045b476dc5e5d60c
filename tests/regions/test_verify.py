"""What `verify` finds, joining and comparing stores, what they say of how they were made, and the command line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.regions.samples import LABELS, assert_same, make_regions, write
from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter
from vinvl.regions import merging as merging_module
from vinvl.regions.__main__ import compare_stores, main
from vinvl.regions.merging import merge_stores, shard_path
from vinvl.regions.regions import NO_NAMES
from vinvl.run.errors import UserError


def sample(path: Path, **layout: Any) -> Path:
    return write(path, [make_regions(f"n{n}", 4, attributes=1, seed=n) for n in range(6)], attributes=1, **layout)


QUICK = ("classes", "attributes", "sizes", "offsets", "image_ids")
DAMAGE = [
    ("features", (5, 1), np.nan, "1 regions have features that are NaN or infinite, first in image 'n1', region 1"),
    ("features", (slice(5, 9), 1), np.inf, "4 regions have features that are NaN"),
    ("boxes", (23, 0), np.nan, "1 regions have boxes that are NaN or infinite, first in image 'n5', region 3"),
    ("class_scores", 0, np.inf, "1 regions have class_scores that are NaN or infinite, first in image 'n0', region 0"),
    ("attribute_scores", (0, 0), np.nan, "have attribute_scores that are NaN"),
    ("boxes", 9, (50, 50, 40, 60), "have inverted boxes (x2 < x1 or y2 < y1), first in image 'n2', region 1"),
    ("boxes", 9, (50, 50, 60, 40), "have inverted boxes"),
    ("boxes", 9, (0, 0, 106, 9), "have boxes more than 5% of the image's size outside of the image"),
    ("boxes", 9, (0, -7, 9, 9), "have boxes more than 5%"),
    ("classes", 9, 3, "1 regions have classes outside of the label map (0 to 2), first in image 'n2', region 1"),
    ("classes", 9, -1, "have classes outside of the label map"),
    ("attributes", (9, 0), 2, "have attributes outside of the label map (0 to 1)"),
    ("sizes", (2, 1), 0, "1 images have a size that is not positive, the first is image number 2"),
    ("offsets", 2, 3, "offsets fall after image number 1"),
    ("image_ids", 2, b"n1", "image ids are repeated 1 times, such as 'n1'"),
    ("image_ids", 2, b"", "image number 2 has an empty id"),
    ("image_ids", 2, b"\xff", "image_ids hold bytes that are not UTF-8"),
]


@pytest.mark.parametrize("layout", [{}, {"compression": "gzip", "chunk_rows": 5}], ids=["contiguous", "gzip"])
@pytest.mark.parametrize("damage", DAMAGE, ids=[row[3][:45] for row in DAMAGE])
def test_damage_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, Any, Any, str], layout: dict[str, Any]
) -> None:
    name, place, value, sentence = damage
    # Blocks of a few rows, so that the counting crosses block boundaries.
    monkeypatch.setattr("vinvl.regions.shard._BLOCK_BYTES", 20)
    path = sample(tmp_path / "coco.h5", **layout)
    with h5py.File(path, "r+") as file:
        file["boxes"][9] = (-4, -5, 104, 125)  # which may stick out a little
        file.attrs.pop("checksums")
    assert RegionStore(path).verify() == []
    with h5py.File(path, "r+") as file:
        file[name][place] = np.array(value, dtype=file[name].dtype)
    problems = RegionStore(path).verify()
    assert any(sentence in problem for problem in problems), problems
    assert all(problem.startswith(f"{path}: ") and problem.endswith(".") for problem in problems)
    more = write(tmp_path / "more.h5", [make_regions("z", 1, attributes=1)], attributes=1)
    for store in (path, [path, more]) if name in QUICK and value != b"\xff" else ():  # refused before a training
        with pytest.raises(UserError, match=str(path)):
            RegionStore(store).require_sound()


VALUES: dict[str, object] = {  # every one allowed where it goes
    "features": 0.25, "boxes": 7, "class_scores": 0.5, "attribute_scores": 0.5, "classes": 1, "attributes": 1,
    "offsets": 9, "sizes": 131, "image_ids": b"m2",
}  # fmt: skip


@pytest.mark.parametrize("layout", [{}, {"compression": "lzf", "chunk_rows": 5}], ids=["contiguous", "lzf"])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_was_changed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: dict[str, Any]
) -> None:
    monkeypatch.setattr("vinvl.regions.shard._BLOCK_BYTES", 20)
    path = sample(tmp_path / "coco.h5", **layout)
    with h5py.File(path, "r+") as file:
        file[name][2] = 0 if np.all(file[name][2] == VALUES[name]) else VALUES[name]
    told = f"{path}: {name} are not as they were written (their checksum differs)"
    store = RegionStore(path)
    assert [problem[: len(told)] for problem in store.verify()] == [told]
    with pytest.raises(UserError, match="are not as they were written"):
        store.require_sound(contents=True)
    with pytest.raises(UserError, match="are not as they were written"):
        merge_stores([path], tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()
    if name in ("features", "boxes", "class_scores", "attribute_scores"):
        store.require_sound()  # looks at what is small
    else:
        with pytest.raises(UserError, match="are not as they were written"):
            store.require_sound()


def test_every_writer_leaves_checksums(tmp_path: Path) -> None:
    images = [make_regions(f"n{n}", n % 3, attributes=1, seed=n) for n in range(7)]
    for number, layout in enumerate(({}, {"compression": "gzip", "chunk_rows": 2}, {"max_images_per_shard": 3})):
        path = write(tmp_path / str(number), images, attributes=1, **layout)
        merged = merge_stores([path], tmp_path / f"merged {number}.h5")
        for store in (RegionStore(path), merged):
            assert None not in [one.checksums for one in store.headers] and store.verify() == []
            store.require_sound(contents=True)
    same = [RegionStore(tmp_path / name).headers[0].checksums for name in ("0", "1", "merged 2.h5")]
    assert same[0] == same[1] == same[2]  # of the values, however they are stored


def test_a_shard_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    images = [make_regions(f"n{n}", 2, seed=n) for n in range(4)]
    folder = write(tmp_path / "coco", images, max_images_per_shard=2)
    first, second = sorted(folder.glob("*.h5"))
    other = write(tmp_path / "other", images, max_images_per_shard=2) / second.name
    other.replace(second)
    assert RegionStore(folder).verify() == []  # the very same
    first.replace(second)
    write(first, images[2:])
    with pytest.raises(UserError, match=r"shard-00000.h5 is not the file that .*manifest.json was written for"):
        RegionStore(folder)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, output, errors."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_files_without_checksums_stay_what_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sample(tmp_path / "coco", max_images_per_shard=4)
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file.attrs["checksums"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    store = RegionStore(folder)
    assert store.headers[1].checksums is None and store.verify() == []
    store.require_sound(contents=True)
    code, out, _ = printed(capsys, "verify", folder)
    assert code == 0 and f"2 of 2 files have no checksums, as {folder}/shard-00000.h5: changed values pass" in out


def test_damaged_checksums_are_told(tmp_path: Path) -> None:
    path = sample(tmp_path / "coco.h5")
    for text in ("", "[]", "{}", '{"features": 1}', "{" * 60_000):
        with h5py.File(path, "r+") as file:
            file.attrs["checksums"] = text
        with pytest.raises(UserError, match="root attribute checksums is"):
            RegionStore(path)


def test_the_command_prints_summaries_problems_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sample(tmp_path / "coco", max_images_per_shard=4)
    code, out, errors = printed(capsys, "info", folder)
    assert (code, errors) == (0, "")
    lines = {" ".join(line[:20].split()): line[21:] for line in out.splitlines()}
    size = sum(file.stat().st_size for file in folder.glob("*.h5"))
    assert lines == {
        "files": f"2: {folder}/shard-00000.h5 to {folder}/shard-00001.h5",
        "complete": "yes",
        "images": "6, ids like 'n0'",
        "regions": "24",
        "regions an image": "min 4, mean 4.0, max 4",
        "features": "dimension 3, float16, contiguous",
        "attributes a region": "1",
        "label map": "3 classes, 2 attributes",
        "detector": "X152-C4, NMS_FILTER 1",
        "checksums": "yes",
        "bytes": f"{size:,}",
    }
    path = sample(tmp_path / "coco.h5")
    assert printed(capsys, "verify", path) == (0, f"{path}: sound, 6 images\n", "")
    with h5py.File(path, "r+") as file:
        file["features"][5, 1] = np.nan
    code, out, errors = printed(capsys, "verify", path)
    assert (code, errors) == (1, "") and out.startswith(f"{path}: 1 regions have features that are NaN")
    missing = tmp_path / "missing.h5"
    told = f"error: {missing} cannot be opened: No such file or directory.\n"
    assert printed(capsys, "info", missing) == (1, "", told)
    code, out, _ = printed(capsys, "--help")
    assert code == 0 and {"verify", "info", "merge", "compare"} <= set(re.split(r"\W", out))


# Joining.

IMAGES = [make_regions(f"image {i}", i % 5, attributes=1, seed=i) for i in range(12)]


def parts(folder: Path, count: int = 3) -> list[Path]:
    made = []
    for index in range(count):
        path = shard_path(folder / "out.h5", index, count)
        layout = {"chunk_rows": 2, "compression": "gzip"} if index == 1 else {}
        own = {"weights": "abc", "torch": f"2.{index}"}
        made.append(write(path, IMAGES[index::count], attributes=1, provenance=own, **layout))
    return made


def test_parts_become_one_store_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, target = parts(tmp_path), tmp_path / "out.h5"
    write(target, [])
    before = target.read_bytes()
    code, _, errors = printed(capsys, "merge", *files, "--output", target)
    assert code == 1 and "exists already" in errors and target.read_bytes() == before
    assert "12 images of 3 files" in printed(capsys, "merge", *files, "--output", target, "--overwrite")[1]
    store = RegionStore(target)
    assert list(store.image_ids) == [f"image {i}" for first in range(3) for i in range(first, 12, 3)]
    for regions in IMAGES:
        assert_same(store[regions.image_id], regions)
    assert store.verify() == [] and store.headers[0].storage == "contiguous"
    assert store.provenance == {"weights": "abc", "torch": ["2.0", "2.1", "2.2"]}
    code, out, _ = printed(capsys, "info", target)
    assert code == 0 and "weights            abc" in out and '["2.0", "2.1", "2.2"]' in out


def test_what_cannot_be_joined_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = parts(tmp_path, 4)
    with pytest.raises(UserError, match=r"Of the 4 parts of out.h5, 2 are not among the files \(shard.index 1, 3\)"):
        merge_stores([files[2], files[0]], tmp_path / "out.h5")
    with pytest.raises(UserError, match="both hold image 'image 0'"):
        merge_stores([*files, write(tmp_path / "b.h5", IMAGES[:1], attributes=1)], tmp_path / "out.h5")

    def fail(path: Path, *arguments: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging_module, "write_store_file", fail)
    with pytest.raises(UserError, match="No space left on device"):
        merge_stores(files, tmp_path / "out.h5")
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / "b.h5"])


def test_a_store_says_how_its_features_were_made_unless_that_is_damaged(tmp_path: Path) -> None:
    own = {"nms_filter": 1, "versions": {"torch": "2.13"}, "ü": [0.2]}
    assert RegionStore(write(tmp_path / "b.h5", [])).provenance == {}
    path = write(tmp_path / "a.h5", [], provenance=own)
    assert RegionStore(path).provenance == own
    with h5py.File(path, "r+") as file:
        file.attrs["provenance"] = np.bytes_(b"[1]")
    with pytest.raises(UserError, match=r"a\.h5: root attribute provenance is no JSON object"):
        _ = RegionStore(path).provenance


ALIKE = [make_regions(f"{i}", 6, feature_dim=16, seed=i) for i in range(10)]


def written(path: Path, images: list[Regions], labels: LabelMap = LABELS, dim: int = 16) -> RegionStore:
    with RegionStoreWriter(path, feature_dim=dim, detector="d", label_map=labels) as writer:
        for one in images:
            writer.add(one)
    return RegionStore(path)


@pytest.fixture
def first(tmp_path: Path) -> RegionStore:
    return written(tmp_path / "first.h5", ALIKE)


def other(tmp_path: Path, change, **given: object) -> RegionStore:  # type: ignore[no-untyped-def]
    return written(tmp_path / "second.h5", [change(one) for one in ALIKE], **given)  # type: ignore[arg-type]


def reordered(one: Regions) -> Regions:
    """The same regions the other way round, rounded a little."""
    names = ("features", "boxes", "classes", "class_scores", "attributes", "attribute_scores")
    turned = replace(one, **{name: getattr(one, name)[::-1].copy() for name in names})
    turned.features[:] = turned.features * np.float16(1.001)
    return turned


def test_the_same_regions_in_another_order_are_the_same(first: RegionStore, tmp_path: Path) -> None:
    found = compare_stores(first, other(tmp_path, reordered))
    assert found.verdict.startswith("the same") and found.same_box == found.same_tag == 1.0
    assert found.regions == (60, 60) and (found.shared, found.images) == (10, 10)


def test_names_count_and_not_their_numbers(first: RegionStore, tmp_path: Path) -> None:
    labels = LabelMap((LABELS.classes[0], LABELS.classes[2], LABELS.classes[1].upper()), LABELS.attributes)
    swapped = {0: 0, 1: 2, 2: 1}
    second = other(tmp_path, lambda one: replace(one, classes=np.vectorize(swapped.get)(one.classes)), labels=labels)
    assert compare_stores(first, second).same_tag == 1.0
    assert compare_stores(first, other(tmp_path, lambda one: one, labels=labels)).same_tag < 1.0


def test_without_names_nothing_is_said_of_tags(first: RegionStore, tmp_path: Path) -> None:
    found = compare_stores(first, other(tmp_path, lambda one: one, labels=NO_NAMES))
    assert found.verdict.startswith("the same") and ("same tags in these", "a store has no tags") in found.rows()


def noisy(one: Regions) -> Regions:
    noise = np.random.default_rng(0).standard_normal(one.features.shape) * 0.2
    return replace(one, features=(one.features + noise).astype(np.float16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: replace(one, boxes=one.boxes / 2), "the boxes differ"),
        (lambda one: replace(one, features=one.features[::-1].copy()), "boxes agree and features do not"),
        (noisy, "much alike"),
        (lambda one: replace(one, features=one.features * np.float16(1.5)), "much alike"),
        (lambda one: replace(one, width=one.height, height=one.width), "differ in size"),
        (lambda one: make_regions(one.image_id, 0, feature_dim=16), "the boxes differ"),
    ],
)
def test_what_differs_is_said(first: RegionStore, tmp_path: Path, change: object, words: str) -> None:
    assert words in compare_stores(first, other(tmp_path, change)).verdict


def test_a_sample_is_enough(first: RegionStore, tmp_path: Path) -> None:
    found = compare_stores(first, other(tmp_path, lambda one: one), most=3)
    assert (found.shared, found.images, found.regions[0]) == (10, 3, 18)


def test_stores_that_cannot_be_compared(first: RegionStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in common"):
        compare_stores(first, other(tmp_path, lambda one: replace(one, image_id=f"COCO_{one.image_id}")))
    small = written(tmp_path / "small.h5", [make_regions("1", 2)], dim=3)
    with pytest.raises(UserError, match="dimensions are 16 and 3"):
        compare_stores(first, small)


def test_the_command_compares(first: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other(tmp_path, reordered)
    assert main(["compare", str(tmp_path / "first.h5"), str(tmp_path / "second.h5")]) == 0
    printed = capsys.readouterr().out
    assert "10, 10 of them looked at" in printed and "the same features, rounding aside" in printed
    assert main(["compare", str(tmp_path / "first.h5"), str(tmp_path / "none.h5")]) == 1
    capsys.readouterr()
    for unread in (["comp\x1b[31m"], ["compare", "--images", "x\x1b[31m", "a", "b"], ["info", "a", "--\x1b[31m"]):
        assert main(unread) == 1
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("error: ") and r"\x1b[31m" in sentence and sentence.isprintable()
    for wrong, meant in ((["comprae", "a", "b"], "compare"), (["compare", "a", "b", "--imgaes=3"], "--images")):
        assert main(wrong) == 1 and f"; did you mean {meant}?" in capsys.readouterr().err
