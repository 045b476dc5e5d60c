"""GQA's accuracy by type."""

from vinvl.gqa.task import typed_accuracy


def test_each_type_has_its_accuracy() -> None:
    rows = typed_accuracy(True, "query", "rel")
    assert rows == [(name, 1, 1, 1) for name in ("overall", "open", "structural/query", "semantic/rel")]
    rows = typed_accuracy(False, "verify", None)
    assert rows == [(name, 1, 0, 1) for name in ("overall", "binary", "structural/verify", "semantic/unknown")]
