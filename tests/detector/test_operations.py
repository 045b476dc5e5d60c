"""Single operations of the detector: equal to the published code's recordings, and to naive loops on any input."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests import golden
from tests.detector.samples import SMALL, network_input, recorded, recorded_json, roi_align
from vinvl.detector import DetectorConfig
from vinvl.detector.boxes import (
    BOX_HEAD_WEIGHTS,
    RPN_WEIGHTS,
    AnchorGenerator,
    box_bins,
    clip,
    decode,
    encode,
    iou,
    nms,
    nms_of_sorted,
    nms_within_classes,
)
from vinvl.detector.detector import pad_batch, resized_size
from vinvl.detector.networks import FrozenBatchNorm2d
from vinvl.detector.selection import select_attributes, select_regions

OPS = recorded("ops")


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def random_boxes(generator: torch.Generator, *shape: int, extent: float = 60) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * extent
    size = torch.rand(*shape, 2, generator=generator) * extent / 2
    return torch.cat([corner, corner + size], dim=-1).round()  # whole numbers: equal boxes and overlaps occur


def greedy_loop(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Suppression as it is written in textbooks."""
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not any(bool(iou(boxes[[other]], boxes[[index]]) > threshold) for other in kept):
            kept.append(index)
    return kept


def pooled_value(image: Tensor, box: list[float], row: int, column: int, bins: int, scale: float) -> Tensor:
    """One bin of RoIAlign (C,) of an image (C, H, W), sample by sample."""
    x1, y1, x2, y2 = (side * scale for side in box)
    bin_height, bin_width = max(y2 - y1, 1.0) / bins, max(x2 - x1, 1.0) / bins
    rows, columns = math.ceil(bin_height), math.ceil(bin_width)
    total = torch.zeros(image.shape[0])
    for i in range(rows):
        for j in range(columns):
            y = y1 + (row + (i + 0.5) / rows) * bin_height
            x = x1 + (column + (j + 0.5) / columns) * bin_width
            total += bilinear_value(image, y, x)
    return total / (rows * columns)


def bilinear_value(image: Tensor, y: float, x: float) -> Tensor:
    _, height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(image.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def test_boxes_are_clipped_as_recorded() -> None:
    close(clip(OPS["roi_align.boxes0"], (304, 464)), OPS["clip.out"])


@pytest.mark.parametrize(("name", "weights"), [("box", BOX_HEAD_WEIGHTS), ("rpn", RPN_WEIGHTS)])
def test_box_coder_as_recorded(name: str, weights: tuple[float, float, float, float]) -> None:
    proposals, deltas = OPS[f"coder_{name}.proposals"], OPS[f"coder_{name}.deltas"]
    close(encode(OPS[f"coder_{name}.gt"], proposals, weights), OPS[f"coder_{name}.encoded"])
    decoded = decode(deltas.unflatten(1, (-1, 4)), proposals[:, None], weights).flatten(1)
    close(decoded, OPS[f"coder_{name}.decoded"])


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_decoding_undoes_encoding(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets, references = random_boxes(generator, 5), random_boxes(generator, 5)
    close(decode(encode(targets, references, BOX_HEAD_WEIGHTS), references, BOX_HEAD_WEIGHTS), targets, 1e-3)


def test_anchors_as_recorded() -> None:
    anchors = AnchorGenerator(SMALL.architecture.anchor_sizes, SMALL.architecture.anchor_ratios)
    close(anchors.cell_anchors.get_buffer("0"), OPS["anchors.cell"])
    close(anchors(6, 9), OPS["anchors.grid_6x9"])


def test_frozen_batch_norm_as_recorded() -> None:
    norm = FrozenBatchNorm2d(5)
    norm.load_state_dict({name: OPS[f"frozen_bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")})
    close(norm(OPS["frozen_bn.input"]), OPS["frozen_bn.out"])
    assert not list(norm.parameters())


def test_roi_align_as_recorded() -> None:
    pooled = roi_align(OPS["roi_align.feature"], [OPS["roi_align.boxes0"], OPS["roi_align.boxes1"]])
    close(pooled, OPS["roi_align.out"], 1e-4)
    assert pooled.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9), bins=st.integers(1, 3))
