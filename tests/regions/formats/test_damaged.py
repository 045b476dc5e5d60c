"""Damage in every format: left out and named where it is asked for, and never more than a sentence."""

from __future__ import annotations

import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest
import torch

from tests.regions.formats.samples import (
    DIM,
    Sample,
    bottom_up_line,
    composed,
    encoded,
    lxmert_line,
    oscar_line,
    packed,
    prediction_line,
    published_folder,
    record,
    samples,
    uniter_fields,
    write_gqa,
    write_lines,
    write_npy_folder,
    write_npz_folder,
    write_records,
    write_uniter_npz,
    write_vinvl_npy,
)
from vinvl.convert import convert
from vinvl.regions import RegionStore
from vinvl.regions.formats.convert import convert_features, run_conversion
from vinvl.regions.formats.lmdb_folder import read_records, read_value
from vinvl.regions.formats.rows import FeatureOptions
from vinvl.run.errors import UserError

IMAGES = samples(8)
READ = FeatureOptions(dim=DIM, workers=1, class_offset=1)


def damaged(image: Sample) -> Sample:
    features = image.features.copy()
    features[0, 0] = np.nan
    return replace(image, features=features)


def rows(line: Callable[[Sample], str], name: str) -> Callable[[Path], Path]:
    """The second row holds NaN, the fourth is cut within its base64, the first comes once more at the end."""

    def source(folder: Path) -> Path:
        lines = [line(image) for image in (*IMAGES, IMAGES[0])]
        lines[1] = line(damaged(IMAGES[1]))
        lines[3] = (
            lines[3].replace(encoded(IMAGES[3].features[0])[:8], "", 1) if '"' in lines[3] else lines[3][:-9] + "\n"
        )
        return write_lines(folder / name, lines, lineidx=True)

    return source


def published(folder: Path) -> Path:
    """The damage is in `predictions.tsv` too: one row is no JSON, one image comes twice."""
    source = published_folder(folder / "in", IMAGES)
    lines = [oscar_line(image) for image in (*IMAGES, IMAGES[0])]
    write_lines(source / "features.tsv", [lines[0], oscar_line(damaged(IMAGES[1])), *lines[2:]], lineidx=True)
    ids = {image.image_id: number for number, image in enumerate(IMAGES)} | {IMAGES[0].image_id: len(IMAGES)}
    (source / "imageid2idx.json").write_text(json.dumps(ids))
    objects = [prediction_line(image) for image in (*IMAGES, IMAGES[2])]
    write_lines(source / "predictions.tsv", [*objects[:3], objects[3][:-9] + "\n", *objects[4:]], lineidx=True)
    return source


def tensors(folder: Path) -> Path:
    content: dict[Any, Any] = {image.image_id: torch.from_numpy(image.rows) for image in IMAGES}
    content[IMAGES[1].image_id] = torch.from_numpy(damaged(IMAGES[1]).rows)
    content[IMAGES[3].image_id] = content[IMAGES[3].image_id].to_sparse()
    torch.save(content | {int(IMAGES[0].image_id): content[IMAGES[0].image_id]}, folder / "in.pt")
    return folder / "in.pt"


def files(write: Callable[[Path, Sequence[Sample]], Path], suffix: str) -> Callable[[Path], Path]:
    def source(folder: Path) -> Path:
        made = write(folder / "in", [*IMAGES[:1], damaged(IMAGES[1]), *IMAGES[2:]])
        path = made / f"{IMAGES[3].image_id}{suffix}"
        path.write_bytes(path.read_bytes()[:-20])
        (made / f"lost{suffix}").mkdir()
        return made

    return source


def database(folder: Path) -> Path:
    records: dict[str, Any] = {image.image_id: record(image) for image in IMAGES}
    records |= {IMAGES[1].image_id: record(damaged(IMAGES[1])), IMAGES[3].image_id: b"\x80\x04}"}
    return write_records(folder / "in", records, [*records, "lost"])


