"""Classes that a detector found, as constraints of captions."""

from typing import Any

import numpy as np
import pytest

from tests.data.test_text import golden_tokenizer
from vinvl.captioning.constraint_files import Hierarchy
from vinvl.captioning.constraints import TOO_GENERIC, ConstraintOptions, DetectedConstraints, box_overlaps
from vinvl.run.errors import UserError


class TestDetections:
    parents = {"dog": "animal", "animal": "thing", "cat": "animal", "ball": "thing"}  # noqa: RUF012
    box = (0.0, 0.0, 10.0, 10.0)
    elsewhere = (20.0, 0.0, 30.0, 10.0)

    def detected(self, parents: dict[str, str], **options: Any) -> DetectedConstraints:
        found = DetectedConstraints(ConstraintOptions(**options), None, golden_tokenizer(), 20)
        found.hierarchy = Hierarchy(parents)
        return found

    def labels(
        self, *found: tuple[str, float, tuple[float, ...]], synonyms: Any = None, excluded: Any = None, **options: Any
    ) -> list[str]:
        classes, scores, boxes = zip(*found, strict=True)
        detected = self.detected(self.parents, **options)
        detected.synonyms, detected.excluded = synonyms or {}, TOO_GENERIC if excluded is None else excluded
        return detected.labels(classes, np.array(scores), np.array(boxes))

    def test_the_finer_class_stays(self) -> None:
        assert self.labels(("Animal", 0.9, self.box), ("Dog", 0.3, self.box)) == ["dog"]
        assert self.labels(("thing", 0.9, self.box), ("dog", 0.3, self.box)) == ["dog"]
        assert self.labels(("animal", 0.9, self.elsewhere), ("dog", 0.3, self.box)) == ["animal", "dog"]
        assert self.labels(("cat", 0.9, self.box), ("dog", 0.3, self.box)) == ["cat", "dog"]

    def test_the_threshold(self) -> None:
        part = (0.0, 0.0, 10.0, 8.0)  # overlaps by 0.8
        both = (("animal", 0.9, self.box), ("dog", 0.3, part))
        assert self.labels(*both) == ["animal", "dog"]
        assert self.labels(*both, overlap=0.75) == ["dog"]

    def test_excluded_padding_synonyms_and_the_best_three(self) -> None:
        found = [("person", 0.99, self.box), ("ball", 0.0, self.box)]
        found += [(name, score, self.elsewhere) for name, score in (("e", 0.2), ("f", 0.5), ("g", 0.4), ("h", 0.3))]
        assert self.labels(*found) == ["f", "g", "h"]
        assert self.labels(*found, synonyms={"g": "f"}, max_constraints=2) == ["f", "h"]
        assert self.labels(*found, excluded=(), max_constraints=1) == ["person"]

    def test_nothing_detected(self) -> None:
        assert self.detected({}).labels([], np.zeros(0), np.zeros((0, 4))) == []

    def test_refusals(self) -> None:
        with pytest.raises(UserError, match="goes in a circle"):
            self.detected({"a": "b", "b": "a"}).labels(["a"], np.ones(1), np.ones((1, 4)))

    def test_overlaps(self) -> None:
        boxes = np.array([self.box, (0, 0, 10, 5), self.elsewhere, (5, 5, 5, 5)])
        expected = [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
        np.testing.assert_allclose(box_overlaps(boxes), expected)
