"""A trained model, and a detector or a store of features, and what it says of pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor

from vinvl.captioning.constraints import DetectedConstraints
from vinvl.captioning.data import caption_context
from vinvl.captioning.task import caption_texts, context_of, n_best, tag_shift
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.tags import StoreTags, TagChoice, TagTokens, tag_source
from vinvl.data.text import encode_texts
from vinvl.detector.config import DetectorConfig
from vinvl.detector.detector import Detector
from vinvl.extraction.provenance import trained_reading
from vinvl.models.config import SpecialTokens
from vinvl.models.constrained import Constraint
from vinvl.models.generate import generate_captions
from vinvl.models.rollout import attention_rollout
from vinvl.nlvr2.data import statement_pair
from vinvl.pictures import ReadingOptions
from vinvl.predictor.pairing import both_of, checked_text, is_many, paired
from vinvl.predictor.pictures import (
    Computing,
    Configure,
    FoundRegions,
    Looking,
    Picture,
    PictureRegions,
    Place,
    detector_for,
    key_of,
    refuse_no_count,
    store_for,
)
from vinvl.predictor.trained import TrainedModel, open_trained
from vinvl.predictor.why import Attended, attended_of
from vinvl.regions.regions import LabelMap, RegionSource
from vinvl.regions.store import RegionStore
from vinvl.retrieval.data import MATCHED, collate_pairs, pair_example
from vinvl.run.errors import UserError, printable
from vinvl.vqa.task import ranked_answers

WINDOW = 128  # pictures, or pairs of picture and text, that are in memory at a time
TRUE = 1  # the class of a statement that is true
NEEDED = {  # method → the tasks of models that have it, and what is said to others
    "ask": (("vqa", "gqa"), "ask needs one that was trained for VQA or GQA"),
    "caption": (("captioning",), "caption needs a captioning model"),
    "score": (
        ("retrieval", "nlvr2"),
        "score needs one that was trained for image-text retrieval or, for statements about two pictures, NLVR2",
    ),
    "why": (("vqa", "gqa", "retrieval", "nlvr2"), "why needs one that answers questions or scores texts"),
}
Pictures = Sequence[Picture]
Texts = Sequence[str]
PicturePair = tuple[Picture, Picture]
Examples = tuple[Example, ...]
"""A text with its picture, or with each of its two."""
Work = Callable[[list[Place], list[str]], Sequence[Any]]
"""Of some pictures the places of their regions, one after the other, and the texts → the results."""


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        answer: the best one.
        score: its probability; of models trained with the bce loss independent of the other answers'.
        top: the best answers with their probabilities, best first.
    """

    answer: str
    score: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return printable(f"{self.answer} ({self.score:.3f})")


@dataclass(frozen=True)
class Caption:
    """The caption of a picture.

    Attributes:
        text: the best one.
        score: its log-probability, as the search scores it (`GeneratedCaptions`); compares captions of one search.
        top: all `num_return_sequences` captions with their scores, best first; samples in the order they were drawn.
    """

    text: str
    score: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return printable(self.text)