def uniter_database(folder: Path) -> Path:
    values: dict[str, Any] = {f"{image.image_id}.npz": packed(uniter_fields(image)) for image in IMAGES}
    values |= {f"{IMAGES[1].image_id}.npz": packed(uniter_fields(damaged(IMAGES[1])))}
    values |= {f"{IMAGES[3].image_id}.npz": values[f"{IMAGES[3].image_id}.npz"][:-9]}
    return write_records(folder / "in", values | {"__keys__": json.dumps([*values, "lost.npz"]).encode()}, [])


def grids(folder: Path) -> Path:
    """Of one cell a region, with its features."""
    (folder / "in").mkdir()
    for image in IMAGES:
        own = damaged(image) if image is IMAGES[1] else image
        torch.save(torch.from_numpy(own.features.T[None, :, None]), folder / "in" / f"{image.image_id}.pth")
    cut = folder / "in" / f"{IMAGES[3].image_id}.pth"
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "in" / "lost.pth").mkdir()
    return folder / "in"


def gqa_objects(folder: Path) -> Path:
    """In the index the fourth image has more objects than its row, and the first comes twice."""
    made = write_gqa(folder / "in", [*IMAGES[:1], damaged(IMAGES[1]), *IMAGES[2:]])
    index = made / "gqa_objects_info.json"
    info = json.loads(index.read_text())
    info[IMAGES[3].image_id]["objectsNum"] = 99
    again = {IMAGES[0].image_id: info[IMAGES[0].image_id]}
    index.write_text(f"{json.dumps(info)[:-1]}, {json.dumps(again)[1:]}")
    return made


SOURCES = {
    "bottom-up": (rows(bottom_up_line, "in.tsv"), 3),
    "LXMERT": (rows(lxmert_line, "in.tsv"), 3),
    "Oscar": (rows(oscar_line, "in.tsv"), 3),
    "Oscar JSON": (rows(lambda image: oscar_line(image, "json"), "in.tsv"), 3),
    "predictions with features": (rows(lambda image: prediction_line(image, with_features=True), "own.tsv"), 3),
    "published folder": (published, 5),
    "tensors": (tensors, 3),
    "npy": (files(write_npy_folder, ".npy"), 3),
    "npz": (files(write_npz_folder, ".npz"), 3),
    "LMDB": (database, 3),
    "MMF VinVL": (files(write_vinvl_npy, ".npy"), 3),
    "UNITER npz": (files(write_uniter_npz, ".npz"), 3),
    "UNITER LMDB": (uniter_database, 3),
    "grids": (grids, 3),
    "GQA HDF5": (gqa_objects, 3),
}
ASSUMED = ("Oscar", "Oscar JSON", "tensors", "UNITER npz", "UNITER LMDB", "grids")


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_damaged_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    make, left_out = SOURCES[name]
    source, out = make(tmp_path), tmp_path / "out.h5"
    read = msgspec.structs.replace(READ, assume_size=(500, 500)) if name in ASSUMED else READ
    with pytest.raises(UserError):
        convert_features(source, out, msgspec.structs.replace(read, workers=1))
    done = convert_features(source, out, msgspec.structs.replace(read, workers=1, on_damaged="skip"))
    assert (done.images, done.journal.count) == (6, left_out), done
    store = RegionStore(out)
    assert sorted(store.image_ids) == sorted(IMAGES[number].image_id for number in (0, 2, 4, 5, 6, 7))
    np.testing.assert_array_equal(store[IMAGES[2].image_id].features, IMAGES[2].features.astype(np.float16))
    assert store.verify() == []
    assert store.provenance["left_out"] == left_out and store.provenance["on_damaged"] == "skip"
    assert store.provenance["left_out_first"] == done.journal.first
    assert any("NaN" in reason for reason in done.journal.first) and len(done.journal.first) == min(left_out, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, "out.h5", *tmp_path_extra(source)])


