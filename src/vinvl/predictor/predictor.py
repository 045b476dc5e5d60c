"""A trained model and a detector, and what they say of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.tags import StoreTags, TagTokens
from vinvl.models.config import SpecialTokens
from vinvl.predictor.pictures import Finder, Looking, Picture, Place, Taking
from vinvl.predictor.skills import (
    Answer,
    Answering,
    Caption,
    Captioning,
    Judging,
    Matching,
    Pairs,
    PictureRegions,
    checked_text,
    is_many,
    paired,
)
from vinvl.predictor.trained import TrainedModel
from vinvl.regions.regions import RegionSource
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

# Many pictures and texts, worked on a window at a time.


WINDOW = 128  # pictures, or pairs of picture and text, that are in memory at a time
Result = TypeVar("Result")
Work = Callable[[list[list[Place]], list[str]], list[Result]]
"""Of some items where the regions of each one's pictures are, and the texts → the results."""


def worked(
    looking: Looking,
    pairs: Pairs,
    text_is: str | None,
    work: Work[Result],
    pictures_of: Callable[[Any], Sequence[Any]] = lambda image: (image,),
) -> list[Result]:
    """The results of all (image, text), in their order.

    Args:
        looking: where regions come from.
        pairs: which belong together.
        text_is: what the text is called in messages; None where there is none.
        work: makes results of a window.
        pictures_of: the pictures in what stands for the image.

    Raises:
        UserError: what is no picture or no text, or a broken picture.
    """
    order = _by_picture(pairs.items, looking.taking, pictures_of)
    finder = Finder(looking)
    results: list[Result] = []
    for start in range(0, len(order), WINDOW):
        window = [pairs.items[index] for index in order[start : start + WINDOW]]
        texts = ["" if text_is is None else checked_text(text, text_is) for _, text in window]
        taken = [[looking.taking.take(one) for one in pictures_of(image)] for image, _ in window]
        places = iter(finder.find([one for pictures in taken for one in pictures]))
        results += work([[next(places) for _ in pictures] for pictures in taken], texts)
    by_index = dict(zip(order, results, strict=True))
    return [by_index[index] for index in range(len(order))]


def _by_picture(items: list[tuple[Any, Any]], taking: Taking, pictures_of: Callable[[Any], Sequence[Any]]) -> list[int]:
    """The order in which pictures, of two the first, come for the first time: of one that comes again, all at once."""
    keys = [taking.key(pictures_of(image)[0]) for image, _ in items]
    firsts: dict[Any, int] = {}
    for index, key in enumerate(keys):
        firsts.setdefault(key, index)
    return sorted(range(len(keys)), key=lambda index: firsts[keys[index]])


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


class Predictor:
    """What a trained model says of pictures; `vinvl.load` makes it.

    Wherever a picture is asked for, it may be the id of an image in `features` (an id goes before a file of that name),
    the path of a file, a Pillow image of any mode, or a NumPy array, uint8 (H, W, 3) in the order red, green, blue, or
    (H, W). Wherever one picture or text is asked for, there may be many, in a list: the result is then a list. One
    picture goes with all texts, one text with all pictures, and lists of one length belong together. Of many,
    `working.WINDOW` are worked on at a time. A picture that comes again in a call is looked at once.

    All methods raise UserError for what is no picture or no text, for a broken file, and where the model is of another
    task.

    Attributes:
        trained: the model with its task, tokenizer, answers and settings.
    """

    def __init__(
        self, trained: TrainedModel, looking: Looking, skill: Skill | None, store_text: RegionText | None
    ) -> None:
        """
        Args:
            trained: of which `skill` is what it can do.
            looking: what regions come from.
            skill: None for a model that can only have its pictures' regions found.
            store_text: puts texts and the images of `looking.store` together.
        """
        self.trained = trained
        self._looking, self._skill, self._store_text = looking, skill, store_text
        self._tag_tokens: TagTokens | None = None

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
        skill, pairs = self._having("ask", Answering), paired(image, question)

        def answer(places: list[list[Place]], texts: list[str]) -> list[Answer]:
            return skill([self._placed(one) for (one,) in places], texts, top)

        return _result(pairs.single, worked(self._looking, pairs, "question", answer))

    @overload
    def caption(self, image: Picture) -> Caption: ...  # type: ignore[overload-overlap]

    @overload
    def caption(self, image: Pictures) -> list[Caption]: ...

    def caption(self, image: Any) -> Caption | list[Caption]:
        """A picture's caption; more of them where `decoding` asks for several (`num_return_sequences`)."""
        skill, pairs = self._having("caption", Captioning), paired(image, None)

        def write(places: list[list[Place]], texts: list[str]) -> list[Caption]:
            return skill([self._placed(one) for (one,) in places])

        return _result(pairs.single, worked(self._looking, pairs, None, write))

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
        if isinstance(self._skill, Judging):
            return self._judged(self._skill, image, text)
        skill, pairs = self._having("score", Matching), paired(image, text)

        def match(places: list[list[Place]], texts: list[str]) -> list[float]:
            return skill([self._placed(one) for (one,) in places], texts)

        return _result(pairs.single, worked(self._looking, pairs, "text", match))

    @overload
    def regions(self, image: Picture) -> PictureRegions: ...  # type: ignore[overload-overlap]

    @overload
    def regions(self, image: Pictures) -> list[PictureRegions]: ...

    def regions(self, image: Any) -> PictureRegions | list[PictureRegions]:
        """What is seen in a picture, whatever the model: classes, attributes, scores, boxes and features."""
        pairs = paired(image, None)

        def show(places: list[list[Place]], texts: list[str]) -> list[PictureRegions]:
            found = [(source.at(index), source.label_map) for ((source, index),) in places]
            return [PictureRegions(regions.image_id, regions, label_map) for regions, label_map in found]

        return _result(pairs.single, worked(self._looking, pairs, None, show))

    def _judged(self, skill: Judging, image: Any, statement: Any) -> float | list[float]:
        pairs = paired(image, statement, lambda value: is_many(value) and not isinstance(value, tuple))

        def judge(places: list[list[Place]], texts: list[str]) -> list[float]:
            return skill([(self._placed(left), self._placed(right)) for left, right in places], texts)

        return _result(pairs.single, worked(self._looking, pairs, "statement", judge, _both))

    def _having(self, method: str, kind: type[Kind]) -> Kind:
        """The skill, if it is of this kind."""
        if isinstance(self._skill, kind):
            return self._skill
        raise UserError(f"{self.trained.name} is a model for {self.trained.task}: {NEEDED[method]}.")

    def _placed(self, place: Place) -> PlacedImage:
        source, index = place
        return PlacedImage(self._text_of(source), index)

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


def _result(single: bool, results: list[Result]) -> Result | list[Result]:
    return results[0] if single else results
