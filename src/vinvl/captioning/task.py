"""Captioning: hidden words are guessed from left to right, or whole captions are sampled and rewarded."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vinvl.captioning.constraints import ConstraintOptions, DetectedConstraints
from vinvl.captioning.data import CaptioningDataModule, CaptionLimits
from vinvl.captioning.files import CaptionRecords
from vinvl.captioning.java import evaluate_in_java
from vinvl.captioning.scores import CaptionTexts, ImageId, evaluate_captions
from vinvl.captioning.self_critical import CiderReward, SelfCritical, read_document_frequencies
from vinvl.data.batch import Batch
from vinvl.examples import Outcome
from vinvl.models.captioning import VinVLForCaptioning, seq2seq_attention_mask
from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import CaptionContext, DecodingOptions, GeneratedCaptions
from vinvl.models.generate import generate_captions
from vinvl.models.word_steps import StepGraphs
from vinvl.run.errors import UserError, say
from vinvl.run.files import atomic_write
from vinvl.task import VinVLTask


def tag_shift(decoding: DecodingOptions, max_caption_tokens: int) -> int:
    """How far the tags' positions at decoding are behind those in training.

    There they stand after the longest caption there may be; the data put them after the longest that is read.
    """
    return max(0, decoding.max_length - max_caption_tokens)


def positions_needed(limits: CaptionLimits, decoding: DecodingOptions) -> int:
    """Positions of caption and tags, as training reads them or, if longer, as captions are written."""
    tags = max(limits.max_tokens - limits.max_caption_tokens, 0)
    return max(limits.max_caption_tokens, decoding.max_length) + tags


def context_of(batch: Batch, shift: int) -> CaptionContext:
    """The tags and regions of a batch of images, the tags' positions shifted (`tag_shift`)."""
    assert batch.position_ids is not None
    text = batch.input_ids.shape[1]
    return CaptionContext(
        tag_ids=batch.input_ids,
        tag_position_ids=batch.position_ids + shift,
        tag_token_type_ids=batch.token_type_ids,
        tag_mask=batch.attention_mask[:, :text],
        region_features=batch.region_features,
        region_mask=batch.attention_mask[:, text:],
    )