class Predictor:
    """What a trained model says of pictures; `vinvl.load` makes it.

    Wherever a picture is asked for, it may be the id of an image in `features` (tried before a file of that name),
    the path of a file, a Pillow image of any mode, a NumPy array, uint8 (H, W, 3) in the order red, green, blue, or
    (H, W), or what `regions` has given of a picture, which is not looked at again. Wherever one picture or text is
    asked for, there may be many, in a list: the result is then a list. One picture goes with all texts, one text with
    all pictures, and lists of one length belong together. Of many, `WINDOW` are worked on at a time. A picture that
    comes again in a call is looked at once.

    All methods raise UserError for what is not a picture or not a text, for a broken file, and for a model of another
    task.

    Attributes:
        trained: the model with its task, tokenizer, answers and settings.
    """

    def __init__(self, trained: TrainedModel, looking: Looking) -> None:
        self.trained, self._looking = trained, looking
        self._model: Any = trained.model  # of the class that the task has
        if trained.usage is None:  # it can only have its pictures' regions found
            return
        self._usage, self._tokenizer = usage, tokenizer = trained.usage, trained.tokenizer
        self._special, self._constraints = SpecialTokens.of(tokenizer), None
        if trained.task == "captioning" and (options := usage.constraint_options) is not None:
            length = usage.decoding_options.max_length
            self._constraints = DetectedConstraints(options, looking.store, tokenizer, length)
        choice = TagChoice.of(usage.tag_vocabulary, usage.tag_form)
        if looking.store is not None:
            tags = tag_source(usage.tags_of_store, looking.store, tokenizer, choice)
            self._store_text = RegionText(looking.store, tags, usage.limits, self._special)

        @lru_cache(maxsize=2)  # a detector's, all over
        def tag_tokens(labels: LabelMap) -> TagTokens:
            return TagTokens.of_labels(labels, tokenizer, choice)

        self._tag_tokens = tag_tokens

    @property
    def detector(self) -> Detector | None:
        """What looks at pictures; its `detect` takes boxes too, and gives every class of a region. None for none."""
        opened = self._looking.detector
        return None if opened is None else opened.detector

    @property
    def reading(self) -> ReadingOptions:
        """How picture files become pixels."""
        return self._looking.reading

    def share_detector(self, other: Predictor) -> bool:
        """Uses another model's detector for its own if both find the same regions in every picture; whether they do.

        What `regions` of the one gives may then stand for a picture with the other too.
        """
        alike = self._looking.finds_as(other._looking)
        if alike:
            self._looking = replace(self._looking, detector=other._looking.detector)
        return alike

    def __repr__(self) -> str:
        detector, store = self._looking.detector, self._looking.store
        sources = [] if detector is None else [f"detector={(detector.hub_name or str(detector.weights))!r}"]
        sources += [] if store is None else [f"features={store!r}"]
        return f"Predictor({', '.join([repr(self.trained.name), f'task={self.trained.task!r}', *sources])})"

    @overload  # a text is a Sequence of texts too, and one picture or text is meant first
    def ask(self, image: Picture, question: str, *, top: int = 5) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def ask(self, image: Picture | Pictures, question: str | Texts, *, top: int = 5) -> list[Answer]: ...

    def ask(self, image: Any, question: Any, *, top: int = 5) -> Answer | list[Answer]:
        """The answer to a question about a picture, with the `top` best."""
        refuse_no_count("top", top)
        self._refuse_other_task("ask")

        def answer(chosen: list[Examples]) -> list[Answer]:
            logits, loss_type = self._logits(self._collated(chosen)), self._model.config.loss_type
            ranked = ranked_answers(logits, self.trained.answers, loss_type, top)
            return [Answer(texts[0], scores[0], tuple(zip(texts, scores, strict=True))) for texts, scores in ranked]

        return self._worked(image, question, self._text_is, self._said(self._examples, answer))

    @overload
    def caption(self, image: Picture) -> Caption: ...  # type: ignore[overload-overlap]

    @overload
    def caption(self, image: Pictures) -> list[Caption]: ...

    def caption(self, image: Any) -> Caption | list[Caption]:
        """A picture's caption; more of them where `decoding` asks for several (`num_return_sequences`)."""
        self._refuse_other_task("caption")
        usage, options = self._usage, self._usage.decoding_options
        shift = tag_shift(options, usage.max_caption_tokens)

        def write(chosen: list[Examples]) -> list[Caption]:
            batch, wanted = self._collated(chosen), None
            if self._constraints is not None:
                wanted = [_constraints_of(self._constraints, record["placed"]) for record in batch.records]
            context = context_of(batch, shift)
            written = generate_captions(self._model, context, options, special=self._special, constraints=wanted)
            found = n_best(written, lambda ids: caption_texts(self._tokenizer, ids))
            return [Caption(texts[0], scores[0], tuple(zip(texts, scores, strict=True))) for texts, scores in found]

        def context(_: Any, placed: PlacedImage) -> Examples:
            return (caption_context(placed, usage.caption_limits, {"placed": placed}),)

        return self._worked(image, None, None, self._said(context, write))

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
        self._refuse_other_task("score")

        def judge(chosen: list[Examples]) -> list[float]:
            return _probabilities(self._logits(self._collated(chosen)), TRUE)

        def match(chosen: list[Examples]) -> list[float]:
            pooled = self._model.bert(**self._collated(chosen).inputs(), only_first=True).pooler_output
            # Half precision would round many scores to the same number (see `PairScorer`).
            with torch.autocast(pooled.device.type, enabled=False):
                return _probabilities(self._model.classifier(pooled.float()), MATCHED)

        work = judge if self.trained.task == "nlvr2" else match
        return self._worked(image, text, self._text_is, self._said(self._examples, work))

    @overload
    def why(self, image: Picture, text: str) -> Attended: ...

    @overload
    def why(self, image: Any, text: Any) -> Any: ...

    def why(self, image: Any, text: Any) -> Any:
        """What the answer to a question, or the score of a text, was read from: an `Attended`, of many a list of them.

        `image` and `text` are those of `ask` or `score`. Of a model for NLVR2 there are two, of the left and the right
        picture, in a tuple.
        """
        self._refuse_other_task("why")

        def look_back(chosen: list[Examples]) -> list[Any]:
            batch = self._collated(chosen)
            shares = attention_rollout(self._model.bert, **batch.inputs())
            rows = attended_of(batch, shares, [record["placed"] for record in batch.records])
            return list(zip(rows[::2], rows[1::2], strict=True)) if self._two else rows

        return self._worked(image, text, self._text_is, self._said(self._examples, look_back))

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

    def _refuse_other_task(self, method: str) -> None:
        tasks, needed = NEEDED[method]
        if self.trained.task not in tasks:
            raise UserError(f"{self.trained.name} is a model for {self.trained.task}: {needed}.")

    @property
    def _two(self) -> bool:
        """Whether a text is about a tuple of two pictures."""
        return self.trained.task == "nlvr2"

    @property
    def _text_is(self) -> str:
        """What a text is called in messages."""
        return {"retrieval": "text", "nlvr2": "statement"}.get(self.trained.task, "question")

    def _worked(self, images: Any, texts: Any, text_is: str | None, work: Work) -> Any:
        """The results of all (image, text) in their order, no list if there is a single one.

        Args:
            text_is: what the text is called in messages; None if there is none.

        Raises:
            UserError: something that is not a picture or not a text, or a broken picture.
        """
        two = self._two and text_is is not None
        pairs, single = paired(images, texts, lambda value: is_many(value) and not (two and isinstance(value, tuple)))
        pictures = [both_of(image) if two else (image,) for image, _ in pairs]
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

    def _said(self, make: Callable[..., Examples], work: Callable[[list[Examples]], Sequence[Any]]) -> Work:
        """What `work` says of batches of examples, which `make` puts together of a text's tokens and its pictures.

        Examples of like length are worked on together, to pad little.
        """

        def cost(examples: Examples) -> int:  # tokens and regions
            return max(len(one.input_ids) + len(one.regions) for one in examples)

        def say(places: list[Place], texts: list[str]) -> list[Any]:
            placed = [PlacedImage(self._text_of(source), index) for source, index in places]
            tokens, pictures = encode_texts(self._tokenizer, texts), 2 if self._two else 1
            examples = [make(tokens[i], *placed[i * pictures : (i + 1) * pictures]) for i in range(len(texts))]
            order = sorted(range(len(examples)), key=lambda index: -cost(examples[index]))
            size, results = self._looking.computing.batch_size, dict[int, Any]()
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                with self._looking.computing.precision():
                    results |= zip(chosen, work([examples[index] for index in chosen]), strict=True)
            return [results[index] for index in range(len(examples))]

        return say

    def _examples(self, tokens: np.ndarray, *placed: PlacedImage) -> Examples:
        """A text with its pictures as the model's task has them; their records say where the pictures are."""
        if self.trained.task == "nlvr2":
            made: Examples = statement_pair(tokens, *placed)
        elif self.trained.task == "retrieval":
            made = (pair_example(tokens, placed[0]),)
        else:
            made = (placed[0].region_text.example(tokens, placed[0].image),)
        return tuple(replace(one, record={"placed": place}) for one, place in zip(made, placed, strict=True))

    def _collated(self, examples: list[Examples]) -> Batch:
        rows, padding = list(chain.from_iterable(examples)), self._special.pad_token_id
        if self.trained.task == "retrieval":
            batch = collate_pairs(rows, padding, self._usage.attention_type)
        else:
            batch = collate(rows, pad_token_id=padding)
        return batch.to(self._looking.computing.device)

    def _logits(self, batch: Batch) -> Tensor:
        """(B, labels)"""
        return cast(Tensor, self._model(**batch.inputs()).logits)

    def _text_of(self, source: RegionSource) -> RegionText:
        """What puts texts and the pictures of a source together."""
        if isinstance(source, RegionStore):
            return self._store_text
        tags = StoreTags(self._tag_tokens(source.label_map), source)
        return RegionText(source, tags, self._usage.limits, self._special)


