"""The recordings themselves, and the record of what is read of them."""

from typing import Any

import pytest

from tests import golden

WITH_SHAPES = sorted(path.stem for path in (golden.FOLDER / "oscar").glob("*.json") if '"tensors"' in path.read_text())


@pytest.mark.parametrize("name", WITH_SHAPES)
def test_tensors_are_of_the_recorded_shapes(name: str) -> None:
    arrays = golden.arrays(f"oscar/{name}.io")
    recorded = dict(golden.facts(f"oscar/{name}")["tensors"])
    made: dict[str, Any] = {key: [list(arrays._content[key].shape), str(arrays._content[key].dtype)] for key in arrays}
    assert {key: [shape, dtype] for key, (shape, dtype) in recorded.items()} == made


def test_what_is_read_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    monkeypatch.setattr(golden, "READ", read)
    facts = golden.facts("oscar/metric_vqa_score")
    assert facts["case"] and "meta" in facts and list(facts) and read == {"oscar/metric_vqa_score.json: case"}
    assert facts["meta"]["mean"] > 0 and "oscar/metric_vqa_score.json: meta.mean" in read
    assert golden.tensors("oscar/metric_vqa_score.io")["inputs.logits"].dim() == 2
    run = golden.facts("oscar/optimizer_schedule")[0]
    assert run["steps"][0]["lr_used"] and "oscar/optimizer_schedule.json: [].steps[].lr_used" in read
    left = golden.unread(read)
    assert "oscar/metric_vqa_score.io.safetensors: inputs.targets" in left
    assert not read & set(left) and "oscar/optimizer_schedule.json: [].steps[].grad_norm" in left
    assert golden.unread(golden.parts()) == []
