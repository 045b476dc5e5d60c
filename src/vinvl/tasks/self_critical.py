"""Self-critical sequence training: captions are sampled, and those better than a baseline are made likelier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vinvl.errors import UserError
from vinvl.metrics import CiderReward, greedy_baseline, mean_of_others_baseline, scst_loss
from vinvl.models import VinVLForCaptioning
from vinvl.models.generation import CaptionContext, DecodingOptions, SpecialTokens, generate_captions

BASELINES = ("greedy", "sample")


@dataclass(frozen=True)
class SelfCriticalOptions:
    """Settings of self-critical training.

    Attributes:
        samples: captions sampled per image.
        baseline: "greedy", the reward of the image's greedy caption without dropout (Rennie et al. 2017), or
            "sample", the mean reward of the image's other samples.

    Raises:
        UserError: another baseline, or too few samples for it.
    """

    samples: int
    baseline: str

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise UserError(f"task.options.scst_baseline is '{self.baseline}': choose one of {', '.join(BASELINES)}.")
        least = 2 if self.baseline == "sample" else 1
        if self.samples < least:
            raise UserError(
                f"task.options.scst_samples is {self.samples}; the {self.baseline} baseline needs {least} or more."
            )


class SelfCritical:
    """The loss of a batch of images (published Oscar; Rennie et al. 2017)."""

    def __init__(
        self, reward: CiderReward, options: SelfCriticalOptions, decoding: DecodingOptions, special: SpecialTokens
    ) -> None:
        self.reward = reward
        self.options = options
        self.special = special
        plain = DecodingOptions(max_length=decoding.max_length)
        self.greedy = plain
        self.sampling = replace(plain, sample=True, num_return_sequences=options.samples)

    def loss(
        self,
        model: VinVLForCaptioning,
        context: CaptionContext,
        image_ids: Sequence[str],
        texts: Callable[[Tensor], list[str]],
    ) -> tuple[Tensor, Tensor]:
        """The loss of B images, a scalar, and the mean reward of their samples.

        Captions are sampled in training mode, with dropout, as published. `texts` decodes (C, length) token ids.
        """
        count = self.options.samples
        sampled = generate_captions(model, context, self.sampling, special=self.special)
        rewards = self.reward([i for i in image_ids for _ in range(count)], texts(sampled.ids.flatten(0, 1)))
        if self.options.baseline == "greedy":
            baseline = greedy_baseline(self._greedy_rewards(model, context, image_ids, texts), count)
        else:
            baseline = mean_of_others_baseline(rewards, count)
        return scst_loss(sampled.log_probs.flatten(), rewards, baseline), rewards.mean()

    @torch.no_grad()
    def _greedy_rewards(
        self,
        model: VinVLForCaptioning,
        context: CaptionContext,
        image_ids: Sequence[str],
        texts: Callable[[Tensor], list[str]],
    ) -> Tensor:
        model.eval()
        try:
            written = generate_captions(model, context, self.greedy, special=self.special)
        finally:
            model.train()
        return self.reward(list(image_ids), texts(written.ids[:, 0]))
