"""How fast a training run goes: tokens per second, the share of padding, and how well the device is used."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from vinvl.metrics.model_flops import StepCosts


class TrainingPace:
    """Counts what goes through a model since the last reading.

    Counts of tokens stay on the device, so that nothing waits for it; the time is the host's, which keeps step with the
    device over some batches.
    """

    def __init__(self, costs: StepCosts, clock: Callable[[], float] = time.perf_counter) -> None:
        self.costs = costs
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted: the time from here on is training's again."""
        self._since = self.clock()
        self._counts: Tensor | None = None  # (3,) float64 or float32: tokens and regions, their pairs, regions alone
        self._slots = 0
        self._rows = 0
        self._masked_tokens = 0

    def add(self, attention_mask: Tensor, text_slots: int, masked_tokens: int) -> None:
        """Counts a batch.

        Args:
            attention_mask: (B, S) bool or 0 and 1, True where there is a token or region.
            text_slots: L, after which the regions begin.
            masked_tokens: M.
        """
        # Sums of squares pass float32's whole numbers; only Apple's devices have no float64.
        exact = torch.float32 if attention_mask.device.type == "mps" else torch.float64
        lengths = attention_mask.sum(dim=1).to(exact)
        regions = attention_mask[:, text_slots:].sum().to(exact)
        counts = torch.stack([lengths.sum(), lengths.square().sum(), regions])
        self._counts = counts if self._counts is None else self._counts + counts
        self._slots += attention_mask.numel()
        self._rows += attention_mask.shape[0]
        self._masked_tokens += masked_tokens

    def read(self, *, devices: int, peak: float | None) -> dict[str, Tensor]:
        """What was counted since the last reading, by name; empty if nothing was.

        Args:
            devices: ranks that work like this one.
            peak: FLOP/s of this rank's device (`peak_flops`), None where it is not known.

        Returns:
            tokens_per_second (tokens and regions of all ranks, without padding), padding_share, and, where `peak` is
            known, flops_utilisation: the share of the peak that went into tokens and regions, padding not counted.
        """
        counts, elapsed = self._counts, self.clock() - self._since
        if counts is None or elapsed <= 0:
            return {}
        tokens, pairs, regions = counts
        figures = {"tokens_per_second": tokens * devices / elapsed, "padding_share": 1 - tokens / self._slots}
        if peak is not None:
            flops = self.costs.total(
                tokens=tokens,
                attended_pairs=pairs,
                regions=regions,
                masked_tokens=self._masked_tokens,
                rows=self._rows,
            )
            figures["flops_utilisation"] = flops / (elapsed * peak)
        self.restart()
        return figures
