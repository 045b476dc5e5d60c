"""A predictions.tsv of somebody's detector against annotations: its figures, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.detector.coco_samples import write
from tests.door_in_process import refused_in_process, run_in_process, scores
from vinvl.detector.conversion import ConversionSettings, convert_annotations
from vinvl.detector.predictions import read_predictions

RIGHT: dict[str, list[dict[str, Any]]] = {  # last pixels counted in
    "1": [{"rect": [0, 0, 39, 29], "class": "cat", "conf": 0.9, "attributes": ["black"], "attr_scores": [0.5]}],
    "2": [
        {"rect": [1, 2, 10, 21.5], "class": "dog", "conf": 0.8,
         "attributes": ["black", "small"], "attr_scores": [0.7, 0.9]},
        {"rect": [20, 40, 29, 59], "class": "cat", "conf": 0.4},
    ],
    "7": [{"rect": [0, 10, 49, 10], "class": "Dog", "conf": 0.7, "attributes": ["heavy"], "attr_scores": [0]}],
}  # fmt: skip
DATA = ["detection_data=coco_json"]


def said(folder: Path, images: dict[str, list[dict[str, Any]]], name: str = "predictions.tsv") -> Path:
    """A TSV, its first row with objects under a key, the others bare lists."""
    path, rows = folder / name, []
    for image_id, objects in images.items():
        rows.append(f"{image_id}\t{json.dumps(objects if rows else {'objects': objects})}\n")
    path.write_text("".join(rows))
    return path


def annotated(folder: Path, content: Any = None) -> list[str]:
    return [*DATA, f"data.splits.val.annotations={write(folder, content)[0]}"]


def test_right_predictions_have_full_marks(tmp_path: Path) -> None:
    """Image 9 has no objects and no line; a box more costs precision behind it, and none of the pictures is read."""
    data, path = annotated(tmp_path), said(tmp_path, RIGHT)
    for picture in (tmp_path / "pictures/sub").iterdir():
        picture.unlink()
    printed = run_in_process(
        "evaluate_detector", tmp_path, tmp_path / "run", *data,
        f"predictions={path}", f"predictions_on_true_boxes={path}",
    )  # fmt: skip
    found = scores(tmp_path / "run")
    for name in ("map_50", "map", "vg_map", "vg_weighted_map", "vg_attributes", "vg_attributes_of_found"):
        assert found[name] == pytest.approx(100), name
    assert found["attributes"] == 100 and found["recall_36"] == 100 and "proposals_100" not in found
    assert "lacks 1 of the 4 annotated images, such as '9'" in printed and "Visual Genome's mAP" in printed
    assert "map_50" in json.loads((tmp_path / "run/results.json").read_text())["headline"]


def test_the_best_of_many_boxes_are_looked_at_whatever_their_order(tmp_path: Path) -> None:
    """Annotations in our form, without their pictures; the right boxes stand behind forty worse ones."""
    file, pictures = write(tmp_path)
    target = tmp_path / "val.arrow"
    convert_annotations([file], pictures, target, ConversionSettings())
    worse = [{"rect": [0, 0, 4 + number / 50, 4], "class": "cat", "conf": 0.1} for number in range(40)]
    path = said(tmp_path, {name: [*worse, *objects] for name, objects in RIGHT.items()})
    data = [*DATA, f"data.splits.val.annotations={target}", f"predictions={path}"]
    run_in_process("evaluate_detector", tmp_path, tmp_path / "run", *data)
    found = scores(tmp_path / "run")
    assert found["recall_36"] == found["recall_99"] == 100


def test_what_is_not_said_and_what_is_wrong_lowers_the_figures(tmp_path: Path) -> None:
    """Image 1 is left out: COCO's figures miss its object, Visual Genome's AP does not."""
    images = {name: objects for name, objects in RIGHT.items() if name != "1"}
    without = [{name: value for name, value in one.items() if name != "attr_scores"} for one in images["2"]]
    images["2"] = [*without, {"rect": [1, 2, 10, 21.5], "class": "dog", "conf": 0.95, "attributes": ["small"]}]
    printed = run_in_process(
        "evaluate_detector", tmp_path, tmp_path / "run", *annotated(tmp_path), f"predictions={said(tmp_path, images)}"
    )
    found = scores(tmp_path / "run")
    assert found["class_50/cat"] == 0 and found["vg_map/dog"] == pytest.approx(100 * (1 / 2 * 1 + 1 / 2 * 2 / 3))
    assert "vg_map/cat" not in found and found["vg_map"] == pytest.approx(found["vg_map/dog"] / 2)
    assert found["recall_36"] == pytest.approx(200 / 3) and "vg_attributes" not in found
    assert "its attributes have no scores" in printed


def test_unknown_names_are_left_out_on_request(tmp_path: Path) -> None:
    images = {**RIGHT, "9": [{"rect": [1, 1, 5, 5], "class": "unicorn", "conf": 0.99}]}
    images["1"] = [{**RIGHT["1"][0], "attributes": ["pale", "black"], "attr_scores": [0.8, 0.5]}]
    given = [*annotated(tmp_path), f"predictions={said(tmp_path, images)}"]
    sentence = refused_in_process("evaluate_detector", tmp_path, tmp_path / "run", *given)
    assert "line 1, image '1': there is no attribute 'pale'" in sentence and "unknown_names=drop" in sentence
    printed = run_in_process("evaluate_detector", tmp_path, tmp_path / "run", *given, "unknown_names=drop")
    assert "2 unknown names left out ('pale' 1, 'unicorn' 1)" in printed
    assert scores(tmp_path / "run")["map_50"] == pytest.approx(100)


def one(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    return {**RIGHT, "1": [{**RIGHT["1"][0], **changes}]}


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (one(**{"class": "unicorn"}), "line 1, image '1': there is no class 'unicorn'"),
        (one(rect=[10, 10, 5, 5]), "the rect [10.0, 10.0, 5.0, 5.0] of object 1 is not x1, y1, x2, y2"),
        (one(rect=[0, 0, 400, 300]), "0, 400, 300 in a picture of 40 × 30 reaches out of it, and so do 1 of 4"),
        (one(rect=[0, 0, 39]), "line 1, image '1'"),
        (one(attr_scores=[0.5, 0.5]), "attributes and their scores are not lists of one length"),
        ({**RIGHT, "8": []}, "line 4, image '8' is not annotated"),
        ({**RIGHT, " 1": []}, "line 4, image '1' comes twice"),
        ({"1": [{**RIGHT["1"][0], "rect": [0, 0, 1, 1]}]}, "not in shares of them"),
        ({"1": [{**RIGHT["1"][0], "conf": 0}]}, "no object has a conf"),
        ({}, "holds no predictions"),
    ],
)  # fmt: skip
def test_bad_predictions_are_refused(tmp_path: Path, images: Any, words: str) -> None:
    path = said(tmp_path, images)
    given = [*annotated(tmp_path), f"predictions={path}"]
    sentence = refused_in_process("evaluate_detector", tmp_path, tmp_path / "run", *given)
    assert words in sentence and "predictions.tsv" in sentence, sentence


def test_a_picture_of_another_size_and_a_broken_line_are_refused(tmp_path: Path) -> None:
    data, path = annotated(tmp_path), tmp_path / "predictions.tsv"
    for row, words in (
        ('1\t{"objects": [], "image_w": 80, "image_h": 60}', "is 80 × 60 pixels, and its annotations say 40 × 30"),
        ('1\t{"objects": [}', "line 1, image '1'"),
        ("1", "line 1, image '1'"),
        (f"1\t{json.dumps([RIGHT['1'][0], {'rect': [0, 0, 9, 9], 'class': 'a'}])}", "some of the objects have conf"),
        ("\t[]", "line 1"),
    ):  # fmt: skip
        path.write_text(row + "\n")
        assert words in refused_in_process(
            "evaluate_detector", tmp_path, tmp_path / "run", *data, f"predictions={path}"
        )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "Give weights=FILE, a detector's, or predictions=FILE"),
        (["weights=a.pth", "predictions=b.tsv"], "one of them"),
        (["weights=a.pth", "predictions_on_true_boxes=b.tsv"], "goes with predictions=FILE"),
        (["weights=nowhere.pth", "labels=none"], "weights=nowhere.pth does not exist"),
        (["predictions=nowhere.tsv"], "predictions=nowhere.tsv does not exist"),
        (["predictions=b.tsv", "unknown_names=keep"], "unknown_names=keep is unknown"),
        (["predictions=b.tsv", "more_scores=[gqa]"], "more_scores has 'gqa'"),
        (["predictions=nowhere.tsv", "data.splits.train.annotations=x.json"], ""),
    ],
)
def test_what_the_command_cannot_mean_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pth", "b.tsv"):
        Path(name).touch()
    given = [*annotated(tmp_path), *overrides]
    assert words in refused_in_process("evaluate_detector", tmp_path, tmp_path / "run", *given)


def test_ids_of_two_sets_must_differ(tmp_path: Path) -> None:
    annotations, pictures = write(tmp_path)
    entry = f"{{annotations: {annotations}, pictures: {pictures}}}"
    given = [
        *DATA,
        "data.splits.val=null",
        f"+data.splits.val=[{entry},{entry}]",
        f"predictions={said(tmp_path, RIGHT)}",
    ]
    sentence = refused_in_process("evaluate_detector", tmp_path, tmp_path / "run", *given)
    assert "has an image '1', and so has" in sentence


def test_lines_are_numbered_with_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "predictions.tsv"
    path.write_text("\n1\t[]\n\n2\t[]")
    assert [place for place, _, _ in read_predictions(path)] == [
        f"{path} line {n}, image {i!r}" for n, i in ((2, "1"), (4, "2"))
    ]


def test_a_missing_annotation_file_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").touch()
    given = f"predictions={tmp_path / 'x.tsv'}"
    sentence = refused_in_process("evaluate_detector", tmp_path, tmp_path / "run", *DATA, given)
    assert "data.splits.val.annotations must be given: pass data.splits.val.annotations=VALUE" in sentence