def test_roi_align_is_the_mean_of_samples(seed: int, height: int, width: int, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, height, width, generator=generator)
    # Some reach outside the map. A sample exactly on its rim may fall on either side of it, hence no whole numbers.
    boxes = [random_boxes(generator, n, extent=40) - 12 + 0.1 * torch.rand(n, 4, generator=generator) for n in (2, 1)]
    pooled = roi_align(features, boxes, bins=bins, scale=1 / 4)
    owners = [(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0])]
    for got, (image, box) in zip(pooled, owners, strict=True):
        for row in range(bins):
            for column in range(bins):
                expected = pooled_value(features[image], box.tolist(), row, column, bins, 1 / 4)
                close(got[:, row, column], expected, 1e-4)


def test_every_second_bin() -> None:
    features, boxes = OPS["roi_align.feature"], torch.cat([OPS["roi_align.boxes0"], OPS["roi_align.boxes1"]])
    images = torch.tensor([0] * 12 + [1] * 8)
    halved = box_bins(boxes, images, features).every_second().pool(features)
    close(halved, OPS["roi_align.out"][:, :, ::2, ::2], 1e-4)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    close(box_bins(boxes[mixed], images[mixed], features).pool(features), OPS["roi_align.out"][mixed], 1e-4)


def test_roi_align_of_many_boxes_and_of_none() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 5, 6, generator=generator)
    boxes = random_boxes(generator, 100)
    together = roi_align(features, [boxes])
    close(together, torch.cat([roi_align(features, [box[None]]) for box in boxes]))
    assert roi_align(features, [boxes[:0]]).shape == (0, 2, 14, 14)


