"""What all pages are made with: one HTML file with everything in it, which can be moved and mailed."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from vinvl.files import write_text_atomically

BASE_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 88rem; padding: 0 1rem; color: #1b1b1b;
  background: #fff }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden }
img { width: 100%; display: block; background: #f3f3f3 }
"""


def write_page(path: Path, title: str, body: str, style: str = "", script: str = "") -> None:
    """Writes a page whole or not at all; `body` is HTML, the title text.

    Raises:
        UserError: the file cannot be written.
    """
    code = f"<script>{script}</script>\n" if script else ""
    write_text_atomically(
        path,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{BASE_STYLE}{style}</style>\n<h1>{html.escape(title)}</h1>\n{body}\n{code}</html>\n",
    )


def jpeg_source(picture: Image.Image, longest_side: int, quality: int = 85) -> str:
    """The picture, made smaller where it is larger, as the value of an `src`."""
    small = picture.convert("RGB")
    small.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
