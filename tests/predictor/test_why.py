"""What an answer was read from, and pictures that are looked at once for many questions."""

import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import vinvl
from tests.predictor.samples import close, picture_paths, store_of
from vinvl.predictor import Attended
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow
QUESTION = "is the star above the square?"


def assert_whole(found: Attended, regions: int, given: int) -> None:
    """All shares add up to 1, and a region that the model is not given has none."""
    assert len(found.regions) == regions and found.regions[:given].min() > 0 and (found.regions[given:] == 0).all()
    assert 0 < found.text < 1
    assert found.regions.sum() + sum(share for _, share in found.tags) + found.text == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def picture(folder: Path) -> Path:
    return next(iter(picture_paths(folder).values()))


def test_an_answer_is_read_from_text_tags_and_regions(model: vinvl.Predictor, picture: Path) -> None:
    seen, found = model.regions(picture), model.why(picture, QUESTION)
    assert_whole(found, len(seen), given=len(seen))
    names = [name for name, _ in found.tags]
    assert names and names == list(seen.classes[: len(names)])
    assert str(found).splitlines()[0].startswith("text ") and "regions  " in str(found)
    many = model.why([picture, picture], [QUESTION, "what is red?"])
    close(many[0].regions, found.regions)
    assert abs(many[1].regions - found.regions).max() > 1e-6


def test_regions_that_are_known_stand_for_their_picture(
    model: vinvl.Predictor, own_runs: dict[str, Path], folder: Path, picture: Path
) -> None:
    seen, writer = model.regions(picture), vinvl.load(own_runs["captioning"], detector=folder / "detector.pth")
    with patch.object(type(model.detector), "detect_pixels", side_effect=AssertionError("looked at again")):
        answer, caption = model.ask(seen, QUESTION), writer.caption(seen)
        assert model.regions(seen).regions is seen.regions
        assert [one.answer for one in model.ask([seen, seen], ["what is red?", QUESTION])][1] == answer.answer
    close([score for _, score in answer.top], [score for _, score in model.ask(picture, QUESTION).top])
    assert caption.text == writer.caption(picture).text


def test_without_a_detector_and_of_other_features(
    own_runs: dict[str, Path], runs: dict[str, Path], demo_data: Path, model: vinvl.Predictor, picture: Path
) -> None:
    seen = model.regions(picture)
    bare = vinvl.load(own_runs["vqa"])
    assert bare.ask(seen, QUESTION).answer == model.ask(seen, QUESTION).answer
    with pytest.raises(UserError, match="numbers but the model expects"):
        vinvl.load(runs["vqa"]).ask(seen, QUESTION)


@pytest.mark.parametrize("task", ["retrieval", "nlvr2"])
def test_scores_have_reasons_too(task: str, runs: dict[str, Path], demo_data: Path) -> None:
    store = RegionStore(store_of(demo_data))
    first, second = (str(one) for one in store.image_ids[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = vinvl.load(runs[task], features=store_of(demo_data), device="cpu")
    assert model.trained.usage is not None
    image: Any = (first, second) if task == "nlvr2" else first
    found = model.why(image, "a red circle")
    for name, one in zip((first, second), found if task == "nlvr2" else (found,), strict=False):
        count = len(store[name])
        assert_whole(one, count, min(count, model.trained.usage.max_regions))
    assert np.isfinite(model.score(image, "a red circle"))


def test_a_model_without_answers_is_refused(own_runs: dict[str, Path], folder: Path, picture: Path) -> None:
    writer = vinvl.load(own_runs["captioning"], detector=folder / "detector.pth")
    with pytest.raises(UserError, match="is a model for captioning: why needs one that answers"):
        writer.why(picture, QUESTION)
