"""What the page of `vinvl.app` asks models and how it tells it, without a browser; its command's refusals."""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import vinvl
from tests.door_in_process import refused_in_process
from tests.picture_samples import gradient, save
from tests.predictor.samples import picture_paths, store_of
from vinvl.app import models_and_detector
from vinvl.asking.seen import Seen, answered, differing, look, reasons, scored
from vinvl.pages.pages import rendered
from vinvl.predictor import Attended
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def picture(folder: Path) -> Path:
    return next(iter(picture_paths(folder).values()))


@pytest.mark.filterwarnings("ignore::vinvl.predictor.OtherFeatures")
def test_models_with_one_detector_look_once(
    own_runs: dict[str, Path], folder: Path, picture: Path, tmp_path: Path
) -> None:
    models = [vinvl.load(own_runs[task], detector=folder / "detector.pth") for task in ("vqa", "captioning")]
    other = vinvl.load(own_runs["vqa"], detector=folder / "detector.pth", reading={"exif_orientation": "ignore"})
    assert models[1].share_detector(models[0]) and models[1].detector is models[0].detector
    assert not other.share_detector(models[0])
    seen = look([*models, other], str(picture))
    assert seen.regions[0] is seen.regions[1] is not seen.regions[2]
    assert [len(names) > 0 for names, _ in differing([*models, other], seen)] == [True, True]
    assert [names for names, _ in differing(models, look(models, str(picture)))] == [""]
    (told,) = answered(models, seen, "what is red?")
    assert told["top"] == models[0].ask(picture, "what is red?").top and len(told["why"]) == 1
    cut = save(tmp_path / "cut.png", gradient())
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(UserError, match=r"^cut\.png is cut off"):
        look(models, str(cut))


def test_a_statement_is_about_two_pictures(runs: dict[str, Path], demo_data: Path) -> None:
    store = RegionStore(store_of(demo_data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = vinvl.load(runs["nlvr2"], features=store_of(demo_data), device="cpu")
    left, right = (model.regions(str(store.image_ids[index])) for index in (0, 1))
    drawings = [{"regions": [{"number": i, "tag": "x"} for i in range(len(one))]} for one in (left, right)]
    pictures = [Seen("one", (one,), (drawing,)) for one, drawing in zip((left, right), drawings, strict=True)]
    (told,) = scored([model], pictures, "both are red")
    assert told["score"] == pytest.approx(model.score((left, right), "both are red")) and len(told["why"]) == 2
    with pytest.raises(UserError, match="judges statements about two pictures: give the second one too"):
        scored([model], pictures[:1], "both are red")


def test_reasons_are_ordered_and_whatever_a_file_says_is_escaped() -> None:
    drawing = {
        "id": HOSTILE, "width": 10, "height": 10, "note": "", "source": "data:",
        "regions": [
            {"number": number, "tag": tag, "score": 0.5, "x": 1, "y": 1, "width": 2, "height": 2, "area": 4,
             "colour": "red", "free": True, "name_place": "", "attributes": [(HOSTILE, 0.5)]}
            for number, tag in enumerate((HOSTILE, "dog", "dog"))
        ],
    }  # fmt: skip
    seen = Seen("one", (), (drawing,))
    tags = (("dog", 0.1), (HOSTILE, 0.05), ("dog", 0.1))
    why = reasons(seen, 0, Attended(np.array([0.1, 0.4, 0.0], np.float32), tags, 0.25))
    assert [region["number"] for region, _ in why["regions"]] == [1, 0]
    assert why["tags"] == [("dog", pytest.approx(0.2), [1, 2]), (HOSTILE, pytest.approx(0.05), [0])]
    assert sum(why["parts"].values()) == pytest.approx(1) and "/ 0.600" in why["drawing"]["regions"][1]["fill"]
    card = {"name": HOSTILE, "top": ((HOSTILE, 0.5),), "independent": True, "why": [why]}
    for told in (
        rendered("ask.html", show="regions", drawings=[(HOSTILE, drawing)]),
        rendered("ask.html", show="answers", text=HOSTILE, told=[card, card]),
        rendered("ask.html", show="captions", text="", told=[card, card]),
        rendered("ask.html", show="problem", sentence=HOSTILE),
        rendered("ask.html", show="heading", models=[(HOSTILE, "vqa")]),
    ):
        assert "&lt;img" in told and "<img src=x" not in told
        assert not re.search(r"https?://", told)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "Pass model=RUN, or model=[RUN,RUN] for several side by side"),
        (["models=RUN"], "Pass detector=FILE"),
        (["models=RUN", "weights=nowhere.pth"], "nowhere.pth"),
        (["models=[RUN,RUN]", "weights=WEIGHTS", "answers=[null]"], "answers has 1 values for 2 models"),
        (["models=RUN", "weights=WEIGHTS", "port=many"], "port='many' must be a whole number from 1"),
        (["models=RUN", "weights=WEIGHTS", "examples=nowhere"], "nowhere does not exist"),
    ],
)
def test_what_the_command_refuses(
    given: list[str], sentence: str, own_runs: dict[str, Path], folder: Path, demo_data: Path, tmp_path: Path
) -> None:
    places = {"RUN": str(own_runs["vqa"]), "WEIGHTS": str(folder / "detector.pth")}
    given = [re.sub("RUN|WEIGHTS", lambda found: places[found[0]], one) for one in given]
    assert sentence in refused_in_process("app", demo_data, tmp_path / "run", *given)


def test_without_gradio_the_command_says_what_to_install(
    own_runs: dict[str, Path], folder: Path, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    given = [f"models={own_runs['vqa']}", f"weights={folder / 'detector.pth'}"]
    assert "pip install 'vinvl[app]'" in refused_in_process("app", demo_data, tmp_path / "run", *given)


def test_the_words_model_and_detector_are_no_groups_here() -> None:
    assert models_and_detector(["model=a", "detector=b", "task=c"]) == ["models=a", "weights=b", "task_name=c"]
