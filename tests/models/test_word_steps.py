"""Steps of fixed shapes: what a graph of one step writes, replayed for all others, and that the host never waits."""

import copy
import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.caption_cases import SPECIAL, random_context, random_model
from tests.models.test_search import SEARCHES, same
from vinvl.models.decoding import CaptionContext, DecodingOptions, GeneratedCaptions
from vinvl.models.generate import generate_captions
from vinvl.models.word_steps import Step, StepGraphs, WordStepper

torch.set_num_threads(1)

SAMPLE = {"sample": True, "num_return_sequences": 3, "top_k": 9, "top_p": 0.9, "min_length": 8}  # none ends early
ALL = SEARCHES | {"sample": SAMPLE}


class Recorded(StepGraphs):
    """Records a step's operations and replays these, as a CUDA graph would: what else Python does is not repeated."""

    captured = 0

    def capture(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        self.captured += 1
        run()
        return make_fx(lambda: run())()


def decode(model: Any, context: CaptionContext, graphs: StepGraphs | None, **options: Any) -> GeneratedCaptions:
    drawn = torch.Generator().manual_seed(0)
    chosen = DecodingOptions(**{"max_length": 8} | options)
    return generate_captions(model, context, chosen, special=SPECIAL, generator=drawn, graphs=graphs)


@pytest.mark.parametrize("search", ["greedy", "no_repeats", "sample"])
@torch.no_grad()
def test_a_replayed_step_writes_the_same_captions(search: str) -> None:
    """Of batches of several sizes and lengths, also after the weights have changed."""
    model, graphs, found = random_model(1), Recorded(), []
    batches = [random_context(*counts, seed=7) for counts in (([4, 0, 2], [2, 0, 3]), ([1], [1]), ([2] * 3, [40] * 3))]
    with torch.inference_mode():  # what is made there is also for use outside
        decode(model, batches[0], graphs, **ALL[search])
    for change in (0.0, 0.3):
        model.cls.predictions.bias += change * torch.randn(23, generator=torch.Generator().manual_seed(5))
        for context in batches:
            replayed = decode(model, context, graphs, **ALL[search])
            same(replayed, decode(model, context, None, **ALL[search]))
            found.append(replayed.ids)
    assert graphs.captured == 2  # the second batch has room in the first one's, the third one is longer
    assert not torch.equal(found[0], found[3]) and not torch.equal(found[2], found[5])
    model.cls.predictions.bias = torch.nn.Parameter(model.cls.predictions.bias + torch.linspace(-1, 1, 23))
    same(decode(model, batches[0], graphs, **ALL[search]), decode(model, batches[0], None, **ALL[search]))
    assert graphs.captured == 3
    assert copy.deepcopy(graphs)._kept == {}


@pytest.mark.parametrize("counts", [([3, 0], [1, 2]), ([0, 0], [0, 0])])
@torch.no_grad()
def test_half_precision(counts: tuple[list[int], list[int]]) -> None:
    model, context = random_model(1), random_context(*counts)
    with torch.autocast("cpu", torch.bfloat16):
        found = [decode(model, context, graphs, num_beams=3) for graphs in (None, StepGraphs())]
    single = decode(model, context, None, num_beams=3)
    for half in found:
        torch.testing.assert_close(half.log_probs, single.log_probs, rtol=0.05, atol=0.05)
    assert not torch.equal(found[0].log_probs, single.log_probs)


def test_old_graphs_are_dropped() -> None:
    graphs, model = StepGraphs(most=2), random_model(1)
    with torch.no_grad():
        for images in (1, 2, 3, 2, 4, 1):
            decode(model, random_context([1] * images, [1] * images), graphs, max_length=3)
    assert [images for images, _ in graphs._kept] == [4, 2]  # one of more images serves fewer, and has then been used


def test_gradients_are_those_of_steps_that_grow() -> None:
    gradients = []
    for graphs in (None, StepGraphs()):
        model = random_model(3).train()
        torch.manual_seed(0)
        decode(model, random_context([2, 3], [3, 1]), graphs, **SAMPLE).log_probs.square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert gradients[0] and all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


class Operations(TorchDispatchMode):
    """The operations within it, with the shapes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = operation(*given, **(named or {}))
        self.seen.append((str(operation), found.shape if isinstance(found, Tensor) else None))
        return found


@pytest.mark.parametrize(("search", "gradients"), [*((search, False) for search in ALL), ("sample", True)])
def test_steps_are_alike_and_ask_for_no_number(search: str, gradients: bool) -> None:
    steps, kept = [], Step.logits

    def recorded(step: Step, upto: int) -> Tensor:
        with Operations() as operations:
            logits = kept(step, upto)
        steps.append(operations.seen)
        return logits

    def everyone(stepper: WordStepper, is_open: Tensor) -> Tensor:
        return torch.arange(len(is_open))

    model, context = random_model(1), random_context([4, 0, 2], [2, 0, 3])
    with (
        mock.patch.object(Step, "logits", recorded),
        mock.patch.object(WordStepper, "remaining", everyone),
        torch.set_grad_enabled(gradients),
        Operations() as operations,
    ):
        decode(model, context, StepGraphs(), **ALL[search])
    asking = ("_local_scalar_dense", "nonzero", "masked_select", "multinomial", "is_nonzero", "equal.default")
    assert [name for name, _ in operations.seen if any(one in name for one in asking)] == []
    assert len(operations.seen) > 300 and len(steps) == 7
    if not gradients:
        assert all(step == steps[0] for step in steps)


def test_the_end_is_seen_one_step_late_where_the_host_would_wait() -> None:
    stepper = WordStepper(random_model(1), random_context([1, 1], [1, 1]), DecodingOptions(), SPECIAL, 1, StepGraphs())
    rows = [[True, True], [False, True], [False, False], [False, False]]
    assert [stepper.remaining(torch.tensor(row)).tolist() for row in rows] == [[0, 1], [0, 1], [0, 1], []]


@torch.no_grad()
def test_a_step_compiles_whole_and_once() -> None:
    class Compiled(StepGraphs):
        def capture(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
            return torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")

    model, context, graphs = random_model(1), random_context([4, 0, 2], [2, 0, 3]), Compiled()
    torch.compiler.reset()
    counters.clear()
    same(decode(model, context, graphs, num_beams=3), decode(model, context, None, num_beams=3))
    assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("search", ALL)
@torch.no_grad()
def test_cuda_graphs(search: str) -> None:
    model, graphs = random_model(1).cuda(), StepGraphs()
    for counts in (([4, 0, 2], [2, 0, 3]), ([1], [1]), ([2] * 3, [40] * 3)):
        there = {name: value.cuda() for name, value in vars(random_context(*counts)).items()}
        context = CaptionContext(**there)
        written: list[GeneratedCaptions] = []
        for kept, mode in itertools.product((graphs, None), ("default", "error")):  # the first call may wait
            drawn = torch.Generator("cuda").manual_seed(0)
            options = DecodingOptions(**{"max_length": 8} | ALL[search])
            torch.cuda.set_sync_debug_mode(mode)
            try:
                found = generate_captions(model, context, options, special=SPECIAL, generator=drawn, graphs=kept)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            written.append(found)
        for found in written[1:]:
            same(written[0], found)
