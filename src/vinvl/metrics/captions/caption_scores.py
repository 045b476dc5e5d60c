"""The caption metrics as a `torchmetrics.Metric`."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.errors import UserError
from vinvl.metrics.byte_state import decode_lines, encode_lines
from vinvl.metrics.captions.evaluation import CaptionEvaluation, ImageId, evaluate_captions
from vinvl.metrics.captions.tokenizer import CaptionTokenizer, regex_tokenize


class CaptionScores(Metric):
    """BLEU-1 … 4, ROUGE-L and CIDEr of all captions seen: `CaptionEvaluation.corpus` as float64 scalars.

    Every image counts once, however often and on however many ranks it was seen, and neither order nor batches nor
    ranks change a digit. The state is the texts, one line of JSON per image as bytes (about half a kilobyte).
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    records: list[Tensor]

    def __init__(self, tokenize: CaptionTokenizer = regex_tokenize) -> None:
        super().__init__()
        self._tokenize = tokenize
        self.add_state("records", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no image must still join the gathering with a tensor of the right type.
        self.records = [encode_lines([]).to(self.device)]

    def update(
        self, image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Adds B images: id, caption and reference captions of each. Raises ValueError if the lengths differ."""
        if not len(image_ids) == len(captions) == len(references):
            raise ValueError(
                f"CaptionScores was given {len(image_ids)} images, {len(captions)} captions and references of "
                f"{len(references)}."
            )
        rows = zip(image_ids, captions, map(list, references), strict=True)
        self.records.append(encode_lines(rows).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all images; see `CaptionEvaluation`.

        Raises UserError if an image was seen with two captions or has no references.
        """
        return self._as_tensors(self._evaluate(None))

    def compute_for(self, image_ids: Iterable[ImageId]) -> dict[str, Tensor]:
        """Returns the scores of a subset, say a nocaps domain, with document frequencies counted over it alone.

        With several ranks, all must call this. Ids that were never seen are left out; the scores of an empty subset
        are nan. Raises UserError as `compute` does.
        """
        wanted = set(image_ids)
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._as_tensors(self._evaluate(wanted))

    def seen(self) -> tuple[dict[ImageId, str], dict[ImageId, list[str]]]:
        """Caption and references of every image seen on any rank, by image id. With several ranks, all must call this.

        Raises UserError if an image was seen with two captions.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._texts()

    def _texts(self) -> tuple[dict[ImageId, str], dict[ImageId, list[str]]]:
        captions: dict[ImageId, str] = {}
        references: dict[ImageId, list[str]] = {}
        for image_id, caption, gold in decode_lines(self.records):
            if captions.setdefault(image_id, caption) != caption:
                raise UserError(
                    f"Image {image_id!r} has two captions, {captions[image_id]!r} and {caption!r}; give one per image."
                )
            if references.setdefault(image_id, gold) != gold:
                raise UserError(f"Image {image_id!r} was given with two lists of references; give the same each time.")
        return captions, references

    def _evaluate(self, wanted: set[ImageId] | None) -> CaptionEvaluation:
        captions, references = self._texts()
        if wanted is not None:
            captions = {image_id: caption for image_id, caption in captions.items() if image_id in wanted}
        return evaluate_captions(captions, references, self._tokenize)

    def _as_tensors(self, evaluation: CaptionEvaluation) -> dict[str, Tensor]:
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in evaluation.corpus.items()
        }
