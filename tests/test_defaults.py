"""What is made in Python without Hydra has the numbers of the configuration."""

import inspect
import re
from typing import Any

import pytest
from hydra.utils import instantiate

from tests.test_conf import composed, located, targets

BASE = ("train", "model=base", "optim=adamw_linear")  # what is general, and not the demo's
PLACES = [f"data.splits.{split}.{what}=HERE" for split in ("train", "val") for what in ("annotations", "pictures")]
DETECTOR = ["detector=x152c4", "detection_data=coco_json", "detection_recipe=_base", "+optim.scheduler=null"]
GENERAL = {
    **{data: (*BASE, f"data={data}") for data in ("vqa", "gqa", "nlvr2", "retrieval", "captions", "oscarplus_corpus")},
    "constant": ("train", "model=base", "optim=adamw_constant", "data=vqa"),
    "detector": ("train_detector", *DETECTOR, *PLACES),
}
FILES = {
    "token_cache",
    "choices",
    "scene_graphs",
}  # below paths.data_dir; None in Python
OF_ONES_OWN = {"splits", "regions", "answers"}


def in_python(value: Any) -> Any:
    """A value of the configuration as a default has it: without an empty dict or list, which is None there."""
    if isinstance(value, dict) and "_target_" in value:
        return instantiate(value)
    return tuple(value) or None if isinstance(value, list) else None if value == {} else value


@pytest.mark.parametrize("general", GENERAL)
def test_defaults_are_the_numbers_of_the_configuration(general: str) -> None:
    compared = 0
    for name, section in targets(composed(*GENERAL[general])):
        ours = re.match(r"vinvl\.(?!run\.)", name)
        parameters = inspect.signature(located(name)).parameters if ours else {}
        if name.endswith("DataModule"):
            assert set(section) - {"_target_"} == set(parameters)  # each can be completed, and none is behind **
            assert {key for key, one in parameters.items() if one.default is one.empty} <= OF_ONES_OWN
        for key, one in parameters.items():
            if one.default is not one.empty and key in section and key not in FILES:
                assert one.default == in_python(section[key]), (name, key)
                compared += 1
    assert compared > 20
