"""What is made in Python without Hydra has the numbers of the configuration."""

import inspect
from functools import partial
from typing import Any

import pytest
from hydra.utils import instantiate

from tests.test_conf import composed, located, targets
from vinvl.captioning.task import CaptioningTask
from vinvl.models import VinVLConfig

BASE = ("train", "model=base", "optim=adamw_linear")  # what is general, and not the demo's
PLACES = [f"data.splits.{split}.{what}=HERE" for split in ("train", "val") for what in ("annotations", "pictures")]
DETECTOR = ["detector=x152c4", "detection_data=coco_json", "detection_recipe=_base", "+optim.scheduler=null"]
DATA_OF = {
    "vqa": "vqa", "gqa": "gqa", "nlvr2": "nlvr2", "retrieval": "retrieval", "captioning": "captions",
    "pretraining": "oscarplus_corpus",
}  # fmt: skip
GENERAL = {
    **{task: (*BASE, f"task={task}", f"data={data}") for task, data in DATA_OF.items()},
    "detector": ("train_detector", *DETECTOR, *PLACES),
}
TINY = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
FILES = {
    "token_cache",
    "choices",
    "scene_graphs",
}  # below paths.data_dir; None in Python
OF_ONES_OWN = {"splits", "regions", "answers"}


def in_python(value: Any) -> Any:
    """A value of the configuration, or a default, as the other has it: partials by what they call, lists as tuples."""
    if isinstance(value, dict) and "_target_" in value:
        value = instantiate(value)
    if isinstance(value, partial) or hasattr(value, "keywords"):
        return value.func, {key: in_python(one) for key, one in value.keywords.items()}
    return tuple(value) or None if isinstance(value, list | tuple) else None if value == {} else value


def compare(target: Any, section: dict[str, Any], *left_out: str) -> int:
    """Holds the defaults of what a `_target_` names against a section; how many there are in both."""
    compared = 0
    for key, one in inspect.signature(target).parameters.items():
        if one.default is not one.empty and key in section and key not in left_out:
            assert in_python(one.default) == in_python(section[key]), (target, key)
            compared += 1
    return compared


@pytest.mark.parametrize("general", GENERAL)
def test_defaults_are_the_numbers_of_the_configuration(general: str) -> None:
    compared = 0
    for name, section in targets(composed(*GENERAL[general])):
        target = located(name)
        if name.endswith("DataModule"):
            parameters = inspect.signature(target).parameters
            assert set(section) - {"_target_"} == set(parameters)  # each can be completed, and none is behind **
            assert {key for key, one in parameters.items() if one.default is one.empty} <= OF_ONES_OWN
        if name.endswith("Task.build"):  # what a person calls is the class
            taken = {**section.get("options", {}), **section}
            target, section = (
                target.__self__,
                {key: one for key, one in taken.items() if key not in ("model", "options")},
            )
            assert set(section) - {"_target_"} <= set(inspect.signature(target).parameters)
        if name.startswith("vinvl.") and ".run." not in name:
            compared += compare(target, section, "model_config", "decoding", *FILES)
    assert compared > 20


def test_a_model_and_its_decoding_have_the_defaults_of_the_configuration() -> None:
    config = composed("train", "task=captioning", "model=base", "optim=adamw_linear")
    fields = {key: one for key, one in config["model"]["config"].items() if hasattr(VinVLConfig(), key)}
    del fields["vocab_size"]  # as many as the tokenizer has
    assert len(fields) > 12
    assert fields == {key: getattr(VinVLConfig(), key) for key in fields}
    task = CaptioningTask(model_config=TINY, init=None)
    assert task.decoding == config["decoding"]
    section = composed("train", "optim=adamw_constant")["optim"]["scheduler"]
    assert compare(located(section["_target_"]), section) == 2
