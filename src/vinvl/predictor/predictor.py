"""A trained model and a detector, and what they say of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.tags import StoreTags, TagTokens, tag_source
from vinvl.models.config import SpecialTokens
from vinvl.predictor.pictures import Finder, Looking, Picture, Place, key_of
from vinvl.predictor.skills import (
    Answer,
    Answering,
    Caption,
    Captioning,
    Judging,
    Matching,
    PictureRegions,
    checked_text,
    is_many,
    paired,
)
from vinvl.predictor.trained import TrainedModel
from vinvl.regions.regions import RegionSource
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

WINDOW = 128  # pictures, or pairs of picture and text, that are in memory at a time
NEEDED = {
    "ask": "ask needs one that was trained for VQA or GQA",
    "caption": "caption needs a captioning model",
    "score": "score needs one that was trained for image-text retrieval or, for statements about two pictures, NLVR2",
}
Pictures = Sequence[Picture]
Texts = Sequence[str]
PicturePair = tuple[Picture, Picture]
Skill = Answering | Captioning | Judging | Matching
Kind = TypeVar("Kind", Answering, Captioning, Matching)
Work = Callable[[list[Place], list[str]], Sequence[Any]]
"""Of some pictures the places of their regions, one after the other, and the texts → the results."""


class Predictor:
    """What a trained model says of pictures; `vinvl.load` makes it.

    Wherever a picture is asked for, it may be the id of an image in `features` (an id goes before a file of that name),
    the path of a file, a Pillow image of any mode, or a NumPy array, uint8 (H, W, 3) in the order red, green, blue, or
    (H, W). Wherever one picture or text is asked for, there may be many, in a list: the result is then a list. One
    picture goes with all texts, one text with all pictures, and lists of one length belong together. Of many,
    `WINDOW` are worked on at a time. A picture that comes again in a call is looked at once.

    All methods raise UserError for what is no picture or no text, for a broken file, and where the model is of another
    task.

    Attributes:
        trained: the model with its task, tokenizer, answers and settings.
    """

    def __init__(self, trained: TrainedModel, looking: Looking, skill: Skill | None) -> None:
        """
        Args:
            trained: of which `skill` is what it can do.
            looking: what regions come from.
            skill: None for a model that can only have its pictures' regions found.
        """
        self.trained = trained
        self._looking, self._skill = looking, skill
        self._tag_tokens: TagTokens | None = None
        store, used = looking.store, trained.used
        self._store_text: RegionText | None = None
        if store is not None and used is not None:
            tags = tag_source(used.usage.tags, store, used.tokenizer)
            self._store_text = RegionText(store, tags, used.usage.limits, SpecialTokens.of(used.tokenizer))

    def __repr__(self) -> str:
        detector, store = self._looking.detector, self._looking.store
        sources = [] if detector is None else [f"detector={str(detector.weights)!r}"]
        sources += [] if store is None else [f"features={store!r}"]
        return f"Predictor({', '.join([repr(self.trained.name), f'task={self.trained.task!r}', *sources])})"

    @overload  # a text is a Sequence of texts too, and one picture or text is meant first
    def ask(self, image: Picture, question: str, *, top: int = 5) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def ask(self, image: Picture | Pictures, question: str | Texts, *, top: int = 5) -> list[Answer]: ...

    def ask(self, image: Any, question: Any, *, top: int = 5) -> Answer | list[Answer]:
        """The answer to a question about a picture, with the `top` best."""
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise UserError(f"top={top!r} must be a whole number of at least 1.")
        skill = self._having("ask", Answering)
        return self._worked(image, question, "question", lambda places, texts: skill(self._placed(places), texts, top))

    @overload
    def caption(self, image: Picture) -> Caption: ...  # type: ignore[overload-overlap]

    @overload
    def caption(self, image: Pictures) -> list[Caption]: ...

    def caption(self, image: Any) -> Caption | list[Caption]:
        """A picture's caption; more of them where `decoding` asks for several (`num_return_sequences`)."""
        skill = self._having("caption", Captioning)
        return self._worked(image, None, None, lambda places, _: skill(self._placed(places)))

    @overload
    def score(self, image: Picture | PicturePair, text: str) -> float: ...  # type: ignore[overload-overlap]

    @overload
    def score(
        self, image: Picture | PicturePair | Pictures | Sequence[PicturePair], text: str | Texts
    ) -> list[float]: ...

    def score(self, image: Any, text: Any) -> float | list[float]:
        """The probability, from 0 to 1, that a text belongs to a picture.

        Of a model for NLVR2 the probability that a statement is true of two pictures: `image` is then a tuple of the
        left and the right one, or a list of such tuples.
        """
        if isinstance(judging := self._skill, Judging):

            def judge(places: list[Place], texts: list[str]) -> list[float]:
                placed = self._placed(places)
                return judging(list(zip(placed[::2], placed[1::2], strict=True)), texts)

            return self._worked(image, text, "statement", judge, two=True)
        skill = self._having("score", Matching)
        return self._worked(image, text, "text", lambda places, texts: skill(self._placed(places), texts))

    @overload
    def regions(self, image: Picture) -> PictureRegions: ...  # type: ignore[overload-overlap]

    @overload
    def regions(self, image: Pictures) -> list[PictureRegions]: ...

    def regions(self, image: Any) -> PictureRegions | list[PictureRegions]:
        """What is seen in a picture, whatever the model: classes, attributes, scores, boxes and features."""

        def show(places: list[Place], texts: list[str]) -> list[PictureRegions]:
            found = [(source.at(index), source.label_map) for source, index in places]
            return [PictureRegions(regions.image_id, regions, label_map) for regions, label_map in found]

        return self._worked(image, None, None, show)

    def _worked(self, images: Any, texts: Any, text_is: str | None, work: Work, two: bool = False) -> Any:
        """The results of all (image, text) in their order, no list if there is a single one.

        Args:
            text_is: what the text is called in messages; None if there is none.
            two: whether what stands for the image is a tuple of two pictures.

        Raises:
            UserError: what is no picture or no text, or a broken picture.
        """
        pairs = paired(images, texts, lambda value: is_many(value) and not (two and isinstance(value, tuple)))
        pictures = [_both(image) if two else (image,) for image, _ in pairs.items]
        keys = [key_of(one[0]) for one in pictures]
        firsts = {key: index for index, key in reversed(list(enumerate(keys)))}
        order = sorted(range(len(keys)), key=lambda index: firsts[keys[index]])  # of one that comes again, all at once
        finder, results = Finder(self._looking), dict[int, Any]()
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            asked = ["" if text_is is None else checked_text(pairs.items[index][1], text_is) for index in window]
            places = finder.find([self._looking.take(one) for index in window for one in pictures[index]])
            results |= zip(window, work(places, asked), strict=True)
        return results[0] if pairs.single else [results[index] for index in range(len(order))]

    def _having(self, method: str, kind: type[Kind]) -> Kind:
        """The skill, if it is of this kind."""
        if isinstance(self._skill, kind):
            return self._skill
        raise UserError(f"{self.trained.name} is a model for {self.trained.task}: {NEEDED[method]}.")

    def _placed(self, places: Sequence[Place]) -> list[PlacedImage]:
        return [PlacedImage(self._text_of(source), index) for source, index in places]

    def _text_of(self, source: RegionSource) -> RegionText:
        """What puts texts and the pictures of a source together."""
        if isinstance(source, RegionStore):
            assert self._store_text is not None
            return self._store_text
        used = self.trained.used
        assert used is not None
        if self._tag_tokens is None:
            self._tag_tokens = TagTokens.of(source.label_map, used.tokenizer)
        tags = StoreTags(source, self._tag_tokens)
        return RegionText(source, tags, used.usage.limits, SpecialTokens.of(used.tokenizer))


def _both(image: Any) -> tuple[Any, Any]:
    """The two pictures that a statement is about. Raises UserError for anything but a tuple of two."""
    if not isinstance(image, tuple) or len(image) != 2:
        raise UserError("A statement is about two pictures: give a tuple of the left and the right one.")
    return image
