"""The page of captions: whole in one file, and nothing in a caption can break out of its place."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from vinvl.pages.pages import CaptionedPicture, write_caption_page
from vinvl.run.errors import UserError


class Reader(HTMLParser):
    """Collects tags, image sources and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_pictures_captions_and_references(tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    Image.new("RGB", (4, 3), "red").save(picture)
    hostile = '<script>alert("a")</script> & "b"'
    write_caption_page(tmp_path / "page.html", "T & <i>", [CaptionedPicture(picture, hostile, ["a red thing", "<b>"])])
    picture.unlink()  # the page needs nothing beside it
    reader = Reader()
    reader.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in reader.tags and "b" not in reader.tags and "i" not in reader.tags
    assert hostile in reader.text and "a red thing" in reader.text and "<b>" in reader.text
    (source,) = reader.sources
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_caption_page(tmp_path / "file" / "page.html", "T", [])
