"""Some examples of each evaluation in training, for a person: a table and a sheet of pictures with boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from vinvl.examples import Outcome
from vinvl.regions.store import RegionStore
from vinvl.run.checkpoint import logged_step
from vinvl.run.errors import UserError, printable

if TYPE_CHECKING:
    from PIL import Image

CELL, TEXT_LINES, COLUMNS = (320, 240), 3, 4  # pixels of a picture, lines below it, pictures side by side
MOST = 16  # examples
LOOKED_THROUGH = 1000  # outcomes, for examples of different images
NAMED = 12  # boxes of a picture, the first, that are drawn
GREY = "#e8e8e8"
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
PANEL = "val/examples"


class PanelFrame(NamedTuple):
    """A picture of an example, or the empty frame of one that is not at hand."""

    width: int  # pixels that the boxes are in
    height: int
    boxes: np.ndarray  # (R, 4) x1 y1 x2 y2
    names: Sequence[str]  # R
    picture: Image.Image | None = None


class Shown(NamedTuple):
    """An example of an evaluation."""

    text: str  # what was asked; "" if nothing
    answer: str
    truth: str
    score: float
    frames: tuple[PanelFrame, ...] = ()


PictureOf = Callable[[RegionStore, int], "Image.Image | None"]
"""The picture of the image at a place of a store, if it is at hand."""


def shown_outcomes(outcomes: Iterable[Outcome], count: int, store: RegionStore, picture_of: PictureOf) -> list[Shown]:
    """The first of these outcomes that are of different images, with the regions that the store has by their ids."""
    found, of_image = [], dict[str, Outcome]()
    for one in islice(outcomes, LOOKED_THROUGH):
        of_image.setdefault(one.image_id, one)
        if len(of_image) == count:
            break
    for one in of_image.values():
        places = list(places_in(store, one.image_id))
        frames = tuple(frame_of(store, place, picture_of(store, place)) for place in places)
        found.append(Shown(one.text, one.answer, " | ".join(dict.fromkeys(one.truth)), one.score, frames))
    return found


def places_in(store: RegionStore, image_id: str) -> Iterator[int]:
    """Of an image, or of the two whose ids `Outcome` joins."""
    for name in (image_id, *image_id.split(" ")):
        try:
            yield store.index_of(name)
        except UserError:
            continue
        if name == image_id:
            return


def frame_of(store: RegionStore, place: int, picture: Image.Image | None) -> PanelFrame:
    """The regions of a store's image."""
    regions, classes = store.at(place), store.label_map.classes
    names = [classes[one] if one < len(classes) else str(one) for one in regions.classes[:NAMED].tolist()]
    return PanelFrame(regions.width, regions.height, regions.boxes[:NAMED], names, picture)


def table(shown: Sequence[Shown]) -> list[tuple[str, str, str, str]]:
    """Rows of text, answer, truth and score."""
    return [(one.text, one.answer, one.truth, f"{one.score:.0f}") for one in shown]


