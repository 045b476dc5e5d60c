"""Files that are no sound store: each gives one sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.regions.samples import LABELS, make_regions, write
from vinvl.regions import LabelMap, RegionStore, RegionStoreWriter
from vinvl.regions.__main__ import compare_stores, summary
from vinvl.regions.layout import _array_layout
from vinvl.regions.merging import merge_stores
from vinvl.run.errors import UserError


def sample(path: Path, **layout: Any) -> Path:
    return write(path, [make_regions(str(n), 4, attributes=1, seed=n) for n in range(6)], attributes=1, **layout)


def refusal(path: Path | list[Path]) -> str:
    """The sentence that opening and reading gives."""
    with pytest.raises(UserError) as caught:
        RegionStore(path).at(0)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def edit(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace_dataset(name: str, **arguments: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **arguments)

    return change


def set_attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def instead(make: Callable[[h5py.File], object]) -> Callable[[h5py.File], None]:
    """Something else in place of the boxes."""

    def change(file: h5py.File) -> None:
        file.move("boxes", "others")
        make(file)

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((24, 4), "<f4")
    layout[...] = h5py.VirtualSource("elsewhere.h5", "boxes", (24, 4))
    file.create_virtual_dataset("boxes", layout)


def put(file: h5py.File, link: object) -> None:
    file["boxes"] = link


def external(file: h5py.File) -> None:
    file.create_dataset("boxes", (24, 4), "<f4", external=[("/etc/passwd", 0, 24 * 16)])


def committed_type(file: h5py.File) -> None:
    file["named"] = np.dtype("<f4")
    file.create_dataset("boxes", data=file["others"][...], dtype=file["named"])


def other_filter(file: h5py.File) -> None:
    values = file["classes"][...]
    del file["classes"]
    file.create_dataset("classes", data=values, chunks=(4,), scaleoffset=0)


def bomb(file: h5py.File) -> None:
    for name in ("offsets", "sizes", "image_ids"):
        dtype = file[name].dtype
        del file[name]
        shape = {"sizes": (10**10, 2), "offsets": (10**10 + 1,)}.get(name, (10**10,))
        file.create_dataset(name, shape, dtype, chunks=True, compression="gzip")


EDITS: list[tuple[str, Callable[[h5py.File], None], str]] = [
    ("foreign", lambda file: file.attrs.__delitem__("format"), "is an HDF5 file but not a region store"),
    ("other format", set_attribute("format", "keras"), "is an HDF5 file but not a region store"),
    ("format of odd type", set_attribute("format", np.zeros((2, 2))), "attribute format is missing or not UTF-8"),
    ("version 2", set_attribute("version", 2), "has layout version 2, this vinvl reads version 1"),
    ("version of odd type", set_attribute("version", "one"), "attribute version is missing or not a whole"),
    ("half written", set_attribute("complete", np.uint8(0)), "is only half written"),
    ("never marked", lambda file: file.attrs.__delitem__("complete"), "is only half written"),
    ("wrong dimension", set_attribute("feature_dim", 2048), "features have dimension 3 but the file declares 2048"),
    ("dimension of odd type", set_attribute("feature_dim", 3.0), "attribute feature_dim is missing or not a whole"),
    ("detector not UTF-8", set_attribute("detector", b"\xff\xfe"), "attribute detector is missing or not UTF-8"),
    ("no label map", lambda file: file.attrs.__delitem__("label_map"), "attribute label_map is missing"),
    ("label map no JSON", set_attribute("label_map", "{"), "label map is not valid JSON"),
    ("label map too deep", set_attribute("label_map", "[" * 60_000), "the label map: Expected `object`"),
    ("missing dataset", lambda file: file.__delitem__("offsets"), "has no dataset offsets"),
    ("group for dataset", instead(lambda file: file.create_group("boxes")), "has no dataset boxes"),
    ("link for dataset", instead(lambda file: put(file, h5py.ExternalLink("/etc/passwd", "boxes"))), "no dataset"),
    ("soft link", instead(lambda file: put(file, h5py.SoftLink("/others"))), "has no dataset boxes"),
    ("virtual dataset", instead(virtual), "the data of boxes lie elsewhere"),
    ("external storage", instead(external), "the data of boxes lie elsewhere"),
    ("committed type", instead(committed_type), "the data of boxes lie elsewhere"),
    ("filter of another kind", other_filter, "classes is compressed in a way that is not read"),
    ("bomb", bomb, "has 0 bytes that claim to be 80,000,000,008 bytes"),
    ("huge chunk", replace_dataset("boxes", shape=(24, 4), dtype="f4", chunks=(2**27, 4), maxshape=(None, 4)),
     "that claim to be 384 bytes, in chunks of 2,147,483,648"),
    ("integer features", replace_dataset("features", shape=(24, 3), dtype="i2"), "features is stored as int16"),
    ("double boxes", replace_dataset("boxes", shape=(24, 4), dtype="f8"), "boxes is stored as float64"),
    ("big-endian sizes", replace_dataset("sizes", shape=(6, 2), dtype=">i4"), "sizes is stored as >i4"),
    ("text of any length", replace_dataset("image_ids", data=["a"] * 6), "image_ids must be fixed-length"),
    ("null dataset", replace_dataset("boxes", data=h5py.Empty("f4")), "boxes is empty of shape"),
    ("never written", replace_dataset("boxes", shape=(24, 4), dtype="f4"), "boxes was declared but never written"),
    ("rank", replace_dataset("features", data=np.zeros(24, np.float16)), "features has shape (24,), the layout wants"),
    ("rows", replace_dataset("boxes", data=np.zeros((9, 4), np.float32)), "boxes has shape (9, 4), (24, 4) was"),
    ("images", replace_dataset("sizes", data=np.zeros((5, 2), np.int32)), "sizes has shape (5, 2), (6, 2) was"),
    ("total", replace_dataset("offsets", data=np.arange(7)), "offsets run from 0 to 6, features have 24 rows"),
    ("offsets out of range", replace_dataset("offsets", data=np.array([0, 99, 8, 12, 16, 20, 24])),
     "offsets of image number 0 are damaged (0 to 99)"),
    ("size", replace_dataset("sizes", data=np.zeros((6, 2), np.int32)), "image number 0 has size 0 x 0"),
    ("id not UTF-8", replace_dataset("image_ids", data=np.array([b"\xff"] * 6)), "id of image number 0 is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_edited_files(tmp_path: Path, change: Callable[[h5py.File], None], sentence: str) -> None:
    told = refusal(edit(sample(tmp_path / "coco.h5"), change))
    assert sentence in told and str(tmp_path / "coco.h5") in told


def test_a_shard_stays_beside_its_manifest(tmp_path: Path) -> None:
    folder, other = sample(tmp_path / "coco", max_images_per_shard=3), tmp_path / "other"
    expected = RegionStore(folder).at(5).features
    (tmp_path / "link").symlink_to(folder)
    other.mkdir()
    (folder / "shard-00001.h5").rename(other / "moved.h5")
    (folder / "shard-00001.h5").symlink_to(other / "moved.h5")
    assert "names the shard 'shard-00001.h5', which is a link out of its folder" in refusal(folder)
    assert "which is a link out of its folder" in refusal(tmp_path / "link")
    (other / "manifest.json").symlink_to(folder / "manifest.json")  # as a cache of downloads has it
    (other / "shard-00000.h5").symlink_to(folder / "shard-00000.h5")
    (other / "shard-00001.h5").symlink_to("moved.h5")
    np.testing.assert_array_equal(RegionStore(other).at(5).features, expected)


def test_files_that_are_no_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "coco.h5"
    assert refusal(path) == f"{path} cannot be opened: No such file or directory."
    os.mkfifo(tmp_path / "pipe.h5")  # which would be waited for
    assert f"{tmp_path}/pipe.h5 is no file" in refusal(tmp_path / "pipe.h5")
    for content in (b"", b"\x89HDF", b"PK\x03\x04 some zip", bytes(5000)):
        path.write_bytes(content)
        assert f"{path} is not an HDF5 file" in refusal(path)
    foreign = tmp_path / "keras.h5"
    with h5py.File(foreign, "w") as file:
        file["weights"] = np.zeros(3)
    assert f"{foreign} is an HDF5 file but not a region store" in refusal(foreign)


def test_a_file_cut_at_any_place(tmp_path: Path) -> None:
    content = sample(tmp_path / "coco.h5").read_bytes()
    cut = tmp_path / "cut.h5"
    for length in (8, 50, 96, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        told = refusal(cut)
        assert f"{cut} is truncated" in told or f"{cut} is a damaged HDF5 file" in told


def test_the_end_of_every_dataset_is_compared_with_the_size_of_the_file(tmp_path: Path) -> None:
    path = sample(tmp_path / "coco.h5")
    layout = RegionStore(path).headers[0].arrays["features"]
    end = int(layout.offset or 0) + 24 * 3 * 2
    with h5py.File(path) as file:
        assert _array_layout(path, file, "features", file_bytes=end) == layout
        with pytest.raises(UserError, match=r"coco.h5: dataset features reaches beyond the end of the file"):
            _array_layout(path, file, "features", file_bytes=end - 1)


def test_every_flipped_byte_is_read_or_refused(tmp_path: Path) -> None:
    """No damage of the HDF5 structures ends in anything but an answer or a sentence."""
    path = sample(tmp_path / "coco.h5")
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for position in [*range(0, 96, 4), *random.integers(96, len(content), size=30).tolist()]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            store = RegionStore(path)
            store.verify()
            store.at(0).rows()
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def mutated(random: np.random.Generator, content: bytes) -> bytes:
    """Bytes changed, cut off, left out or put in, in one to three places."""
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(content) + 1))
        head, tail = content[:place], content[place:]
        put = (b"\xff" * 8, bytes(8), (2**63 - 1).to_bytes(8, "little"), random.bytes(3))[int(random.integers(4))]
        content = (head, head + put + tail[len(put) :], head + tail[1:], head + put + tail)[int(random.integers(4))]
    return content


def test_whatever_is_mutated_is_read_or_refused_by_everything(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    good = sample(tmp_path / "good.h5")
    bases = [good, sample(tmp_path / "zip.h5", compression="gzip", chunk_rows=5)]
    folder = sample(tmp_path / "folder", max_images_per_shard=3)
    contents = [(tmp_path / "a.h5", tmp_path / "a.h5", base.read_bytes()) for base in bases]
    contents += [(folder, path, path.read_bytes()) for path in sorted(folder.iterdir())]
    for number in range(24):
        store, path, content = contents[number % len(contents)]
        path.write_bytes(mutated(random, content))
        uses: list[Callable[[], object]] = [
            lambda store=store: RegionStore(store).require_sound(),
            lambda store=store: [RegionStore(store).at(index).rows() for index in range(6)],
            lambda store=store: (RegionStore(store).verify(), summary(RegionStore(store))),
            lambda store=store: merge_stores([store], tmp_path / "merged.h5", overwrite=True),
            lambda store=store: compare_stores(RegionStore(store), RegionStore(good)),
        ]
        for use in uses:
            try:
                use()
            except UserError as error:
                assert "\n" not in str(error)
        path.write_bytes(content)


def test_a_damaged_compressed_block_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "coco.h5", [make_regions("1", 900, feature_dim=16)], feature_dim=16, compression="gzip")
    with h5py.File(path) as file:
        block = file["features"].id.get_chunk_info(3)
    content = bytearray(path.read_bytes())
    content[block.byte_offset : block.byte_offset + block.size] = bytes(block.size)
    path.write_bytes(content)
    store = RegionStore(path)
    with pytest.raises(UserError, match=r"coco.h5: image number 0 cannot be read"):
        store["1"]
    assert any("features cannot be read" in problem for problem in store.verify())


def test_what_an_interrupted_writer_left_is_told(tmp_path: Path) -> None:
    writer = RegionStoreWriter(tmp_path / "coco.h5", feature_dim=3, detector="", label_map=LABELS)
    left = next(tmp_path.glob("*.partial"))
    shutil.copytree(left, tmp_path / "kept")
    writer.abort()
    left = (tmp_path / "kept").rename(tmp_path / left.name)
    assert f"Its writer did not finish: {left.name} is what it left" in refusal(tmp_path / "coco.h5")
    assert f"{left} was left by a writer that did not finish" in refusal(left)
    sample(left / "shard-00000.h5")
    assert "was left by a writer that did not finish" in refusal(left / "shard-00000.h5")


def manifest_of(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "other"}, "is not the manifest of a region store"),
        ({"version": 2}, "has layout version 2, this vinvl reads version 1"),
        ({"shards": []}, "lists no shards"),
        ({"shards": ["shard-00000.h5"]}, "has a shard entry without file and images"),
        ({"shards": [{"file": "shard-00000.h5", "images": "4"}]}, "has a shard entry without file and images"),
        ({"shards": [{"file": "shard-00009.h5", "images": 4}]}, "names the shard 'shard-00009.h5', which is missing"),
        ({"shards": [{"file": "../coco.h5", "images": 4}]}, "is not a plain file name"),
        ({"shards": [{"file": "a\0", "images": 4}]}, "is not a plain file name"),
        ({"shards": [{"file": "shard-00000.h5", "images": 5}]}, "holds 4 images but"),
        ({"shards": [{"file": "shard-00000.h5", "images": 4}] * 2}, "both hold image '0'"),
    ],
)
def test_edited_manifests(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    folder = sample(tmp_path / "coco", max_images_per_shard=4)
    manifest_of(folder, **changes)
    told = refusal(folder)
    assert sentence in told and str(folder) in told


def test_folders_without_a_sound_manifest(tmp_path: Path) -> None:
    assert "is a folder without manifest.json" in refusal(tmp_path)
    for content in (b"{", b"\xff", b"[]", b"[" * 100_000):
        (tmp_path / "manifest.json").write_bytes(content)
        assert str(tmp_path / "manifest.json") in refusal(tmp_path)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    def one(name: str, image_id: str, **changes: object) -> Path:
        arguments = {"feature_dim": 3, "detector": "X152", "label_map": LABELS} | changes
        with RegionStoreWriter(tmp_path / name, **arguments) as writer:  # type: ignore[arg-type]
            writer.add(make_regions(image_id, 1, feature_dim=arguments["feature_dim"]))  # type: ignore[arg-type]
        return tmp_path / name

    first = one("a.h5", "1")
    for number, (words, image_id, changes) in enumerate((
        ("cannot be one store: features of dimension 3 and 5", "2", {"feature_dim": 5}),
        ("cannot be one store: features of type float16 and float32", "2", {"feature_dtype": "float32"}),
        ("cannot be one store: detector X152 and X101", "2", {"detector": "X101"}),
        ("cannot be one store: their label maps differ", "2", {"label_map": LabelMap(("background", "a", "b"), ())}),
        ("both hold image '1'", "1", {}),
    )):  # fmt: skip
        other = one(f"{number}.h5", image_id, **changes)  # type: ignore[arg-type]
        assert f"{first} and {other} {words}" in refusal([first, other])
    assert "the list of files is empty" in refusal([])