@pytest.mark.parametrize("name", ["nms_120_3", "nms_200_5", "nms_300_7", "nms_tiny"])
def test_nms_as_recorded(name: str) -> None:
    threshold = {"nms_120_3": 0.3, "nms_200_5": 0.5, "nms_300_7": 0.7, "nms_tiny": 0.5}[name]
    kept = nms(OPS[f"{name}.boxes"], OPS[f"{name}.scores"], threshold)
    assert kept.tolist() == OPS[f"{name}.keep"].tolist()
    assert nms(OPS[f"{name}.boxes"], OPS[f"{name}.scores"], threshold, limit=7).tolist() == kept[:7].tolist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    number=st.integers(0, 40),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    block=st.integers(1, 50),
)
def test_nms_is_greedy(seed: int, number: int, threshold: float, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, number, extent=12)
    scores = (torch.rand(number, generator=generator) * 10).round()  # equal scores occur
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vinvl.detector.boxes.BLOCK", block)
        kept = greedy_loop(boxes, scores, threshold)
        assert nms(boxes, scores, threshold).tolist() == kept
        # Several lists at once, in fixed sizes, and with rounds that suffice or do not.
        order = scores.argsort(descending=True, stable=True)
        lists = torch.stack([boxes[order], boxes[order].flip(0)])
        limit = min(7, number)
        for rounds in (1, 41):
            patch.setattr("vinvl.detector.boxes.ROUNDS", rounds)
            found = nms_of_sorted(lists, threshold, limit, waiting=False)
            assert found.places.shape == (2, limit) and (rounds == 1 or found.settled.all())
            if found.settled[0]:
                assert order[found.places[0, : found.counts[0]]].tolist() == kept[:limit]
                assert (found.places[0, found.counts[0] :] == number).all()
        assert torch.equal(found.places, nms_of_sorted(lists, threshold, limit).places)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    number=st.integers(1, 25),
    shared=st.booleans(),
    floor=st.sampled_from([0.0, 0.3, 0.8, 2.0]),
    pairs=st.sampled_from([1, 500, 10**6]),
)
def test_nms_within_classes_is_greedy_in_each(seed: int, number: int, shared: bool, floor: float, pairs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(number, 4, generator=generator)
    boxes = random_boxes(generator, number, 1 if shared else 4, extent=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vinvl.detector.boxes.PAIRS_AT_ONCE", pairs)
        survives = nms_within_classes(boxes, scores, 0.3, floor)
    for index in range(4):
        kept = greedy_loop(boxes[:, 0 if shared else index], scores[:, index], 0.3)
        above = {box for box in kept if scores[box, index] >= floor}
        assert set(survives[:, index].nonzero().flatten().tolist()) == above


@pytest.mark.parametrize("name", ["select_normal", "select_few", "select_many"])
def test_regions_are_selected_as_recorded(name: str) -> None:
    case = {key.removeprefix(f"{name}."): value for key, value in OPS.items() if key.startswith(f"{name}.")}
    decoded = decode(case["deltas"].unflatten(1, (-1, 4)), case["proposals"][:, None], BOX_HEAD_WEIGHTS)
    boxes = clip(decoded, (300, 400))
    chosen = select_regions(case["logits"].softmax(dim=1), boxes, DetectorConfig())
    assert chosen.labels.tolist() == case["out_labels"].tolist()
    close(chosen.scores, case["out_scores"], 1e-4)
    close(boxes[chosen.proposals, chosen.labels], case["out_boxes"], 1e-4)
    close(case["features"].mean(dim=(2, 3))[chosen.proposals], case["out_box_features"])


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sharpness=st.sampled_from([0.5, 3.0, 8.0]),
    fewest=st.integers(0, 12),
    shortlist=st.sampled_from([1, 20, 60, 1024]),
)
def test_looking_at_good_scores_first_changes_nothing(seed: int, sharpness: float, fewest: int, shortlist: int) -> None:
    """Against the definition: suppress in every class, then the best class of each proposal, then the number."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (torch.randn(20, 6, generator=generator) * sharpness).softmax(dim=1)
    boxes = random_boxes(generator, 20, 6, extent=30)
    scores = torch.zeros_like(probabilities)
    for label in range(1, 6):
        kept = greedy_loop(boxes[:, label], probabilities[:, label], 0.3)
        scores[kept, label] = probabilities[kept, label]
    best, labels = scores.max(dim=1)
    order = [index for index in best.argsort(descending=True, stable=True).tolist() if best[index] > 0]
    number = min(max(sum(float(best[index]) >= 0.2 for index in order), fewest), 15)

    config = DetectorConfig(min_boxes=fewest, max_boxes=15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vinvl.detector.selection.SHORTLIST", shortlist)
        chosen = select_regions(probabilities, boxes, config)
        ahead = select_regions(probabilities, boxes, config, waiting=False)
    assert ahead.number is not None and ahead.sound is not None and (ahead.sound or shortlist < 1024)
    if ahead.sound:
        assert all(map(torch.equal, ahead.cut(int(ahead.number)), chosen))

    assert chosen.proposals.tolist() == order[:number]
    assert chosen.labels.tolist() == labels[order[:number]].tolist()
    assert torch.equal(chosen.scores, best[order[:number]])


@pytest.mark.parametrize("name", ["attr_under100", "attr_over100"])
def test_attributes_are_selected_as_recorded(name: str) -> None:
    labels, scores = select_attributes(OPS[f"{name}.logits"], DetectorConfig())
    close(scores, OPS[f"{name}.attr_scores"])
    named = OPS[f"{name}.attr_scores"] > 0
    assert labels[named].tolist() == OPS[f"{name}.attr_labels"][named].tolist()


def test_resized_sizes_as_recorded() -> None:
    recorded = recorded_json("resize_sizes")
    assert recorded["columns"][:2] == ["w", "h"] and len(recorded["rows"]) > 70
    for width, height, *resized in recorded["rows"]:
        assert list(resized_size(width, height, recorded["min"], recorded["max"])) == resized


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_a_resized_image_is_never_empty_and_turns_with_the_image(width: int, height: int) -> None:
    resized = resized_size(width, height, 600, 1000)
    assert min(resized) >= 1
    assert resized_size(height, width, 600, 1000) == resized[::-1]


def test_network_input_as_recorded() -> None:
    with Image.open(golden.whole("detector/preprocess.png")) as image:
        ours = network_input(image, replace(SMALL, min_size=90, max_size=150))
    close(ours, recorded("preprocess_min90_max150")["tensor"])


def test_other_modes_become_colour_and_orientation_is_ignored() -> None:
    image = Image.new("RGB", (30, 20), (200, 100, 50))
    config = replace(SMALL, min_size=20, max_size=40)
    blue = network_input(image, config)[0]
    assert torch.allclose(blue, torch.tensor(50 - 103.530))
    for mode in ("L", "P", "CMYK", "RGBA", "1"):
        assert network_input(image.convert(mode), config).shape == (3, 20, 30)
    image.getexif()[0x0112] = 6  # turned by a quarter
    assert network_input(image, config).shape == (3, 20, 30)


def test_a_batch_is_padded_with_zeros() -> None:
    first, second = torch.ones(3, 5, 9), torch.ones(3, 8, 4)
    batch, sizes = pad_batch([first, second], multiple=4)
    assert batch.shape == (2, 3, 8, 12) and sizes == [(5, 9), (8, 4)]
    assert batch[0].sum() == first.sum() and torch.equal(batch[1, :, :8, :4], second)
    assert pad_batch([first, second])[0].shape == (2, 3, 8, 9)
