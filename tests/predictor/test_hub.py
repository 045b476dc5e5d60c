"""Models and detectors by name on the Hugging Face hub, as the doors and `vinvl.load` take them."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vinvl
from tests.detector.samples import small_detector
from tests.door_in_process import composed, run_in_process
from tests.extraction.samples import LABELS, run_extract
from tests.hub_server import Hub
from tests.predictor.samples import picture_paths, train_on
from vinvl.convert import convert
from vinvl.detector.starting import load_what_fits
from vinvl.regions import LabelMap, RegionStore
from vinvl.restore import pin_start
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.survival import differences


def upload(hub: Hub, folder: Path, run: Path, there: Path) -> tuple[str, str]:
    """A converted model and its detector, someone/model and someone/detector; their names with commits."""
    with composed("convert", there, there / "run", f"weights={run}", f"to={there / 'model'}") as config:
        convert(config)
    (there / "detector").mkdir()
    shutil.copy(folder / "detector.pth", there / "detector")
    found = {name: hub.add(f"someone/{name}", there / name).refs["main"] for name in ("model", "detector")}
    return f"someone/model@{found['model']}", f"someone/detector@{found['detector']}"


def test_a_model_and_a_detector_by_name(
    hub: Hub, folder: Path, own_runs: dict[str, Path], model: vinvl.Predictor, demo_data: Path, tmp_path: Path
) -> None:
    name, detector = upload(hub, folder, own_runs["vqa"], tmp_path)
    found = vinvl.load("someone/model", detector="someone/detector", device="cpu")
    assert repr(found) == f"Predictor({name!r}, task='vqa', detector={detector!r})" and found.trained.name == name
    picture = str(next(iter(picture_paths(folder).values())))
    own, there = dict(model.ask(picture, "what is red?").top), dict(found.ask(picture, "what is red?").top)
    assert there == pytest.approx(own)
    again = vinvl.load(name, detector=detector, device="cpu")
    assert again.ask(picture, "what is red?") == found.ask(picture, "what is red?")
    assert not [one for one in hub.downloads() if one in ("README.md", "conversion.txt")]
    assert sorted(hub.downloads()) == sorted(set(hub.downloads()))  # each once
    printed = run_in_process(
        "predict", demo_data, tmp_path / "predicted", "ckpt_path=someone/model", "weights=someone/detector",
        f"image={picture}", "question=what is red?", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert found.ask(picture, "what is red?").answer in printed


def test_a_published_captioning_model(hub: Hub, folder: Path, own_runs: dict[str, Path], tmp_path: Path) -> None:
    converted = [f"weights={own_runs['captioning']}", f"to={tmp_path / 'oscar'}", "format=oscar"]
    with composed("convert", tmp_path, tmp_path / "run", *converted) as config:
        convert(config)
    published = {
        name: (tmp_path / "oscar" / name).read_bytes() for name in ("config.json", "pytorch_model.bin", "vocab.txt")
    }
    hub.add("michelecafagna26/vinvl-base-image-captioning", {**published, "training_args.bin": b"not wanted"})
    hub.add("michelecafagna26/vinvl_vg_x152c4", {"vinvl_vg_x152c4.pth": (folder / "detector.pth").read_bytes()})
    model = vinvl.load(
        "michelecafagna26/vinvl-base-image-captioning", detector="michelecafagna26/vinvl_vg_x152c4", device="cpu",
        decoding={"max_length": 9}, inputs={"max_caption_tokens": 12, "max_tokens": 20},
    )  # fmt: skip
    assert model.caption(str(next(iter(picture_paths(folder).values())))).text
    assert model.trained.task == "captioning" and "training_args.bin" not in hub.downloads()


def test_features_say_where_their_detector_is_from(hub: Hub, folder: Path, tmp_path: Path) -> None:
    commit = hub.add("someone/detector", {"detector.pth": (folder / "detector.pth").read_bytes()}).refs["main"]
    given = [f"images={folder / 'pictures'}", "labels=null", "detector.min_size=24", "detector.max_size=40"]
    for weights, overwrite in (("someone/detector", "false"), (str(folder / "detector.pth"), "false")):
        run_extract(tmp_path, *given, f"weights={weights}", f"output={tmp_path / 'a.h5'}", f"overwrite={overwrite}")
    store = RegionStore(tmp_path / "a.h5")  # the file of the same weights goes on with it
    assert store.provenance["weights_from"] == f"someone/detector@{commit}"
    assert store.provenance["weights"] == "detector.pth"


def test_a_run_says_which_commit_it_began_from(
    hub: Hub, folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    name, _ = upload(hub, folder, own_runs["vqa"], tmp_path)
    best = train_on(folder / "features.h5", "vqa", demo_data, tmp_path / "run", "model.init=someone/model")
    config = read_checkpoint(best)["vinvl"]["run_config"]
    assert config["model"]["init"] == config["task"]["init"] == name
    lines, regions = tmp_path / "run.jsonl", folder / "features.h5"
    given = [
        f"data.splits={{train:{lines},val:{lines},predict:{lines}}}",
        f"data.regions={regions}",
        "data.test_split=val",
    ]
    given += [
        "ckpt_path=someone/model",
        "data=vqa_jsonl",
        "data.num_workers=0",
        f"data.answers={tmp_path}/model/answers.json",
    ]
    run_in_process("evaluate", demo_data, tmp_path / "scored", *given, "trainer.accelerator=cpu")
    assert name.partition("@")[2] in json.loads((tmp_path / "scored" / "results.json").read_text())["checkpoint"]


def test_what_a_run_starts_from_by_name(hub: Hub, folder: Path) -> None:
    name = f"a/d@{hub.add('a/d', {'detector.pth': (folder / 'detector.pth').read_bytes()}).refs['main']}"
    words = hub.add("a/words", {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"}).refs["main"]
    data = {"tokenizer": "a/words"}
    config = OmegaConf.create({"model": {"init": None}, "start": {"init": "a/d"}, "data": data})
    pin_start(config)
    assert config == {"model": {"init": None}, "start": {"init": name}, "data": {"tokenizer": f"a/words@{words}"}}
    assert not [*differences({"data": data}, OmegaConf.to_container(config))]  # a run goes on when the hub has moved on
    labels = LabelMap.from_json(json.dumps(LABELS))
    assert load_what_fits(small_detector(), "a/d", labels).source == name
    config.start.init = str(folder / "detector.pth")
    pin_start(config)
    assert config.start.init == str(folder / "detector.pth")


@pytest.mark.parametrize("given", ["none.pth", "nowhere/at/all", "./model"])
def test_paths_that_are_not_there_are_refused_without_a_question(
    hub: Hub, own_runs: dict[str, Path], given: str, tmp_path: Path
) -> None:
    for wrong in ({"model": given}, {"detector": given}, {"tokenizer": given}):
        with pytest.raises(UserError, match=rf"There is no .* {given}: give one that exists"):
            vinvl.load(**{"model": own_runs["vqa"], **wrong})  # type: ignore[arg-type]
    assert not hub.asked
