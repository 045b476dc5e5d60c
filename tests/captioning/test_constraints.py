"""Classes that a detector found, as constraints of captions."""

from typing import Any

import numpy as np
import pytest

from vinvl.captioning.constraints import box_overlaps, constraints_from_detections
from vinvl.run.errors import UserError


class TestDetections:
    parents = {"dog": "animal", "Animal": "thing", "cat": "animal", "ball": "thing"}  # noqa: RUF012
    box = (0.0, 0.0, 10.0, 10.0)
    elsewhere = (20.0, 0.0, 30.0, 10.0)

    def labels(self, *found: tuple[str, float, tuple[float, ...]], **options: Any) -> list[str]:
        classes, scores, boxes = zip(*found, strict=True)
        return constraints_from_detections(classes, np.array(scores), np.array(boxes), parents=self.parents, **options)

    def test_the_finer_class_stays(self) -> None:
        assert self.labels(("Animal", 0.9, self.box), ("Dog", 0.3, self.box)) == ["dog"]
        assert self.labels(("thing", 0.9, self.box), ("dog", 0.3, self.box)) == ["dog"]
        assert self.labels(("animal", 0.9, self.elsewhere), ("dog", 0.3, self.box)) == ["animal", "dog"]
        assert self.labels(("cat", 0.9, self.box), ("dog", 0.3, self.box)) == ["cat", "dog"]

    def test_the_threshold(self) -> None:
        part = (0.0, 0.0, 10.0, 8.0)  # overlaps by 0.8
        both = (("animal", 0.9, self.box), ("dog", 0.3, part))
        assert self.labels(*both) == ["animal", "dog"]
        assert self.labels(*both, threshold=0.75) == ["dog"]

    def test_excluded_padding_synonyms_and_the_best_three(self) -> None:
        found = [("person", 0.99, self.box), ("ball", 0.0, self.box)]
        found += [(name, score, self.elsewhere) for name, score in (("e", 0.2), ("f", 0.5), ("g", 0.4), ("h", 0.3))]
        assert self.labels(*found) == ["f", "g", "h"]
        assert self.labels(*found, synonyms={"G": "f"}, max_constraints=2) == ["f", "h"]
        assert self.labels(*found, excluded=(), max_constraints=1) == ["person"]

    def test_nothing_detected(self) -> None:
        assert constraints_from_detections([], np.zeros(0), np.zeros((0, 4))) == []

    def test_refusals(self) -> None:
        with pytest.raises(UserError, match="goes in a circle"):
            constraints_from_detections(["a"], np.ones(1), np.ones((1, 4)), parents={"a": "b", "b": "a"})

    def test_overlaps(self) -> None:
        boxes = np.array([self.box, (0, 0, 10, 5), self.elsewhere, (5, 5, 5, 5)])
        expected = [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
        np.testing.assert_allclose(box_overlaps(boxes), expected)
