"""The table of what was released and reported, and our figures beside it."""

import pytest

from tests.test_conf import composed
from vinvl.published import DATA_OF_FOLDER
from vinvl.zoo import files_of, what_to_get, zoo


@pytest.mark.parametrize("name", sorted(set(DATA_OF_FOLDER.values())))
def test_it_is_known_where_the_release_had_every_file(name: str) -> None:
    data = composed("evaluate", f"data={name}")["data"]
    listed = [path for split in data["splits"] if data["splits"][split] for path in files_of(data, split)]
    assert listed and all(path.startswith("/published/") or "oscarplus" in path for path in listed)
    for path in listed:
        assert what_to_get(path).startswith(f"{path}: ")
    used = {what_to_get(path).partition(": ")[2] for path in listed}
    assert len(used) > 1


def test_every_scored_split_is_one_of_its_data() -> None:
    for name, scored in zoo()["scored"].items():
        data = composed("evaluate", f"data={name}")["data"]
        assert set(scored["splits"]) <= set(data["splits"])
        assert {key for one in scored["splits"].values() for key in one.get("set", {})} <= set(data)