def _constraints_of(constraints: DetectedConstraints, placed: PlacedImage) -> list[Constraint]:
    """What a picture's caption must name: things among its own regions, or among those of a store that is named."""
    source = placed.region_text.store
    regions = source.at(placed.image)
    if constraints.options.regions is None:
        return constraints.of_regions(regions, source.label_map.classes)
    return constraints([regions.image_id])[0]


def _probabilities(logits: Tensor, label: int) -> list[float]:
    """The softmax probability of one label in each row."""
    values: list[float] = logits.float().softmax(dim=-1)[:, label].tolist()
    return values


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
            of `vinvl.convert`, a published Oscar or MMF checkpoint, or a name on the Hugging Face hub: NAME or
            NAME@REVISION, such as michelecafagna26/vinvl-base-image-captioning.
        detector, labels: weight file that pictures are looked at with, or the name of a repository that holds one, such
            as michelecafagna26/vinvl_vg_x152c4, and its label map; see `open_detector`.
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
    opened = None if detector is None else detector_for(trained, detector, labels, detector_config, reading)
    store = None if features is None else store_for(trained, features)
    for network in (trained.model, *(() if opened is None else (opened.detector,))):
        cast(torch.nn.Module, network).to(computing.device)
    feature_dtype = getattr(torch, trained.features.feature_dtype or "float16")  # as `vinvl.extract` does by default
    return Predictor(trained, Looking(store, opened, reading, computing, feature_dtype))