def markdown(shown: Sequence[Shown]) -> str:
    """The same as a table; what is quoted cannot be more than text in it."""
    rows = [(*(quoted(cell) for cell in row),) for row in table(shown)]
    lines = [("asked", "answer", "truth", "score"), ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quoted(text: str) -> str:
    """A text that markdown shows as it is."""
    return "".join(f"&#{ord(sign)};" if sign in "|\\`*_{}[]<>()#+-!&~" else sign for sign in printable(text))


def sheet(shown: Sequence[Shown]) -> Image.Image:
    """The pictures of all examples with their boxes, side by side, and below each what was asked, said and true."""
    from PIL import Image, ImageDraw, ImageFont

    font, line, width = ImageFont.load_default(13), 18, CELL[0]
    images = [[drawn(frame, (width // len(one.frames) - 4, CELL[1])) for frame in one.frames] for one in shown]
    tallest = max((image.height for some in images for image in some), default=0)
    height, rows = tallest + TEXT_LINES * line + 6, -(-len(shown) // COLUMNS)
    whole = Image.new("RGB", (width * min(COLUMNS, len(shown)), height * rows), "white")
    draw = ImageDraw.Draw(whole)
    for number, one in enumerate(shown):
        left, top = number % COLUMNS * width, number // COLUMNS * height
        for place, image in enumerate(images[number]):
            whole.paste(image, (left + place * width // len(images[number]), top))
        said = f"{one.answer}  ({one.score:.0f})"
        for row, text in enumerate((one.text, f"> {said}", f"= {one.truth}")):
            cut = printable(text)
            while draw.textlength(cut, font) > width - 8:
                cut = f"{cut[: -max(2, len(cut) // 10)]}…"
            draw.text((left + 2, top + tallest + 2 + row * line), cut, "black", font)
    return whole


def drawn(frame: PanelFrame, room: tuple[int, int]) -> Image.Image:
    """A picture with its boxes and their names, as large as there is room."""
    from PIL import Image, ImageDraw, ImageFont

    scale = min(room[0] / max(frame.width, 1), room[1] / max(frame.height, 1))
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    image = Image.new("RGB", size, GREY) if frame.picture is None else frame.picture.convert("RGB").resize(size)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for number, (box, name) in enumerate(zip(frame.boxes.tolist(), frame.names, strict=True)):
        x1, x2 = (min(max(box[side] * scale, 0), size[0] - 1) for side in (0, 2))
        y1, y2 = (min(max(box[side] * scale, 0), size[1] - 1) for side in (1, 3))
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour)
        draw.rectangle(draw.textbbox((x1 + 2, y1 + 1), printable(name), font), fill=colour)
        draw.text((x1 + 2, y1 + 1), printable(name), "white", font)
    return image


def has_tables(logger: Any) -> bool:
    """Whether a logger takes tables and pictures as Lightning's of Weights & Biases does."""
    return hasattr(logger, "log_table") and hasattr(logger, "log_image")


class ExamplePanels(Callback):
    """After each evaluation in training the same few examples, to TensorBoard and Weights & Biases.

    Args:
        count: of examples, at most 16: the first of different pictures that were evaluated, on rank 0.
        images: where their pictures lie (`vinvl.pictures.look_for`); None: boxes are drawn on an empty frame.
    """

    def __init__(self, count: int = 8, images: str | None = None) -> None:
        self.count, self.images = min(count, MOST), images
        self._pictures: dict[int, dict[int, str]] = {}  # by the identity of a store: place of an image → its picture

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loggers: list[Any] = [one for one in trainer.loggers if isinstance(one, TensorBoardLogger) or has_tables(one)]
        skipped = trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero
        if skipped or not loggers or self.count < 1 or not hasattr(pl_module, "shown_examples"):
            return
        task: Any = pl_module
        shown: list[Shown] = task.shown_examples(self.count, self.picture_of)
        if not shown:
            return
        picture = sheet(shown) if any(one.frames for one in shown) else None
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(PANEL, markdown(shown), logged_step(trainer))
                if picture is not None:
                    logger.experiment.add_image(PANEL, np.asarray(picture), logged_step(trainer), dataformats="HWC")
            else:
                logger.log_table(PANEL, columns=["asked", "answer", "truth", "score"], data=table(shown))
                if picture is not None:
                    logger.log_image(f"{PANEL}/pictures", [picture])

    def picture_of(self, store: RegionStore, place: int) -> Image.Image | None:
        """The picture of a store's image; None where there is none, or one that cannot be read."""
        from vinvl.pictures import ReadingOptions, pictures_of_store, read_picture

        if self.images is None:
            return None
        if id(store) not in self._pictures:
            self._pictures[id(store)] = pictures_of_store(store, self.images).places
        path = self._pictures[id(store)].get(place)
        try:
            return None if path is None else read_picture(path, ReadingOptions())
        except UserError:
            return None
