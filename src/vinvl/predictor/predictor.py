"""A trained model, and a detector or a store of features, and what it says of pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, overload

import torch

from vinvl.data.inputs import PlacedImage, RegionText, StoreTags, TagTokens, tag_source
from vinvl.detector.config import DetectorConfig
from vinvl.detector.weights import OpenedDetector, open_detector, sha256_of_file
from vinvl.extraction.provenance import trained_config, trained_reading, unlike_detector
from vinvl.models.config import SpecialTokens
from vinvl.pictures import ReadingOptions
from vinvl.predictor.pictures import Computing, FoundRegions, Looking, Picture, Place, key_of, refuse_no_count
from vinvl.predictor.skills import Answer, Caption, PictureRegions, Skills
from vinvl.predictor.trained import TrainedModel, open_trained
from vinvl.regions.regions import BOX_NUMBERS, RegionSource
from vinvl.regions.store import OtherFeatures, RegionStore
from vinvl.run.errors import UserError, printable

WINDOW = 128  # pictures, or pairs of picture and text, that are in memory at a time
NEEDED = {  # method → the tasks of models that have it, and what is said to others
    "ask": (("vqa", "gqa"), "ask needs one that was trained for VQA or GQA"),
    "caption": (("captioning",), "caption needs a captioning model"),
    "score": (
        ("retrieval", "nlvr2"),
        "score needs one that was trained for image-text retrieval or, for statements about two pictures, NLVR2",
    ),
}
Pictures = Sequence[Picture]
Texts = Sequence[str]
PicturePair = tuple[Picture, Picture]
Work = Callable[[list[Place], list[str]], Sequence[Any]]
"""Of some pictures the places of their regions, one after the other, and the texts → the results."""


class Predictor:
    """What a trained model says of pictures; `vinvl.load` makes it.

    Wherever a picture is asked for, it may be the id of an image in `features` (tried before a file of that name),
    the path of a file, a Pillow image of any mode, or a NumPy array, uint8 (H, W, 3) in the order red, green, blue, or
    (H, W). Wherever one picture or text is asked for, there may be many, in a list: the result is then a list. One
    picture goes with all texts, one text with all pictures, and lists of one length belong together. Of many,
    `WINDOW` are worked on at a time. A picture that comes again in a call is looked at once.

    All methods raise UserError for what is not a picture or not a text, for a broken file, and for a model of another
    task.

    Attributes:
        trained: the model with its task, tokenizer, answers and settings.
    """

    def __init__(self, trained: TrainedModel, looking: Looking) -> None:
        self.trained, self._looking = trained, looking
        if trained.used is not None:  # else it can only have its pictures' regions found
            self._skills = Skills(trained, looking.store, looking.computing)
            usage, tokenizer = trained.used.usage, trained.used.tokenizer
            self._limits, self._special = usage.limits, SpecialTokens.of(tokenizer)
            if looking.store is not None:
                tags = tag_source(usage.tags, looking.store, tokenizer)
                self._store_text = RegionText(looking.store, tags, self._limits, self._special)
            if looking.detector is not None:
                self._tag_tokens = TagTokens.of(looking.detector.label_map, tokenizer)

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
        refuse_no_count("top", top)
        skills = self._able_to("ask")
        return self._worked(
            image, question, "question", lambda places, texts: skills.answer(self._placed(places), texts, top)
        )

    @overload
    def caption(self, image: Picture) -> Caption: ...  # type: ignore[overload-overlap]

    @overload
    def caption(self, image: Pictures) -> list[Caption]: ...

    def caption(self, image: Any) -> Caption | list[Caption]:
        """A picture's caption; more of them where `decoding` asks for several (`num_return_sequences`)."""
        skills = self._able_to("caption")
        return self._worked(image, None, None, lambda places, _: skills.caption(self._placed(places)))

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
        skills = self._able_to("score")

        def judge(places: list[Place], texts: list[str]) -> list[float]:
            placed = self._placed(places)
            return skills.judge(list(zip(placed[::2], placed[1::2], strict=True)), texts)

        if self.trained.task == "nlvr2":
            return self._worked(image, text, "statement", judge, two=True)
        return self._worked(image, text, "text", lambda places, texts: skills.match(self._placed(places), texts))

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
            two: whether each image is a tuple of two pictures.

        Raises:
            UserError: something that is not a picture or not a text, or a broken picture.
        """
        pairs, single = paired(images, texts, lambda value: is_many(value) and not (two and isinstance(value, tuple)))
        pictures = [_both(image) if two else (image,) for image, _ in pairs]
        keys = [key_of(one[0]) for one in pictures]
        firsts = {key: index for index, key in reversed(list(enumerate(keys)))}
        order = sorted(range(len(keys)), key=lambda index: firsts[keys[index]])  # of one that comes again, all at once
        kept, results = dict[Hashable, FoundRegions](), dict[int, Any]()
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            asked = ["" if text_is is None else checked_text(pairs[index][1], text_is) for index in window]
            taken = [self._looking.take(one) for index in window for one in pictures[index]]
            results |= zip(window, work(self._looking.places(taken, kept), asked), strict=True)
        return results[0] if single else [results[index] for index in range(len(order))]

    def _able_to(self, method: str) -> Skills:
        tasks, needed = NEEDED[method]
        if self.trained.task not in tasks:
            raise UserError(f"{self.trained.name} is a model for {self.trained.task}: {needed}.")
        return self._skills

    def _placed(self, places: Sequence[Place]) -> list[PlacedImage]:
        return [PlacedImage(self._text_of(source), index) for source, index in places]

    def _text_of(self, source: RegionSource) -> RegionText:
        """What puts texts and the pictures of a source together."""
        if isinstance(source, RegionStore):
            return self._store_text
        return RegionText(source, StoreTags(source, self._tag_tokens), self._limits, self._special)


# One picture or many, with one text or many: which belong together.


def is_many(value: object) -> bool:
    """Whether this is a list or the like, and neither a text nor a picture."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def paired(
    images: Any, texts: Any, image_is_many: Callable[[object], bool] = is_many
) -> tuple[list[tuple[Any, Any]], bool]:
    """(image, text) each, and whether there is a single one, so that the result is no list.

    One picture goes with all texts, one text with all pictures, and lists of one length belong together.

    Args:
        images: one picture, or a list of them.
        texts: the same of texts.
        image_is_many: tells the one from the other.

    Raises:
        UserError: two lists of different length.
    """
    many_images, many_texts = image_is_many(images), is_many(texts)
    if many_images and many_texts and len(images) != len(texts):
        raise UserError(
            f"There are {len(images):,} pictures and {len(texts):,} texts: give as many of the one as of the other, or "
            "a single one for all."
        )
    images = images if many_images else [images] * (len(texts) if many_texts else 1)
    texts = texts if many_texts else [texts] * len(images)
    return list(zip(images, texts, strict=True)), not (many_images or many_texts)


