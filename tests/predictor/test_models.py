"""Models of every origin: checkpoints old and hostile, converted and published folders, and what each cannot do."""

import json
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vinvl
from tests.models.test_convert_weights import as_mmf
from tests.models.test_convert_weights import run as convert
from tests.predictor.samples import close, store_of, tensors
from vinvl.models import VinVLForPreTraining
from vinvl.predictor import OtherFeatures
from vinvl.predictor.trained import Usage, published_inputs
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow

QUESTION = "how many red things are there?"


@pytest.fixture(scope="module")
def ids(demo_data: Path) -> list[str]:
    return [str(one) for one in RegionStore(store_of(demo_data)).image_ids]


def load(model: str | Path, data: Path, **given: Any) -> vinvl.Predictor:
    return vinvl.load(model, features=store_of(data), **({"device": "cpu"} | given))


def answered(model: vinvl.Predictor, ids: list[str]) -> list[list[tuple[str, float]]]:
    return [list(one.top) for one in model.ask(ids, QUESTION, top=50)]


def assert_same_answers(one: vinvl.Predictor, other: vinvl.Predictor, ids: list[str]) -> None:
    first, second = answered(one, ids), answered(other, ids)
    assert [[text for text, _ in top] for top in first] == [[text for text, _ in top] for top in second]
    close([score for top in first for _, score in top], [score for top in second for _, score in top])