def caption_texts(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Captions (C, length) as texts."""
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def n_best(
    written: GeneratedCaptions, texts: Callable[[Tensor], list[str]]
) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The captions and scores of each image, best first; an n-best list may not have been filled."""
    for ids, lengths, scores in zip(written.ids, written.lengths, written.log_probs, strict=True):
        count = max(int((lengths > 0).sum()), 1)
        yield tuple(texts(ids[:count])), tuple(scores[:count].tolist())


DECODING = {"num_beams": 5}  # what conf/decoding/caption.yaml says otherwise than `DecodingOptions`
CONSTRAINED = ("test", "predict")  # stages whose captions may have to name what was detected
SHOWN = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")


class Caption(NamedTuple):
    """The captions of an image, best first."""

    position: int  # of the image in its split
    image_id: str
    captions: tuple[str, ...]
    scores: tuple[float, ...]  # log-probabilities as the search scores them
    filled_in: bool = False  # without the model


@dataclass(kw_only=True, eq=False, repr=False)
class CaptioningTask(VinVLTask):
    """VinVLForCaptioning; scores are the COCO caption metrics in percent (CIDEr is the COCO server's, CIDEr-D).

    Args:
        decoding: fields of `DecodingOptions`, and under "constraints" of `ConstraintOptions` or None; None: five beams.
        label_smoothing, drop_worst_ratio: see `masked_word_loss`.
        drop_worst_after: batches seen before the worst words are dropped.
        freeze_embedding: keep the word embeddings as they are.
        validation_beams: beams of the evaluations during training, which are never constrained.
        scst_samples, scst_baseline: see `SelfCritical`.
        scst_document_frequencies: see `read_document_frequencies`; None: those of the training captions.
        java_metrics: METEOR and SPICE at test, where Java is present.
        cuda_graphs: decode by CUDA graphs on a GPU, where no gradients are needed (`StepGraphs`).
        the others: see `VinVLTask`.

    Raises:
        UserError: values that could not be trained or decoded with, before anything has been trained.
    """

    model_class = VinVLForCaptioning
    datamodule_class = CaptioningDataModule
    headline = "CIDEr"

    decoding: Mapping[str, Any] | None = None
    label_smoothing: float = 0.0
    drop_worst_ratio: float = 0.0
    drop_worst_after: int = 0
    freeze_embedding: bool = False
    validation_beams: int = 1
    scst_samples: int = 5
    scst_baseline: str = "greedy"
    scst_document_frequencies: str | None = None
    java_metrics: bool = True
    cuda_graphs: bool = True
    model: VinVLForCaptioning = field(init=False)

    def __post_init__(self, datamodule: CaptioningDataModule | None) -> None:
        for name in ("label_smoothing", "drop_worst_ratio"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise UserError(f"task.options.{name} is {share}; give a share from 0 up to, but not including, 1.")
        decoding = DECODING if self.decoding is None else self.decoding
        self.search, self.constraint_options = _search(decoding)
        self.decoding = {**asdict(self.search), "constraints": decoding.get("constraints")}
        self.validation_search = replace(self.search, num_beams=self.validation_beams, num_return_sequences=1)
        self.self_critical = SelfCritical(self.scst_samples, self.scst_baseline, self.search.max_length)
        self._graphs = StepGraphs()
        super().__post_init__(datamodule)

    def add_metrics(self) -> None:
        if self.freeze_embedding:
            self.model.freeze_word_embeddings()
        self.caption_texts = CaptionTexts()
        self._reward: CiderReward | None = None
        self._constraints: DetectedConstraints | None = None

    def check_datamodule(self, datamodule: CaptioningDataModule) -> None:
        """Also takes from the data what decoding needs: tokenizer, places of the tags, constraints, references."""
        super().check_datamodule(datamodule)
        self.tokenizer = datamodule.tokenizer
        self.special = SpecialTokens.of(datamodule.tokenizer)
        self.tag_shift = tag_shift(self.search, datamodule.caption_limits.max_caption_tokens)
        if self.constraint_options is not None:
            self._constraints = DetectedConstraints(
                self.constraint_options, None, self.tokenizer, self.search.max_length
            )
            read: dict[str, Any] = datamodule.datasets
            for dataset in (read[stage] for stage in CONSTRAINED if stage in read):
                self._constraints.names_in(dataset.region_text.store)
        if datamodule.training_items == "images" and "train" in datamodule.datasets:
            training: Any = datamodule.datasets["train"]
            references = {i: training.records.captions_of(n) for n, i in enumerate(training.records["image_id"])}
            counted = self.scst_document_frequencies
            known = None if counted is None else read_document_frequencies(counted)
            self._reward = CiderReward(self._as_written(references), known=known)

    def positions_needed(self, datamodule: CaptioningDataModule) -> int:
        """Those of caption and tags, as training reads them or, if longer, as captions are written."""
        return positions_needed(datamodule.caption_limits, self.search)

    def _as_written(self, references: Mapping[str, Sequence[str]]) -> dict[int | str, list[str]]:
        """References as the model would write them, lower case and with its blanks, so that words can match."""
        flat = [text for texts in references.values() for text in texts]
        ids = self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"]
        written = iter(self.tokenizer.batch_decode(ids))
        return {image_id: [next(written) for _ in texts] for image_id, texts in references.items()}

    def training_loss(self, batch: Batch) -> Tensor:
        if self._reward is not None:
            image_ids = [record["image_id"] for record in batch.records]
            critical_loss, reward = self.self_critical.loss(
                self._reward, self.model, self.context(batch), image_ids, self.special, self.texts, self.graphs
            )
            self.log("train/reward", reward, batch_size=len(batch))
            return critical_loss
        dropping = self.batches_seen > self.drop_worst_after
        output = self.model(
            **{**batch.inputs(), "attention_mask": caption_attention_mask(batch)},
            position_ids=batch.position_ids,
            masked_positions=batch.masked_positions,
            masked_ids=batch.labels,
            label_smoothing=self.label_smoothing,
            drop_worst_ratio=self.drop_worst_ratio if dropping else 0.0,
        )
        loss: Tensor = output.loss
        return loss

    def context(self, batch: Batch) -> CaptionContext:
        """The tags and regions of a batch of images."""
        return context_of(batch, self.tag_shift)

    @property
    def graphs(self) -> StepGraphs | None:
        return self._graphs if self.cuda_graphs and self.device.type == "cuda" else None

    def texts(self, ids: Tensor) -> list[str]:
        """Captions (C, length) as texts."""
        return caption_texts(self.tokenizer, ids)

    @torch.no_grad()
    def write_captions(self, batch: Batch, options: DecodingOptions, constrained: bool) -> GeneratedCaptions:
        constraints = None
        if constrained and self._constraints is not None:
            store = self.evaluated().region_text.store
            constraints = self._constraints([record["stored_as"] for record in batch.records], store)
        return generate_captions(
            self.model,
            self.context(batch),
            options,
            special=self.special,
            constraints=constraints,
            graphs=self.graphs,
        )

    def evaluate_batch(self, batch: Batch) -> None:
        training = self.trainer.state.fn == "fit"
        options = self.validation_search if training else self.search
        best = self.write_captions(batch, options, constrained=not training).ids[:, 0]
        image_ids = [record["image_id"] for record in batch.records]
        self.caption_texts.update(image_ids, self.texts(best), [record["references"] for record in batch.records])

    def compute_scores(self) -> dict[str, float]:
        captions, references = self.caption_texts.compute()
        domains = domains_of(self.evaluated().records)
        scores, self._written, _ = caption_scores(captions, references, domains, java=False)
        if self.java_metrics and self.trainer.state.fn != "fit":
            on_one_rank: Any = evaluate_in_java(captions, references) if self.trainer.is_global_zero else None
            in_java, missing = self.trainer.strategy.broadcast(on_one_rank)
            scores |= {name: 100 * value for name, value in in_java.items()}
            for name, why in missing.items() if self.trainer.is_global_zero else ():
                say(f"{name} was not computed: {why}")
        self._tell_losses()
        return scores

    def on_predict_epoch_end(self) -> None:
        self._tell_losses()

    def _tell_losses(self) -> None:
        """Says how many constraints were left out, over all ranks."""
        if self._constraints is None:
            return
        counts = torch.tensor([self._constraints.dropped, self._constraints.without_regions], device=self.device)
        dropped, without_regions = cast(Tensor, self.trainer.strategy.reduce(counts, reduce_op="sum")).tolist()
        told = self._constraints.describe_losses(dropped, without_regions)
        if told is not None:
            remedy = "pass a greater decoding.max_length, or decoding.constraints.regions=FILE that has them"
            rank_zero_warn(f"{told}: {remedy}.")

    def examples(self) -> Iterator[Outcome]:
        """The CIDEr of each image among all of the split, also where domains have figures of their own."""
        return caption_examples(self.evaluated().records, self._written)

    def result_rows(self) -> list[tuple[str, str]]:
        return caption_rows(self.scores)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Caption]:
        """The captions of each image."""
        written = self.write_captions(batch, self.search, constrained=True)
        return [
            Caption(record["index"], record["image_id"], texts, scores)
            for record, (texts, scores) in zip(batch.records, n_best(written, self.texts), strict=True)
        ]

    def filled_in(self, records: CaptionRecords, index: int) -> Caption | None:
        """The commonest training caption."""
        known = self.commonest.get("")
        return None if known is None else Caption(0, records["image_id"][index], (known,), (0.0,), filled_in=True)

    def write_predictions(self, predictions: Sequence[Caption], folder: Path) -> dict[str, Path]:
        """captions.json, the COCO server's format, and predictions.jsonl with all captions and their scores."""
        official, all_of_them = folder / "captions.json", folder / "predictions.jsonl"
        with atomic_write(official) as file:
            ids = [as_number(one.image_id) for one in predictions]
            best = [one.captions[0] for one in predictions]
            rows = [{"image_id": i, "caption": caption} for i, caption in zip(ids, best, strict=True)]
            json.dump(rows, file, ensure_ascii=False)
        with atomic_write(all_of_them) as file:
            for one in predictions:
                top = [{"caption": c, "score": round(s, 6)} for c, s in zip(one.captions, one.scores, strict=True)]
                line = {"image_id": one.image_id, "top": top} | ({"filled_in": True} if one.filled_in else {})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        numbered = all(isinstance(image_id, int) for image_id in ids)  # as in the files of COCO and NoCaps
        title = "official caption file" if numbered else "caption file, of ids that are no numbers"
        return {title: official, "captions with scores": all_of_them}


# What captions are worth, whoever has written them.

Written = dict[ImageId, tuple[str, float]]
"""Image → its caption, and 100 times the CIDEr of that."""


def caption_scores(
    captions: dict[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    domains: Mapping[str, Sequence[ImageId]],
    java: bool,
) -> tuple[dict[str, float], Written, dict[str, str]]:
    """The figures in percent, of all images and of each domain; the images' own; and what Java lacks, by metric."""
    evaluation = evaluate_captions(captions, references)
    scores = dict(evaluation.corpus)
    for domain, image_ids in domains.items():
        theirs: dict[ImageId, str] = {one: captions[one] for one in image_ids if one in captions}
        found = evaluate_captions(theirs, references).corpus
        scores |= {f"{domain}/{name}": value for name, value in found.items()}
    in_java, missing = evaluate_in_java(captions, references) if java else ({}, {})
    written = {one: (text, 100 * evaluation.per_image[one]["CIDEr"]) for one, text in captions.items()}
    return {name: 100 * value for name, value in (scores | in_java).items()}, written, missing


def domains_of(records: CaptionRecords) -> dict[str, list[ImageId]]:
    """Domain → image ids, of records that have domains (NoCaps)."""
    domains = list(records.get("domain") or ())
    return {
        name: [i for i, domain in zip(records["image_id"], domains, strict=True) if domain == name]
        for name in sorted(set(domains))
    }


def caption_examples(records: CaptionRecords, written: Written) -> Iterator[Outcome]:
    """What came of each image that has a caption: not so where only a part of the split was tested."""
    domains = records.get("domain") or repeat("")
    for image_id, domain, references in zip(records["image_id"], domains, records["captions"], strict=False):
        if image_id in written:
            text, score = written[image_id]
            yield Outcome(str(image_id), str(image_id), score, domain, "", text, tuple(references))


def caption_rows(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The figures that papers print; results.json has all."""
    rows = [(name, f"{scores[name]:.2f}") for name in SHOWN if name in scores]
    if "ptb/CIDEr" in scores:
        rows.append(("CIDEr of PTB tokens, as the COCO server's", f"{scores['ptb/CIDEr']:.2f}"))
    domains = [name for name in scores if name.endswith("-domain/CIDEr")]
    return [*rows, *((f"  {name}", f"{scores[name]:.2f}") for name in domains)]


def _search(decoding: Mapping[str, Any]) -> tuple[DecodingOptions, ConstraintOptions | None]:
    """How captions are written at test, and with which constraints."""
    options = DecodingOptions(**{name: value for name, value in decoding.items() if name != "constraints"})
    constraints = decoding.get("constraints")
    if constraints is None:
        return options, None
    if options.sample or options.num_return_sequences > 1:
        raise UserError(
            "Constrained search gives one caption per image: with decoding=constrained pass "
            "decoding.num_return_sequences=1 and decoding.sample=false."
        )
    return options, ConstraintOptions.of(constraints)


def as_number(image_id: str) -> int | str:
    """An image id as COCO's server wants it, where it is a number in its usual spelling."""
    return int(image_id) if re.fullmatch("0|[1-9][0-9]*", image_id) else image_id


def caption_attention_mask(batch: Batch) -> Tensor:
    """(B, S, S) bool: the left-to-right mask of a batch of captions before tags and regions."""
    assert batch.caption_lengths is not None
    text, regions = batch.input_ids.shape[1], batch.regions.slots
    text_lengths = batch.attention_mask[:, :text].sum(dim=1)
    region_lengths = batch.attention_mask[:, text:].sum(dim=1)
    return seq2seq_attention_mask(
        batch.caption_lengths, text_lengths - batch.caption_lengths, region_lengths, text, regions
    )