def checked_text(text: object, what: str) -> str:
    """A question, statement or caption.

    Raises:
        UserError: it is not a text, or it is blank.
    """
    if not isinstance(text, str):
        raise UserError(f"The {what} is a {type(text).__name__}: give a text.")
    if not text.strip():
        raise UserError(f"The {what} is blank: give a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"The {what} {ascii(text)[:60]} is not valid Unicode text.") from None
    return text


def _both(image: Any) -> tuple[Any, Any]:
    """The two pictures that a statement is about. Raises UserError for anything but a tuple of two."""
    if not isinstance(image, tuple) or len(image) != 2:
        raise UserError("A statement is about two pictures: give a tuple of the left and the right one.")
    return image


Configure = Callable[[DetectorConfig | None], DetectorConfig]


def load(
    model: str | Path,
    *,
    detector: str | Path | None = None,
    labels: str | Path | None = None,
    detector_config: DetectorConfig | Configure | None = None,
    features: str | Path | Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    answers: str | Path | Sequence[str] | None = None,
    task: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    decoding: Mapping[str, Any] | None = None,
    reading: ReadingOptions | Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    detector_batch_size: int | None = None,
) -> Predictor:
    """A trained model ready to be asked about pictures.

    What it was trained with — tokenizer, answers, how much it sees, how it decodes — is taken from its checkpoint or,
    of a folder of `vinvl.convert`, from its vinvl.json. Of other people's weights it is as published: the numbers of
    `conf/data` and `conf/decoding`, whose sources stand there.

    Args:
        model: a checkpoint of `vinvl.train` (.ckpt), a run's folder (its best checkpoint, else its last), a folder
            of `vinvl.convert`, a published Oscar or MMF checkpoint, or a name on the Hugging Face hub.
        detector, labels: weight file that pictures are looked at with, and its label map; see `open_detector`.
        detector_config: how it is used, or a function from what is known of that (None if nothing is) to it. None: as
            for the features that the model was trained on, where these weights have made them; else as the weight file
            says; else as in the published demo.
        features: a region store (or several), whose image ids may be given for pictures.
        tokenizer, answers: a folder or hub name; a file (JSON, or a published trainval_label2ans.pkl) or the texts,
            where the model does not carry its own.
        task: vqa, gqa, nlvr2, retrieval or captioning, where the weights do not show what they were trained for.
        inputs, decoding: in place of the model's own, see `predictor.trained.Usage` and `DecodingOptions`.
        reading: how files and Pillow images become pixels, or only some of its options. The others are as for the
            features that the model was trained on, or as published if that is unknown.
        device, dtype: cuda or cpu, None: the GPU if there is one; float32, or bfloat16 for mixed precision.
        batch_size: texts, or pictures to write captions for, in one forward pass.
        detector_batch_size: pictures of one padded size through the detector at once; None: 8 on a GPU, 1 on a CPU.

    Warns:
        OtherFeatures: detector or features are not those that the model was trained on, as far as that is known.

    Raises:
        UserError: something is missing, damaged, or does not fit the rest.
    """
    computing = Computing.of(device, dtype, batch_size, detector_batch_size)
    trained = open_trained(model, task=task, tokenizer=tokenizer, answers=answers, inputs=inputs, decoding=decoding)
    if not isinstance(reading, ReadingOptions):
        reading = replace(trained_reading(trained.features), **(reading or {}))
    opened = None if detector is None else _detector(detector, labels, detector_config, trained, reading)
    store = None if features is None else _store(features, trained)
    for network in (trained.model, *(() if opened is None else (opened.detector,))):
        cast(torch.nn.Module, network).to(computing.device)
    feature_dtype = getattr(torch, trained.features.feature_dtype or "float16")  # as `vinvl.extract` does by default
    return Predictor(trained, Looking(store, opened, reading, computing, feature_dtype))


def _detector(
    weights: str | Path,
    labels: str | Path | None,
    config: DetectorConfig | Configure | None,
    trained: TrainedModel,
    reading: ReadingOptions,
) -> OpenedDetector:
    """The detector as the model's features want it. Warns where it makes others."""
    path, record = Path(weights).expanduser(), trained.features
    sha256 = ""
    if "weights_sha256" in record.provenance:
        with suppress(OSError):  # of a file that cannot be read the detector's loading says why
            sha256 = sha256_of_file(path)

    def configure(own: DetectorConfig | None) -> DetectorConfig:
        known = trained_config(record, sha256, own) if sha256 else own
        if isinstance(config, DetectorConfig):
            return config
        return config(known) if config is not None else known or DetectorConfig()

    opened = open_detector(path, labels, configure)
    _check_dimension(trained, opened.detector.config.architecture.c5_channels, f"The detector {path} makes")
    _warn(unlike_detector(record, opened, sha256, reading))
    if trained.used is not None and trained.used.usage.use_tags and not opened.label_map.classes:
        raise UserError(
            f"{path} has no names of classes, and {trained.name} was trained with them as tags: pass labels=FILE, or "
            "inputs={'use_tags': False} to do without."
        )
    if trained.used is not None and trained.used.usage.tags is not None:
        _warn(
            f"{trained.name} was trained with tags from {trained.used.usage.tags}; those of a picture are the classes "
            "that the detector finds."
        )
    return opened


def _store(features: str | Path | Sequence[str | Path], trained: TrainedModel) -> RegionStore:
    """The store of the image ids. Warns where its features are others than the model's."""
    store = RegionStore(features)
    store.require_sound()
    _check_dimension(trained, store.feature_dim, f"{store!r} holds")
    _warn(trained.features.unlike(store))
    return store


def _check_dimension(trained: TrainedModel, found: int, what: str) -> None:
    wanted = trained.model.config.img_feature_dim - BOX_NUMBERS
    if found != wanted:
        raise UserError(
            f"{what} features of {found:,} numbers, and {trained.name} was trained on features of {wanted:,}: give "
            "those that it was trained on."
        )


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        warnings.warn(printable(sentence), OtherFeatures, stacklevel=4)  # where `load` is called
