"""Pictures of every kind become RGB, broken ones a sentence."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.picture_samples import bomb, broken_pictures, gradient, save, sixteen_bit, truncated, with_orientation
from vinvl.pictures import ReadingOptions, picture_size, read_picture, rgb_picture
from vinvl.run.errors import UserError

PLAIN, IGNORE = ReadingOptions(), ReadingOptions(exif_orientation="ignore")


def pixels(path: Path, options: ReadingOptions = PLAIN) -> np.ndarray:
    image = read_picture(path, options)
    assert image.mode == "RGB" and image.size == picture_size(path, options)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "gif", "jpg"])
def test_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {"quality": 98} if suffix == "jpg" else {}
    path = save(tmp_path / f"a.{suffix}", **options)
    tolerance = {"jpg": 12, "gif": 40}.get(suffix, 0)
    assert np.abs(pixels(path) - np.asarray(gradient()).astype(int)).max() <= tolerance


def test_grey_black_and_white_palette_and_cmyk(tmp_path: Path) -> None:
    grey = gradient().convert("L")
    assert (pixels(save(tmp_path / "l.png", grey)) == np.asarray(grey)[..., None]).all()
    two = grey.convert("1")
    assert set(np.unique(pixels(save(tmp_path / "1.png", two)))) == {0, 255}
    palette = gradient().convert("P", palette=Image.Palette.ADAPTIVE)
    assert (pixels(save(tmp_path / "p.png", palette)) == np.asarray(palette.convert("RGB"))).all()
    cmyk = save(tmp_path / "cmyk.jpg", gradient().convert("CMYK"), quality=98)
    assert np.abs(pixels(cmyk) - np.asarray(gradient()).astype(int)).max() < 30


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = pixels(sixteen_bit(tmp_path / "16.png"))
    assert values[0, 0].tolist() == [0] * 3 and values[0, -1].tolist() == [255] * 3
    assert abs(int(values[0, 20, 0]) - 131) < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_show_the_colour_below(tmp_path: Path, mode: str) -> None:
    """Half of the picture is transparent, with black hidden under it."""
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (10, 0, 20, 10))
    path = save(tmp_path / "a.png", image.convert(mode))
    assert pixels(path)[5, 2].tolist() == [255] * 3 and pixels(path)[5, 15].tolist() == [200] * 3
    assert pixels(path, ReadingOptions(transparency="red"))[5, 2].tolist() == [255, 0, 0]
    assert pixels(path, ReadingOptions(transparency="drop"))[5, 2].tolist() == [0] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says_unless_it_is_to_be_ignored(tmp_path: Path, orientation: int) -> None:
    path = with_orientation(tmp_path / "a.jpg", orientation)
    as_it_lies = np.asarray(gradient()).astype(int)
    assert np.abs(pixels(path, IGNORE) - as_it_lies).max() < 12
    turned = pixels(path)
    assert turned.shape[:2] == ((40, 30) if orientation >= 5 else (30, 40))
    corner = turned[0, 0, :2] > 128  # red, green of what is then at the top left
    expected = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert tuple(corner.astype(int)) == expected
    upright = np.asarray(read_picture(path, PLAIN))
    for kind, options in (("png", {}), ("webp", {"lossless": True}), ("tif", {})):  # Pillow turns a TIFF in any case
        exif = Image.Exif()
        exif[0x0112] = orientation
        other = save(tmp_path / f"a.{kind}", Image.open(path), exif=exif, **options)
        assert (pixels(other) == upright).all()
        assert (pixels(other, IGNORE) == (upright if kind == "tif" else np.asarray(Image.open(path)))).all()


def exif_block(orientation: int, cut: int | None = None) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return (b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0" * 4)[:cut]


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def test_orientations_are_found_where_opencv_finds_them(tmp_path: Path) -> None:
    """Tried with OpenCV 5.0: not in XMP, at either end of a PNG, in the first of two blocks, in as much as is there."""
    begin = b"http://ns.adobe.com/xap/1.0/\0"
    for blocks, turned in (
        ([begin + XMP], False),
        ([begin + XMP, b"Exif\0\0" + exif_block(8)], True),
        ([b"Exif\0\0" + exif_block(8), b"Exif\0\0" + exif_block(3)], True),
        ([b"Exif\0\0" + exif_block(9)], False),
        ([b"Exif\0\0" + exif_block(0)], False),
        ([b"Exif\0\0" + exif_block(6, cut=15)], False),
        ([b"Exif\0\0" + exif_block(6, cut=21)], True),
        ([b"Exif\0\0nothing of the kind"], False),
    ):
        save(tmp_path / "a.jpg", quality=98)
        content = (tmp_path / "a.jpg").read_bytes()
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks)
        (tmp_path / "a.jpg").write_bytes(content[:2] + segments + content[2:])
        assert pixels(tmp_path / "a.jpg").shape[:2] == ((40, 30) if turned else (30, 40)), blocks
    content = save(tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I", 26) + b"eXIf" + exif_block(6)
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    for before in (b"IDAT", b"IEND"):
        place = content.index(before) - 4
        (tmp_path / "a.png").write_bytes(content[:place] + chunk + content[place:])
        assert pixels(tmp_path / "a.png").shape[:2] == (40, 30)
        with Image.open(tmp_path / "a.png") as opened:
            assert rgb_picture(opened, PLAIN).size == (30, 40) and rgb_picture(opened, IGNORE).size == (40, 30)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0, 0] > 200


def test_tiny_and_long_pictures(tmp_path: Path) -> None:
    assert pixels(save(tmp_path / "a.png", gradient(1, 1))).shape == (1, 1, 3)
    assert pixels(save(tmp_path / "b.png", gradient(3000, 1))).shape == (1, 3000, 3)


def test_broken_files_are_one_sentence_each(tmp_path: Path) -> None:
    for name, word in broken_pictures(tmp_path).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserError) as raised:
                read_picture(tmp_path / name, PLAIN)
        assert str(tmp_path / name) in str(raised.value) and word in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        read_picture(tmp_path / "none.png", PLAIN)
    with pytest.raises(UserError, match="cut off or damaged"):
        read_picture(tmp_path, PLAIN)


def test_a_picture_may_be_larger_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", gradient(100, 100))
    with pytest.raises(UserError, match=r"100 × 100 pixels, and max_pixels is 9,999"):
        picture_size(path, ReadingOptions(max_pixels=9_999))
    assert picture_size(path, ReadingOptions(max_pixels=10_000)) == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    large = ReadingOptions(max_pixels=2_000_000_000)
    huge = bomb(tmp_path / "huge.png")
    with pytest.raises(UserError, match="more than"):
        picture_size(huge, PLAIN)
    assert picture_size(huge, large) == (40_000, 40_000)
    with pytest.raises(UserError, match="40,000 × 40,000 pixels, and max_pixels is 178,956,970"):
        read_picture(huge, PLAIN)


def test_a_picture_in_memory(tmp_path: Path) -> None:
    assert rgb_picture(Image.new("LA", (2, 2), (0, 0)), PLAIN).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UserError, match="the picture has pixels of 0 to 70000"):
        rgb_picture(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), PLAIN)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"exif_orientation": "yes"}, "exif_orientation"),
        ({"transparency": "whitish"}, "transparency"),
        ({"max_pixels": 0}, "max"),
        ({"max_pixels": "many"}, "max"),
    ],
)
def test_options_that_are_none(values: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        ReadingOptions(**values)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    cut=st.floats(0, 1),
)
def test_damaged_bytes_give_a_picture_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[float, int]], cut: float
) -> None:
    file = io.BytesIO()
    gradient().save(file, kind)
    content = bytearray(file.getvalue())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(content[: max(1, int(cut * len(content)))])
    try:
        assert read_picture(path, ReadingOptions(max_pixels=1_000_000)).mode == "RGB"
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_truncated_is_found_by_decoding_alone(tmp_path: Path) -> None:
    path = truncated(tmp_path / "a.jpg")
    assert picture_size(path, PLAIN) == (200, 150)
    with pytest.raises(UserError, match="cut off"):
        read_picture(path, PLAIN)
