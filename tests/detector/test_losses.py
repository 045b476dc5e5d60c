"""What the detector learns from: matching, sampling and losses against slow and obvious versions of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import golden
from tests.detector.samples import SMALL, recorded
from vinvl.detector import Architecture, Detector
from vinvl.detector.boxes import (
    BACKGROUND,
    BOX_HEAD_WEIGHTS,
    NEITHER,
    RPN_WEIGHTS,
    clip,
    encode,
    inside,
    iou,
    match,
    sample,
)
from vinvl.detector.config import TrainingSettings
from vinvl.detector.losses import (
    Objects,
    attribute_loss,
    attribute_targets,
    detector_losses,
    joined,
    region_losses,
    rpn_losses,
    sample_regions,
)
from vinvl.detector.networks import AttributePredictor
from vinvl.detector.starting import initialise

Box = tuple[float, float, float, float]
RECORDED = golden.tensors("detector_training/losses")
EVERYTHING = TrainingSettings(
    rpn_samples=10_000, rpn_positive_fraction=1.0, region_samples=1000, region_positive_fraction=1.0
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(number: int, seed: int, largest: int = 40) -> Tensor:
    """Boxes with whole-number corners in a small place, so that many overlaps are equal; some are empty."""
    draws = generator(seed)
    low = torch.randint(0, largest, (number, 2), generator=draws)
    return torch.cat([low, low + torch.randint(0, largest // 2, (number, 2), generator=draws)], dim=1).float()


def iou_of(one: Box, other: Box) -> float:
    width, height = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1) for i in (0, 1))
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def slow_match(boxes: Tensor, objects: Tensor, foreground: float, background: float, best_of_each: bool) -> list[int]:
    table = [[iou_of(box, thing) for thing in objects.tolist()] for box in boxes.tolist()]  # type: ignore[arg-type]
    best = [max((row[index] for row in table), default=0.0) for index in range(len(objects))]
    result = []
    for row in table:
        largest = max(row, default=0.0)
        is_best = best_of_each and any(value == best[index] > 0 for index, value in enumerate(row))
        if row and (largest >= foreground or is_best):
            result.append(row.index(largest))
        else:
            result.append(BACKGROUND if largest < background else NEITHER)
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    boxes=st.integers(0, 40),
    objects=st.integers(0, 6),
    thresholds=st.sampled_from([(0.7, 0.3), (0.5, 0.5), (1.0, 0.01)]),
    best_of_each=st.booleans(),
)
def test_matching_is_what_comparing_one_by_one_gives(
    seed: int, boxes: int, objects: int, thresholds: tuple[float, float], best_of_each: bool
) -> None:
    ours, theirs = random_boxes(boxes, seed), random_boxes(objects, seed + 1)
    foreground, background = thresholds
    found = match(ours, theirs, foreground=foreground, background=background, best_of_each=best_of_each)
    assert found.dtype == torch.int64
    assert found.tolist() == slow_match(ours, theirs, foreground, background, best_of_each)


def test_anchors_that_straddle_are_those_recorded() -> None:
    operations = recorded("ops")
    anchors, expected = operations["anchors.grid_6x9"], operations["anchors.visibility_img_140x90"].bool()
    assert 0 < expected.sum() < len(expected)
    assert torch.equal(inside(anchors, (90, 140)), expected)
    assert torch.equal(inside(anchors, (90, 140), straddle=-1), torch.ones_like(expected))
    assert expected.sum() < inside(anchors, (90, 140), straddle=16).sum() < len(anchors)


def recorded_objects(prefix: str) -> Objects:
    boxes = RECORDED[f"{prefix}.gt_boxes"]
    none = torch.zeros(len(boxes), 1, dtype=torch.int64)
    labels, attributes = (RECORDED.get(f"{prefix}.gt_{name}", none) for name in ("labels", "attributes"))
    return Objects(boxes, labels, attributes)


def assert_losses_and_gradients(prefix: str, ours: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
    for name, loss in ours.items():
        torch.testing.assert_close(loss, RECORDED[f"{prefix}.{name}"], rtol=1e-5, atol=0)
    for leaf, gradient in zip(leaves, torch.autograd.grad(sum(ours.values()), list(leaves.values())), strict=True):
        torch.testing.assert_close(gradient, RECORDED[f"{prefix}.grad.{leaf}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("prefix", "straddle"), [("rpn", 0), ("rpn_straddle_off", -1)])
def test_what_anchors_learn_is_what_the_published_code_recorded(prefix: str, straddle: int) -> None:
    leaves = {name: RECORDED[f"{prefix}.{name}"].clone().requires_grad_() for name in ("objectness", "deltas")}
    logits = leaves["objectness"].permute(0, 2, 3, 1).flatten(1)
    deltas = leaves["deltas"].view(2, 15, 4, 10, 12).permute(0, 3, 4, 1, 2).reshape(2, -1, 4)
    anchors = RECORDED[f"{prefix}.image0.anchors"]
    targets = [recorded_objects(f"rpn.image{image}") for image in (0, 1)]
    sizes = [tuple(RECORDED[f"rpn.image{image}.size_wh"].flip(0).tolist()) for image in (0, 1)]
    for image, objects in enumerate(targets):
        own = f"{prefix}.image{image}"
        assert torch.equal(RECORDED[f"{own}.anchors"], anchors)
        visible = inside(anchors, sizes[image], straddle)
        assert torch.equal(visible, RECORDED[f"{own}.visible"])
        matched = match(anchors, objects.boxes, foreground=0.7, background=0.3, best_of_each=True)
        labels = (matched >= 0).float().masked_fill((matched == NEITHER) | ~visible, -1)
        assert torch.equal(labels, RECORDED[f"{own}.labels"])
        nearest = iou(objects.boxes, anchors, last_pixel=True).argmax(dim=0)
        assert torch.equal(nearest[matched >= 0], matched[matched >= 0])
        wanted = encode(objects.boxes[matched.clamp(min=0)], anchors, RPN_WEIGHTS)
        torch.testing.assert_close(wanted, RECORDED[f"{own}.regression_targets"], rtol=1e-4, atol=1e-4)
    config = replace(EVERYTHING, straddle=straddle)
    objectness, box = rpn_losses(logits, deltas, anchors, sizes, targets, config, generator(0))
    assert_losses_and_gradients(prefix, {"loss_objectness": objectness, "loss_box": box}, leaves)


def test_what_regions_learn_is_what_the_published_code_recorded() -> None:
    regions, order = [], []
    for image in (0, 1):
        prefix, objects = f"roi.image{image}", recorded_objects(f"roi.image{image}")
        proposals, size = RECORDED[f"{prefix}.proposals"], RECORDED[f"{prefix}.size_wh"].flip(0).tolist()
        assert torch.equal(clip(proposals, size), proposals)
        found = sample_regions(proposals[len(objects.labels) :], objects, EVERYTHING, generator(0))
        places = [proposals.tolist().index(box) for box in found.boxes.tolist()]
        assert sorted(places) == list(range(len(proposals)))
        assert torch.equal(found.labels, RECORDED[f"{prefix}.labels"][places])
        positives = torch.tensor(places)[found.positives]
        torch.testing.assert_close(
            found.deltas, RECORDED[f"{prefix}.regression_targets"][positives], rtol=1e-4, atol=1e-4
        )
        order += [place + (image and len(RECORDED["roi.image0.proposals"])) for place in places]
        regions.append(found)
    everything = joined(regions)
    leaves = {name: RECORDED[f"roi.{name}"].clone().requires_grad_() for name in ("class_logits", "box_deltas")}
    logits, deltas = leaves["class_logits"][order], leaves["box_deltas"][order].unflatten(1, (-1, 4))
    losses = dict(zip(("loss_classifier", "loss_box_reg"), region_losses(logits, deltas, everything), strict=True))
    assert_losses_and_gradients("roi", losses, leaves)
    order_of_positives = torch.tensor(order)[everything.positives]
    assert torch.equal(order_of_positives.sort().values, RECORDED["attr.positive_mask"].nonzero().squeeze(1))
    assert torch.equal(everything.attributes[order_of_positives.argsort()], RECORDED["attr.matched_attributes"])


def recorded_attribute_head() -> AttributePredictor:
    architecture = Architecture(num_classes=6, num_attributes=9, class_embedding_size=4, attribute_hidden_size=5)
    predictor = AttributePredictor(replace(architecture, first_stage_channels=1))
    predictor.fc_attr = torch.nn.Linear(10 + 4, 5)  # of the recording's ten channels, which are no multiple of eight
    weights = {name: RECORDED[f"attr.weight.{name}"] for name in predictor.state_dict()}
    predictor.load_state_dict(weights)
    return predictor


def recorded_logits() -> tuple[AttributePredictor, Tensor, Tensor]:
    """The head, its logits (p, 9) of the recorded regions that show objects, and what it has before its last layer."""
    predictor, positive, hidden = recorded_attribute_head(), RECORDED["attr.positive_mask"], list[Tensor]()
    predictor.attr_score.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    labels = torch.cat([RECORDED[f"roi.image{image}.labels"] for image in (0, 1)])
    logits = predictor(RECORDED["attr.features"].mean(dim=(2, 3))[positive], labels[positive])
    return predictor, logits, hidden[0]


def test_what_attributes_learn_as_published_is_what_the_published_code_recorded() -> None:
    predictor, logits, hidden = recorded_logits()
    torch.testing.assert_close(hidden, RECORDED["attr.hidden"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, RECORDED["attr.logits"], rtol=1e-4, atol=1e-5)
    targets = attribute_targets(RECORDED["attr.matched_attributes"], 9, "as_published")
    leaves = {"logits": logits} | dict(predictor.named_parameters())
    assert_losses_and_gradients("attr", {"loss": 0.5 * attribute_loss(logits, targets)}, leaves)
    assert float(targets.sum(dim=1).min()) == 0 and targets.sum(dim=1).eq(0.5).any()  # of two that are one


def test_attributes_that_count_once_are_those_recorded_without_repeats() -> None:
    _, logits, _ = recorded_logits()
    targets = attribute_targets(RECORDED["attr.matched_attributes"], 9, TrainingSettings().repeated_attributes)
    loss = 0.5 * attribute_loss(logits, targets)
    assert_losses_and_gradients("attr_no_repeats", {"loss": loss}, {"logits": logits})


def test_the_cross_entropy_of_attributes_is_the_softmax_recorded() -> None:
    """Beside it lies what a branch of sigmoids would give, which nothing of the published code comes to: a record."""
    logits, targets = RECORDED["attr_ce.logits"], RECORDED["attr_ce.soft_targets"]
    torch.testing.assert_close(attribute_loss(logits, targets), RECORDED["attr_ce.softmax"], rtol=1e-5, atol=0)
    assert abs(float(RECORDED["attr_ce.softmax"] - RECORDED["attr_ce.sigmoid_unused"])) > 0.5


def test_the_sample_has_as_many_as_recorded() -> None:
    for case in golden.facts("detector_training/sampler")["sampler_counts"]:
        kinds = [case[kind] for kind in ("positives", "negatives", "ignored")]
        positive, negative = (torch.arange(3).repeat_interleave(torch.tensor(kinds)) == kind for kind in (0, 1))
        drawn = sample(positive, negative, case["batch_size_per_image"], case["positive_fraction"], generator(0))
        assert [len(part) for part in drawn] == [case["sampled_positives"], case["sampled_negatives"]]


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from("pni"), max_size=60),
    number=st.integers(1, 40),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_samples_are_of_the_right_kind_and_number(kinds: list[str], number: int, fraction: float, seed: int) -> None:
    positive, negative = (torch.tensor([kind == wanted for kind in kinds], dtype=torch.bool) for wanted in "pn")
    positives, negatives = (part.tolist() for part in sample(positive, negative, number, fraction, generator(seed)))
    assert all(kinds[index] == "p" for index in positives) and all(kinds[index] == "n" for index in negatives)
    assert len(set(positives)) == len(positives) == min(kinds.count("p"), int(number * fraction))
    assert len(set(negatives)) == len(negatives) == min(kinds.count("n"), number - len(positives))
    again = sample(positive, negative, number, fraction, generator(seed))
    assert [part.tolist() for part in again] == [positives, negatives]


def test_every_candidate_is_drawn_equally_often() -> None:
    positive = torch.arange(20) < 8
    draws = generator(0)
    counts = torch.zeros(20)
    for _ in range(2000):
        counts[torch.cat(sample(positive, ~positive, 8, 0.5, draws))] += 1
    assert counts[:8].sum() == counts[8:].sum() == 8000
    assert (counts[:8] / 2000 - 0.5).abs().max() < 0.05 and (counts[8:] / 2000 - 1 / 3).abs().max() < 0.05


def objects_in(boxes: Tensor, num_classes: int = 5, num_attributes: int = 7, seed: int = 0) -> Objects:
    draws = generator(seed)
    return Objects(
        boxes=boxes,
        labels=torch.randint(1, num_classes, (len(boxes),), generator=draws),
        attributes=torch.randint(0, num_attributes, (len(boxes), 3), generator=draws),
    )


def test_rpn_learns_from_so_many_anchors_of_an_image() -> None:
    anchors = random_boxes(400, 1, largest=60) + torch.tensor([0, 0, 3.0, 3])
    logits = torch.zeros(1, 400, requires_grad=True)
    deltas = torch.zeros(1, 400, 4, requires_grad=True)
    targets = [objects_in(anchors[:40])]
    config = TrainingSettings(rpn_samples=32, rpn_positive_fraction=0.5)
    objectness, box = rpn_losses(logits, deltas, anchors, [(200, 200)], targets, config, generator(0))
    (objectness + box).backward()
    assert logits.grad is not None and (logits.grad != 0).sum() == 32 and (logits.grad < 0).sum() == 16


def test_regions_are_drawn_from_proposals_and_objects() -> None:
    objects = objects_in(torch.tensor([[10.0, 10, 29, 29], [50, 50, 79, 69]]))
    proposals = torch.cat([random_boxes(80, 2, largest=90), objects.boxes[:1] + 2])
    config = TrainingSettings(region_samples=16, region_positive_fraction=0.25)
    regions = sample_regions(proposals, objects, config, generator(1))
    assert len(regions.boxes) == len(regions.labels) == 16 and regions.positives.tolist() == [0, 1, 2]
    candidates = torch.cat([proposals, objects.boxes]).tolist()
    for index, box in enumerate(regions.boxes.tolist()):
        assert box in candidates
        overlaps = [iou_of(box, thing) for thing in objects.boxes.tolist()]
        if index in regions.positives.tolist():
            thing = overlaps.index(max(overlaps))
            assert max(overlaps) >= 0.5 and regions.labels[index] == objects.labels[thing]
            assert regions.attributes[index].tolist() == objects.attributes[thing].tolist()
            wanted = encode(objects.boxes[thing], torch.tensor(box), BOX_HEAD_WEIGHTS)
            assert regions.deltas[index].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
        else:
            assert max(overlaps) < 0.5 and regions.labels[index] == 0
    nothing = sample_regions(proposals, objects_in(random_boxes(0, 0)), config, generator(1))
    assert nothing.labels.eq(0).all() and len(nothing.labels) == 16 and len(nothing.positives) == 0


def test_attributes_named_twice_count_once_and_none_counts_for_nothing() -> None:
    logits = torch.randn(3, 5)
    attributes = torch.tensor([[2, 2, 4], [0, 0, 0], [3, 0, 0]])
    chance = logits.softmax(dim=1).log()
    wanted = -(chance[0, 2] + chance[0, 4]) / 2 - chance[2, 3]
    torch.testing.assert_close(attribute_loss(logits, attribute_targets(attributes, 5, "once")), wanted / 3)
    halves = attribute_targets(attributes, 5, "as_published")[0].tolist()
    assert halves == pytest.approx([0, 0, 1 / 3, 0, 1 / 3])


def tiny_detector(attributes: int = 7) -> Detector:
    architecture = Architecture(
        blocks=(1, 1, 1, 1), stem_channels=8, first_stage_channels=16, groups=2, width_per_group=4,
        anchor_sizes=(16, 32), anchor_ratios=(1.0,), num_classes=5, num_attributes=attributes,
        class_embedding_size=4, attribute_hidden_size=8,
    )  # fmt: skip
    detector = Detector(replace(SMALL, architecture=architecture))
    initialise(detector, generator(0))
    return detector


def losses_of(detector: Detector, targets: list[Objects], seed: int = 1) -> dict[str, float]:
    images = torch.randn(len(targets), 3, 64, 96, generator=generator(3)) * 50
    config = TrainingSettings(region_samples=16, rpn_samples=32)
    losses = detector_losses(detector, images, [(64, 96)] * len(targets), targets, config, generator(seed))
    detector.zero_grad()
    total = sum(losses.values(), torch.zeros(()))
    total.backward()
    assert total.item() == pytest.approx(sum(loss.item() for loss in losses.values()))
    return {name: loss.item() for name, loss in losses.items()}


def test_losses_of_a_batch_reach_every_part_and_repeat() -> None:
    detector = tiny_detector()
    targets = [objects_in(random_boxes(3, seed) + torch.tensor([0, 0, 9.0, 9]), seed=seed) for seed in (5, 6)]
    first = losses_of(detector, targets)
    assert all(value > 0 for value in first.values())
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    embedded = detector.attribute.predictor.cls_embedding.weight.grad
    assert embedded is not None
    described = {label for objects in targets for label in objects.labels.tolist()}
    assert set(embedded.abs().sum(dim=1).nonzero().flatten().tolist()) == described  # the true classes
    state = torch.get_rng_state()
    assert losses_of(detector, targets) == first and torch.equal(torch.get_rng_state(), state)
    assert losses_of(detector, targets, seed=2) != first


def test_a_detector_without_attributes_learns_the_rest() -> None:
    detector = tiny_detector(attributes=0)
    targets = [objects_in(random_boxes(3, 5) + torch.tensor([0, 0, 9.0, 9]), seed=5)]
    assert losses_of(detector, targets).keys() == {"objectness", "rpn_box", "classes", "box"}
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_pictures_without_objects_have_losses_of_background_alone() -> None:
    detector = tiny_detector()
    found = losses_of(detector, [objects_in(random_boxes(0, 0)), objects_in(random_boxes(0, 0))])
    assert found["objectness"] > 0 and found["classes"] > 0
    assert found["rpn_box"] == found["box"] == found["attributes"] == 0
    # Ranks that train together wait for each other's gradients of every parameter.
    assert all(parameter.grad is not None for parameter in detector.parameters())
