"""Self-critical sequence training: captions are sampled, and those better than a baseline are made likelier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from vinvl.captioning.scores import MAX_N, Cider, DocumentFrequencies, ImageId
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import CaptionContext, DecodingOptions, GeneratedCaptions
from vinvl.models.generate import generate_captions
from vinvl.models.word_steps import StepGraphs
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.restricted_pickle import load_restricted
from vinvl.run.values import wrong_value

END_OF_SENTENCE = "<eos>"


def wrap_sentence(text: str) -> str:
    """Strips a text, drops one final "." and appends " <eos>", so that ending in the right place earns reward.

    Source: published Oscar, which does this to samples and references before scoring.
    """
    return f"{text.strip().removesuffix('.')} {END_OF_SENTENCE}"


class _Frequencies(msgspec.Struct):
    document_frequency: dict[tuple[str, ...], float]
    ref_len: float


def read_document_frequencies(path: str | Path) -> DocumentFrequencies:
    """From the published coco-train-words.p, a pickle of {"document_frequency": {n-gram: images}, "ref_len": images}.

    Raises UserError if it is missing, damaged or something else.
    """
    content = load_restricted(read_bytes(path), str(path))
    try:
        found = msgspec.convert(content, _Frequencies)
    except msgspec.ValidationError as error:
        raise wrong_value(error, str(path), remedy="give the coco-train-words.p that was published") from None
    counts = {ngram: number for ngram, number in found.document_frequency.items() if 0 < len(ngram) <= MAX_N}
    numbers = [found.ref_len, *counts.values()]
    if len(counts) < len(found.document_frequency) or not all(
        0 < number <= found.ref_len < 2**53 for number in numbers
    ):
        raise UserError(
            f"{path} does not count in how many of its images each run of 1 to {MAX_N} words is; get the file again."
        )
    return DocumentFrequencies(counts, found.ref_len)


class CiderReward:
    """CIDEr-D of sampled captions against the references of their images.

    The references are read once, at the start; each training step is then a few array operations for all its captions
    (see `Cider` for memory). Texts are split at blanks after `prepare`, with no other normalisation: give
    references in the form the model writes, lower case for an uncased one.
    """

    def __init__(
        self,
        references: Mapping[ImageId, Sequence[str]],
        prepare: Callable[[str], str] = wrap_sentence,
        known: DocumentFrequencies | None = None,
    ) -> None:
        """references: image id → its captions, of all training images; without `known`, its document frequencies."""
        self._prepare = prepare
        self._rows = {image_id: row for row, image_id in enumerate(references)}
        # One string object per distinct word: the millions of words of COCO's references would otherwise fill 400 MB.
        once: dict[str, str] = {}
        self._cider = Cider(
            [
                [[once.setdefault(word, word) for word in prepare(text).split()] for text in texts]
                for texts in references.values()
            ],
            known,
        )

    def __call__(self, image_ids: Sequence[ImageId], captions: Sequence[str]) -> Tensor:
        """Rewards (C,) float64 on the CPU, 0 to about 10, of C captions of the images image_ids[c]."""
        words = [self._prepare(caption).split() for caption in captions]
        return torch.from_numpy(self._cider.scores([self._rows[image_id] for image_id in image_ids], words))


def mean_of_others_baseline(rewards: Tensor, samples_per_image: int) -> Tensor:
    """Baseline (B·n,) of each sample: the mean reward of the other n−1 samples of its image; rewards (B·n,).

    Samples of an image are neighbours. Source: published Oscar ("sample" baseline).
    """
    grouped = rewards.view(-1, samples_per_image)
    return ((grouped.sum(dim=1, keepdim=True) - grouped) / (samples_per_image - 1)).view(-1)


def scst_loss(log_probs: Tensor, rewards: Tensor, baseline: Tensor) -> Tensor:
    """Self-critical loss, a scalar: −mean(log p · (reward − baseline)).

    log_probs (C,) of the sampled captions, length-normalised in the published code; rewards and baseline (C,), any
    float type and device: they are constants here, moved to where log_probs is.

    Source: Rennie et al. 2017; published Oscar.
    """
    advantage = (rewards.detach() - baseline.detach().to(rewards.device)).to(log_probs)
    return -(log_probs * advantage).mean()


BASELINES = {"greedy": 1, "sample": 2}  # each with the samples of an image that it needs at least


class SelfCritical:
    """The loss of a batch of images (published Oscar; Rennie et al. 2017)."""

    def __init__(self, samples: int, baseline: str, max_length: int) -> None:
        """
        Args:
            samples: captions sampled per image.
            baseline: "greedy", the reward of the image's greedy caption without dropout (Rennie et al. 2017), or
                "sample", the mean reward of the image's other samples.
            max_length: of a caption.

        Raises:
            UserError: another baseline, or too few samples for it.
        """
        if baseline not in BASELINES:
            raise UserError(f"task.options.scst_baseline is '{baseline}': choose one of {', '.join(BASELINES)}.")
        if samples < BASELINES[baseline]:
            raise UserError(
                f"task.options.scst_samples is {samples}; the {baseline} baseline needs {BASELINES[baseline]} or more."
            )
        self.baseline = baseline
        self.greedy = DecodingOptions(max_length=max_length)
        self.sampling = replace(self.greedy, sample=True, num_return_sequences=samples)

    def loss(
        self,
        reward: CiderReward,
        model: VinVLForCaptioning,
        context: CaptionContext,
        image_ids: Sequence[str],
        special: SpecialTokens,
        texts: Callable[[Tensor], list[str]],
        graphs: StepGraphs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of B images, a scalar, and the mean reward of their samples.

        Captions are sampled in training mode, with dropout, as published. `texts` decodes (C, length) token ids. All
        that a GPU has to write is started before it is waited for; with `graphs` for the greedy captions.
        """
        count = self.sampling.num_return_sequences
        sampled = generate_captions(model, context, self.sampling, special=special, graphs=graphs)
        written: GeneratedCaptions | None = None
        if self.baseline == "greedy":
            model.eval()
            try:
                with torch.no_grad():
                    written = generate_captions(model, context, self.greedy, special=special, graphs=graphs)
            finally:
                model.train()
        rewards = reward([i for i in image_ids for _ in range(count)], texts(sampled.ids.flatten(0, 1)))
        if written is None:
            baseline = mean_of_others_baseline(rewards, count)
        else:
            baseline = reward(list(image_ids), texts(written.ids[:, 0])).repeat_interleave(count)
        return scst_loss(sampled.log_probs.flatten(), rewards, baseline), rewards.mean()
