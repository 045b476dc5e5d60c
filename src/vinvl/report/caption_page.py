"""Captions next to their pictures, as one HTML file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vinvl.report.page import write_page

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}

STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.25rem }
figcaption { padding: .6rem .8rem }
.ours { font-weight: 600 }
.people { color: #555; margin: .35rem 0 0; padding-left: 1.1rem }
"""


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture file with a model's caption and what people wrote."""

    picture: Path
    caption: str
    references: Sequence[str]


def write_caption_page(path: Path, title: str, pictures: Sequence[CaptionedPicture]) -> None:
    """One HTML file with everything in it, pictures included: it can be moved and mailed.

    Raises:
        UserError: the file cannot be written.
    """
    figures = "\n".join(_figure(one) for one in pictures)
    note = "<p>Bold: the model's caption. Below it: captions that people (here the generator) gave.</p>"
    write_page(path, title, f"{note}\n<main>\n{figures}\n</main>", STYLE)


def _figure(one: CaptionedPicture) -> str:
    data = base64.b64encode(one.picture.read_bytes()).decode("ascii")
    source = f"data:{MEDIA_TYPES[one.picture.suffix.lower()]};base64,{data}"
    people = "".join(f"<li>{html.escape(text)}</li>" for text in one.references)
    return (
        f'<figure><img src="{source}" alt="{html.escape(one.caption)}"><figcaption>'
        f'<div class="ours">{html.escape(one.caption)}</div><ul class="people">{people}</ul></figcaption></figure>'
    )