class TestCheckpointsOfOurs:
    def test_the_settings_are_those_of_the_run(self, runs: dict[str, Path], demo_data: Path) -> None:
        vqa, writer, matcher = (load(runs[task], demo_data).trained for task in ("vqa", "captioning", "retrieval"))
        assert vqa.usage is not None and (vqa.usage.max_tokens, vqa.usage.max_regions) == (40, 7)
        assert list(vqa.answers) == tensors(runs["vqa"])["hyper_parameters"]["answers"]
        assert writer.usage is not None and writer.usage.decoding["num_beams"] == 3
        assert writer.usage.max_caption_tokens == 12
        assert matcher.usage is not None and matcher.usage.attention_type == "CR"

    def test_every_setting_can_be_overridden(self, runs: dict[str, Path], demo_data: Path, ids: list[str]) -> None:
        usual = answered(load(runs["vqa"], demo_data), ids)
        for inputs in ({"max_regions": 2}, {"use_tags": False}, {"use_regions": False}, {"max_tokens": 9}):
            assert answered(load(runs["vqa"], demo_data, inputs=inputs), ids) != usual
        names = [f"answer {i}" for i in range(len(usual[0]))]
        named = load(runs["vqa"], demo_data, answers=names).ask(ids[0], QUESTION)
        assert named.answer.startswith("answer ") and math.isclose(named.score, usual[0][0][1], rel_tol=1e-5)
        own = tensors(runs["vqa"])["hyper_parameters"]["answers"]
        assert_same_answers(load(runs["vqa"], demo_data, answers=own[::-1]), load(runs["vqa"], demo_data), ids)
        with pytest.raises(UserError, match=r"was not trained with 1 of the answers .* the first 'kettle'"):
            load(runs["vqa"], demo_data, answers=[*own[:-1], "kettle"])

    @pytest.mark.parametrize(
        ("task", "given", "sentence"),
        [
            ("vqa", {"inputs": {"max_region": 3}}, "have no 'max_region': did you mean max_regions"),
            ("vqa", {"inputs": {"max_regions": 2.5}}, "max_regions is 2.5; give a whole number"),
            ("vqa", {"inputs": {"use_tags": "no"}}, "use_tags is 'no'; give true or false"),
            ("vqa", {"inputs": {"max_tokens": 500}}, "may take 500 positions, and the model knows 128"),
            ("vqa", {"inputs": {"tags": "nowhere.json"}}, r"nowhere\.json does not exist"),
            ("vqa", {"decoding": {"num_beams": 2}}, "writes no captions: leave decoding out"),
            ("vqa", {"answers": ["yes"]}, "lists 1 answers, and .* has a head for"),
            ("vqa", {"answers": [1] * 5}, "holds what is no text"),
            ("vqa", {"task": "captioning"}, "has no head for this task"),
            ("vqa", {"task": "vqq"}, "There is no task 'vqq'"),
            (
                "vqa",
                {"tokenizer": "/nowhere/at/all"},
                "There is no tokenizer folder /nowhere/at/all: give one that exists",
            ),
            ("vqa", {"device": "abacus"}, "device='abacus' cannot be used"),
            ("vqa", {"dtype": "float16"}, "dtype='float16' is unknown"),
            ("vqa", {"batch_size": 0}, "batch_size=0"),
            ("vqa", {"detector_batch_size": 0}, "detector_batch_size=0"),
            ("vqa", {"detector": "nowhere.pth", "labels": "none"}, "There is no detector weight file nowhere.pth"),
            ("captioning", {"decoding": {"beams": 3}}, "have no 'beams'"),
            ("captioning", {"decoding": {"num_beams": 0}}, "num_beams=0"),
            (
                "captioning",
                {"decoding": {"num_beams": 2, "num_return_sequences": 3}},
                "num_return_sequences 3 is above num_beams 2",
            ),
            ("captioning", {"decoding": {"constraints": {"regions": "nowhere.h5"}}}, r"nowhere\.h5"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, task: str, given: dict[str, Any], sentence: str, runs: dict[str, Path], demo_data: Path
    ) -> None:
        with pytest.raises(UserError, match=sentence) as refused:
            load(runs[task], demo_data, **given)
        assert "\n" not in str(refused.value)

    def test_checkpoints_from_before_features_were_recorded_and_of_other_features(
        self, runs: dict[str, Path], demo_data: Path, ids: list[str], tmp_path: Path
    ) -> None:
        content = tensors(runs["vqa"])
        content["vinvl"]["features"]["detector"] = "X152-C4, NMS_FILTER 2"
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.warns(OtherFeatures, match="trained on features of 'X152-C4, NMS_FILTER 2', and RegionStore"):
            load(tmp_path / "other.ckpt", demo_data)
        del content["vinvl"]["features"]
        torch.save(content, tmp_path / "old.ckpt")
        with warnings.catch_warnings():
            warnings.simplefilter("error", OtherFeatures)
            assert_same_answers(load(tmp_path / "old.ckpt", demo_data), load(runs["vqa"], demo_data), ids)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value at a dotted path of a checkpoint."""

    def apply(content: dict[str, Any]) -> None:
        *sections, name = path.split(".")
        for section in sections:
            content = content[section]
        content[name] = value

    return apply


DATA, DECODING = "vinvl.run_config.data", "hyper_parameters.decoding"
SHELL = {"_target_": "os.system", "command": "touch owned"}


class TestHostileCheckpoints:
    @pytest.mark.parametrize(
        ("task", "forge", "sentence"),
        [
            ("vqa", change(f"{DATA}.max_tokens", "many"), "max_tokens is 'many'"),
            ("vqa", change(f"{DATA}.max_regions", -1), "max_regions is -1"),
            ("vqa", change(f"{DATA}.max_regions", 10**60), "max_regions is 1000"),
            ("vqa", change(f"{DATA}.use_tags", SHELL), r"use_tags is {'_target_'"),
            ("vqa", change(f"{DATA}.tags", ["a", 1]), r"tags is \['a', 1\]"),
            ("vqa", change(f"{DATA}.tokenizer", "${oc.env:HOME}"), "There is no tokenizer folder"),
            ("vqa", change(f"{DATA}.tokenizer", "a" * 5000), "There is no tokenizer folder"),
            ("vqa", change("vinvl.run_config", []), "lacks the 'vinvl' record"),
            ("vqa", change("vinvl.task_class", "os.system"), "checkpoint of 'os.system'"),
            ("vqa", change("vinvl.task_class", "vinvl.task.VinVLTask"), "a checkpoint of 'vinvl.task.VinVLTask'"),
            ("vqa", change("hyper_parameters.answers", ["yes"]), "does not carry the texts of its"),
            ("vqa", change("hyper_parameters.answers", SHELL), "does not carry the texts of its"),
            ("vqa", change("hyper_parameters.model_config.num_attention_heads", 10**9), "must be a whole number"),
            ("vqa", change("hyper_parameters.model_config.hidden_size", 10**9), "contradicts itself"),
            ("vqa", change("hyper_parameters.model_config", 3), "training checkpoint"),
            ("retrieval", change(f"{DATA}.attention_type", "XYZ"), "attention_type is 'XYZ'"),
            ("captioning", change(f"{DATA}.max_caption_tokens", 10**6), "positions, and the model knows"),
            ("captioning", change(f"{DECODING}.num_beams", "5"), r"decoding\.num_beams is '5'"),
            ("captioning", change(f"{DECODING}.length_penalty", math.nan), r"decoding\.length_penalty is nan"),
            ("captioning", change(f"{DECODING}.sample", 1), r"decoding\.sample is 1"),
            ("captioning", change(f"{DECODING}.constraints", SHELL), "has no '_target_'"),
            ("captioning", change(f"{DECODING}.constraints", ["x"]), r"decoding\.constraints is \['x'\]"),
            ("captioning", change(f"{DECODING}.constraints", {"max_constraints": "x"}), "max_constraints='x'"),
            ("captioning", change(f"{DECODING}.max_length", 10**6), "positions, and the model knows"),
        ],
    )
    def test_each_is_refused_in_one_sentence(
        self, task: str, forge: Any, sentence: str, runs: dict[str, Path], demo_data: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        content = tensors(runs[task])
        forge(content)
        torch.save(content, tmp_path / "forged.ckpt")
        with pytest.raises(UserError, match=sentence) as refused:
            load(tmp_path / "forged.ckpt", demo_data)
        assert "\n" not in str(refused.value)
        assert [path.name for path in tmp_path.iterdir()] == ["forged.ckpt"]

    @pytest.mark.parametrize(
        "forge",
        [
            change(DATA, SHELL),
            change(f"{DATA}._target_", "os.system"),
            change(f"{DATA}.prepare", SHELL),
            change(f"{DATA}.splits", "${oc.create:${oc.decode:'{_target_:os.system}'}}"),
            change("vinvl.features", SHELL),
            change("vinvl.features", {"provenance": {"weights_sha256": SHELL, "boxes": 10**400}, "detector": [1]}),
            change("hyper_parameters.init", "someone/else"),
            change("hyper_parameters.optimizer", "os.system"),
        ],
    )
    def test_nothing_that_one_names_is_called(
        self, forge: Any, runs: dict[str, Path], demo_data: Path, ids: list[str], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        content = tensors(runs["vqa"])
        forge(content)
        torch.save(content, tmp_path / "forged.ckpt")
        tokenizer = demo_data / "demo" / "tokenizer"
        assert load(tmp_path / "forged.ckpt", demo_data, tokenizer=tokenizer).ask(ids[0], QUESTION).answer
        assert [path.name for path in tmp_path.iterdir()] == ["forged.ckpt"]

    def test_a_pickle_that_is_a_program_is_not_run(self, demo_data: Path, tmp_path: Path) -> None:
        class Harmful:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "owned",)

        torch.save({"vinvl": Harmful()}, tmp_path / "hostile.ckpt")
        with pytest.raises(UserError, match="was not opened"):
            load(tmp_path / "hostile.ckpt", demo_data)
        assert not (tmp_path / "owned").exists()


class TestFolders:
    @pytest.mark.parametrize("task", ["vqa", "retrieval", "captioning", "nlvr2"])
    def test_a_converted_folder_is_used_as_its_checkpoint(
        self, task: str, runs: dict[str, Path], demo_data: Path, ids: list[str], tmp_path: Path
    ) -> None:
        there = convert(runs[task], tmp_path / "out")
        one, other = load(runs[task], demo_data), load(there, demo_data)
        assert one.trained.usage is not None and other.trained.usage is not None
        assert one.trained.usage == other.trained.usage and other.trained.task == task
        assert one.trained.features == other.trained.features
        published = convert(there, tmp_path / "oscar", "format=oscar")  # which says no more than this of its task
        assert json.loads((published / "config.json").read_text())["finetuning_task"] == task
        if task == "vqa":
            assert_same_answers(one, other, ids)
        elif task == "captioning":
            assert [c.text for c in one.caption(ids)] == [c.text for c in other.caption(ids)]
        else:
            images: Any = ids if task == "retrieval" else list(zip(ids, ids[1:] + ids[:1], strict=True))
            close(one.score(images, "a red circle"), other.score(images, "a red circle"))

    def test_a_published_folder_is_used_as_published(
        self, runs: dict[str, Path], demo_data: Path, ids: list[str], tmp_path: Path
    ) -> None:
        there = convert(runs["vqa"], tmp_path / "oscar", "format=oscar")
        answers = json.loads((there / "answers.json").read_text())
        (there / "answers.json").unlink()
        (tmp_path / "trainval_label2ans.pkl").write_bytes(pickle.dumps(answers))
        config = json.loads((there / "config.json").read_text())
        (there / "config.json").write_text(json.dumps(config | {"finetuning_task": "vqa_text"}))
        with pytest.raises(UserError, match=r"does not carry the texts of its \d+ answers: pass answers=FILE"):
            load(there, demo_data)
        found = load(there, demo_data, answers=tmp_path / "trainval_label2ans.pkl")
        assert found.trained.usage is not None and found.trained.task == "vqa"
        assert found.trained.usage == Usage.of_task("vqa", {}, {}, {}, "")
        assert (found.trained.usage.max_tokens, found.trained.usage.max_regions) == (128, 50)
        ours = load(runs["vqa"], demo_data, inputs={"max_tokens": 128, "max_regions": 50})
        assert_same_answers(found, ours, ids)
        (there / "config.json").write_text(json.dumps(config | {"finetuning_task": None}))
        with pytest.raises(UserError, match=r"does not say what its classifier of .* was trained for: pass task=vqa"):
            load(there, demo_data, answers=answers)
        as_gqa = load(there, demo_data, answers=answers, task="gqa", inputs={"max_tokens": 100})
        assert as_gqa.trained.usage is not None and as_gqa.trained.usage.max_regions == 45

    def test_models_of_mmf_see_what_mmf_shows_them(
        self, runs: dict[str, Path], demo_data: Path, ids: list[str], tmp_path: Path
    ) -> None:
        state = {name.removeprefix("model."): one for name, one in tensors(runs["vqa"])["state_dict"].items()}
        model = {name: one for name, one in state.items() if name.startswith(("bert.", "classifier."))}
        (tmp_path / "mmf").mkdir()
        torch.save(as_mmf(model, "model.vinvl."), tmp_path / "mmf" / "model.pth")
        (tmp_path / "mmf" / "config.json").write_text('{"num_attention_heads": 2, "loss_type": "bce"}')
        answers = tensors(runs["vqa"])["hyper_parameters"]["answers"]
        given: dict[str, Any] = {"task": "vqa", "answers": answers, "tokenizer": demo_data / "demo" / "tokenizer"}
        found = load(tmp_path / "mmf" / "model.pth", demo_data, **given)
        assert found.trained.usage is not None
        assert (found.trained.usage.max_tokens, found.trained.usage.max_regions) == (70, 70)
        assert found.trained.usage.tag_form == "attribute+class"
        shown = {"max_tokens": 70, "max_regions": 70, "tag_form": "attribute+class"}
        assert_same_answers(found, load(runs["vqa"], demo_data, inputs=shown), ids)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("[1]", "holds no JSON object"),
            ("{", "is not valid JSON"),
            ('{"task": "cook"}', "names an unknown task"),
            ('{"task": ["vqa"]}', "names an unknown task"),
            ('{"task": "vqa", "inputs": {"max_tokens": "x"}}', "max_tokens is 'x'"),
            ('{"task": "vqa", "decoding": {"num_beams": {}}}', "num_beams is {}"),
        ],
    )
    def test_a_damaged_settings_file_is_refused(
        self, content: str, sentence: str, runs: dict[str, Path], demo_data: Path, tmp_path: Path
    ) -> None:
        there = convert(runs["vqa"], tmp_path / "out")
        (there / "vinvl.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            load(there, demo_data)

    def test_folders_without_a_model(self, demo_data: Path, tmp_path: Path) -> None:
        for name, sentence in ((tmp_path, "holds no weights"), (tmp_path / "none", "There is no model folder")):
            with pytest.raises(UserError, match=sentence):
                load(name, demo_data)


class TestAbilities:
    @pytest.mark.parametrize(
        ("task", "method", "sentence"),
        [
            ("captioning", "ask", "is a model for captioning: ask needs one that was trained for VQA or GQA"),
            ("vqa", "caption", "is a model for vqa: caption needs a captioning model"),
            ("vqa", "score", "is a model for vqa: score needs one that was trained for image-text retrieval"),
            ("nlvr2", "ask", "is a model for nlvr2: ask needs one"),
        ],
    )
    def test_a_method_that_the_model_has_not(
        self, task: str, method: str, sentence: str, runs: dict[str, Path], demo_data: Path, ids: list[str]
    ) -> None:
        model = load(runs[task], demo_data)
        arguments = (ids[0],) if method == "caption" else (ids[0], QUESTION)
        with pytest.raises(UserError, match=sentence) as refused:
            getattr(model, method)(*arguments)
        assert str(runs[task]) in str(refused.value)
        assert len(model.regions(ids[0])) > 0  # which every model has

    def test_statements_need_two_pictures(self, runs: dict[str, Path], demo_data: Path, ids: list[str]) -> None:
        model = load(runs["nlvr2"], demo_data)
        for image in (ids[0], ids[:2], [(ids[0],)], (ids[0], ids[1], ids[2]), [ids[:2]]):
            with pytest.raises(UserError, match="give a tuple of the left and the right one"):
                model.score(image, QUESTION)
        one = model.score((ids[0], ids[1]), "there are two stars")
        many = model.score([(ids[0], ids[1]), (ids[1], ids[0])], "there are two stars")
        assert isinstance(one, float) and math.isclose(one, many[0], rel_tol=1e-5)
        assert model.score((ids[0], ids[1]), ["there are two stars", "a"]) == pytest.approx(
            [one, model.score((ids[0], ids[1]), "a")]
        )

    def test_models_that_are_yet_to_be_fine_tuned_show_regions(
        self, runs: dict[str, Path], demo_data: Path, ids: list[str], tmp_path: Path
    ) -> None:
        encoder = load(convert(runs["vqa"], tmp_path / "encoder", "task=encoder"), demo_data)
        assert encoder.trained.task == "encoder" and len(encoder.regions(ids)) == len(ids)
        with pytest.raises(UserError, match="is a model for encoder: ask needs"):
            encoder.ask(ids[0], QUESTION)
        config = encoder.trained.model.config
        config.num_labels = 3
        VinVLForPreTraining(config).save_pretrained(tmp_path / "pretrained")
        assert load(tmp_path / "pretrained", demo_data).trained.task == "pretraining"

    @pytest.mark.parametrize("top", [0, True, 2.0])
    def test_the_number_of_answers(self, top: Any, runs: dict[str, Path], demo_data: Path, ids: list[str]) -> None:
        model = load(runs["vqa"], demo_data)
        with pytest.raises(UserError, match="must be a whole number"):
            model.ask(ids[0], QUESTION, top=top)
        assert len(model.ask(ids[0], QUESTION, top=2).top) == 2
        assert str(model.ask(ids[0], QUESTION)).endswith(")")


def test_the_published_numbers_are_those_of_conf() -> None:
    """VinVL_MODEL_ZOO.md, as conf/data cites it."""
    numbers = {task: published_inputs(task) for task in ("vqa", "gqa", "nlvr2", "retrieval", "captioning")}
    assert {task: (one["max_tokens"], one["max_regions"], one["use_tags"]) for task, one in numbers.items()} == {
        "vqa": (128, 50, True), "gqa": (165, 45, True), "nlvr2": (55, 40, False), "retrieval": (70, 70, True),
        "captioning": (70, 50, True),
    }  # fmt: skip
    assert Usage.of_task("captioning", {}, {}, {}, "").decoding_options.num_beams == 5


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, vinvl; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert vinvl.load.__module__ == "vinvl.predictor.predictor"
    with pytest.raises(AttributeError, match="module 'vinvl' has no attribute 'lod'"):
        _ = vinvl.lod  # type: ignore[attr-defined]