def tmp_path_extra(source: Path) -> list[str]:
    return [source.with_suffix(".lineidx").name] if source.suffix == ".tsv" else []


def test_many_are_listed_in_a_file_beside_the_store(tmp_path: Path) -> None:
    lines = [bottom_up_line(image) for image in IMAGES]
    file = write_lines(tmp_path / "in.tsv", [*lines, *lines])
    settings = ("features.on_damaged=skip", "features.workers=1")
    convert(composed(f"from={file}", f"to={tmp_path / 'out.h5'}", *settings))
    listed = (tmp_path / "out.h5.left_out.txt").read_text().splitlines()
    assert len(listed) == 8 and all(f"in.tsv line {9 + number}: image" in row for number, row in enumerate(listed))
    told = run_conversion(file, tmp_path / "two.h5", {"on_damaged": "skip", "workers": 1})
    assert "8 damaged or repeated left out" in told and "two.h5.left_out.txt" in told and told.count("line ") == 5


def test_a_source_of_damage_alone_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.tsv", [bottom_up_line(damaged(image)) for image in IMAGES])
    with pytest.raises(UserError, match=r"in.tsv holds no image that can be used: .*line 1: image '100': features of"):
        convert_features(file, tmp_path / "out.h5", FeatureOptions(workers=1, on_damaged="skip"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.tsv"]


def test_the_first_image_does_not_decide_alone(tmp_path: Path) -> None:
    """Its features are cut just so that another dimension fits, and its row is not that of the format."""
    first = replace(IMAGES[0], features=IMAGES[0].features[:, :3])
    lines = ["100\t1\t2\n", bottom_up_line(first), *map(bottom_up_line, IMAGES[1:])]
    file = write_lines(tmp_path / "in.tsv", lines)
    done = convert_features(file, tmp_path / "out.h5", FeatureOptions(workers=1, on_damaged="skip"))
    assert (done.images, done.journal.count) == (7, 2) and "of dimension 3, expected 8" in done.journal.first[1]


def test_settings_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features: Object contains unknown field `on_damage`"):
        run_conversion(tmp_path, tmp_path / "out.h5", {"on_damage": 1})


def test_an_lmdb_is_read_as_its_own_package_reads_it(tmp_path: Path) -> None:
    """Values of all lengths: in their page, on pages of their own, none; deleted and replaced ones."""
    values = {f"{number:05}".encode(): bytes([number % 256]) * (number * 37 % 9000) for number in range(500)}
    with lmdb.open(str(tmp_path), map_size=2**26, lock=False) as database:
        for part in range(3):
            with database.begin(write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value[: len(value) // (part + 1)])
        with database.begin(write=True) as transaction:
            for number in range(100, 400, 2):
                transaction.delete(b"%05d" % number)
        with database.begin() as transaction, (tmp_path / "data.mdb").open("rb") as file:
            expected = list(transaction.cursor())
            assert [(one.key, read_value(file, one)) for one in read_records(file)] == expected
    assert len(expected) == 350


def test_an_lmdb_that_is_cut_or_has_another_list(tmp_path: Path) -> None:
    big = replace(IMAGES[0], features=np.pad(IMAGES[0].features, ((0, 300), (0, 0))), boxes=IMAGES[0].boxes)
    write_records(tmp_path / "in", {"a": record(IMAGES[1]), "b": record(big)}, ["a", "b"])
    data, out = tmp_path / "in" / "data.mdb", tmp_path / "out.h5"
    whole = data.read_bytes()
    for length in range(0, len(whole) - 4096, 1000):  # what the last page has behind its record is not missed
        data.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"no LMDB, or a damaged one|lies behind the end of the file"):
            convert_features(tmp_path / "in", out, FeatureOptions(workers=1, class_offset=1))
    data.write_bytes(whole)
    assert convert_features(tmp_path / "in", out, FeatureOptions(workers=1, class_offset=1)).images == 2


def bytes_changed(file: Path, seed: int) -> None:
    content, chance = bytearray(file.read_bytes()), random.Random(seed)
    content[chance.randrange(len(content))] = chance.randrange(256)
    file.write_bytes(content[: chance.choice([len(content), chance.randrange(1, len(content))])])


@pytest.mark.parametrize("name", ["npy", "npz", "LMDB", "tensors", "published folder", *list(SOURCES)[-5:]])
def test_changed_bytes_are_never_more_than_a_sentence(tmp_path: Path, name: str) -> None:
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        source = SOURCES[name][0](folder)
        inside = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        bytes_changed(random.Random(seed).choice(inside), seed)
        options = msgspec.structs.replace(READ, assume_size=(500, 500), on_damaged="skip")
        try:
            done = convert_features(source, folder / "out.h5", options)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            journal, listed = done.journal, done.left_out_list
            told = listed.read_text() if listed else "; ".join(journal.first + journal.notes)
            assert done.images + journal.count >= len(IMAGES) or "does not have" in told


def test_nothing_fills_the_memory(tmp_path: Path) -> None:
    """Zeros without end in a small zip, a shape that announces a terabyte, a tensor of one number."""
    folder = write_npz_folder(tmp_path / "in", IMAGES[:1])
    with (
        zipfile.ZipFile(folder / "100.npz", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("boxes.npy", "w") as member,
    ):
        member.write(
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (67108864, 4), }".ljust(128)
        )
        for _ in range(140):
            member.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"100.npz, boxes.npy has more than the 134,217,728 bytes"):
        convert_features(folder, tmp_path / "out.h5", FeatureOptions(workers=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 2**27
    npy = write_npy_folder(tmp_path / "npy", IMAGES[:1]) / "100.npy"
    npy.write_bytes(npy.read_bytes().replace(b"(2, 8), }        ", b"(99999999999, 8),}"[:17].ljust(17)))
    with pytest.raises(UserError, match=r"100.npy (has 64 bytes of data, expected|is no npy file)"):
        convert_features(npy.parent, tmp_path / "out.h5", FeatureOptions(workers=1))
    torch.save({"1": torch.zeros(1, 1).expand(10**6, DIM + 6)}, tmp_path / "in.pt")
    with pytest.raises(UserError, match=r"image '1': it is a tensor of 56,000,000 bytes, which the file does not hold"):
        convert_features(tmp_path / "in.pt", tmp_path / "out.h5", READ)


OTHER_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda rows: rows.to_sparse(),
    "quantized": lambda rows: torch.quantize_per_tensor(rows, 0.1, 0, torch.quint8),
    "truth values": lambda rows: rows.bool(),
    "complex": lambda rows: rows.cfloat(),
    "nowhere": lambda rows: rows.to("meta"),
    "nested": lambda rows: torch.nested.nested_tensor([rows[0], rows[1]]),
    "negative": torch._neg_view,
    "turned": lambda rows: rows.T,
    "list": lambda rows: [1.0],
}


@pytest.mark.parametrize("kind", OTHER_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_named(tmp_path: Path, kind: str) -> None:
    torch.save({"7": OTHER_TENSORS[kind](torch.from_numpy(IMAGES[0].rows))}, tmp_path / "in.pt")
    with pytest.raises(UserError, match=r"in.pt: image '7': it (is|has shape)"):
        convert_features(tmp_path / "in.pt", tmp_path / "out.h5", READ)


def test_columns_that_python_3_wrote_as_it_shows_bytes(tmp_path: Path) -> None:
    columns = lxmert_line(IMAGES[0]).rstrip("\n").split("\t")
    shown = [str(text.encode()) if number in (3, 4, 5, 6, 8, 9) else text for number, text in enumerate(columns)]
    file = write_lines(tmp_path / "in.tsv", ["\t".join(shown) + "\n"])
    convert_features(file, tmp_path / "out.h5", FeatureOptions(workers=1))
    np.testing.assert_array_equal(RegionStore(tmp_path / "out.h5")["100"].boxes, IMAGES[0].boxes)
