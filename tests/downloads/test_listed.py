"""conf/download: every list reads, and puts each data set where the configuration that reads it expects it."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_conf import CONF, GROUPS, composed
from vinvl.download import main
from vinvl.downloads.listed import chosen_parts, listed_names, read_list
from vinvl.run.errors import UserError

LISTS = {name: read_list(name) for name in listed_names()}
DATA = Path("/data")
# Data of one's own, the bases of other choices, and the demo's generated world.
NOT_DOWNLOADED = re.compile(
    "data=(demo_.*|vqa|vqa_jsonl|captions|retrieval|oscarplus_corpus)|detection_data=(demo.*|sets|coco_json)"
)
READ_BY = sorted({choice for data in LISTS.values() for choice in data.read_by})


def put(choice: str) -> set[Path]:
    """Where the lists of a choice put files and folders, or say what makes them."""
    lists = [data for data in LISTS.values() if choice in data.read_by]
    parts = [(DATA / part.to, part) for data in lists for part in data.parts.values()]
    made = {target for to, part in parts for file in part.files for target in file.targets(DATA / (file.to or part.to))}
    made |= {to for to, _ in parts if to.parent != DATA}  # detector/objects365, and not all of coco
    return made | {DATA / place for data in lists for place in data.then}


def paths(value: Any) -> Iterator[Path]:
    """Every path below the data folder at any depth of a configuration."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item) if key not in ("token_cache", "to") else ()
    elif isinstance(value, list):
        for item in value:
            yield from paths(item)
    elif isinstance(value, str) and value.startswith((f"{DATA}/", "/published/")):
        yield Path(re.sub("^/published/", f"{DATA}/vinvl/", value))  # the root that all are composed with


@pytest.mark.parametrize("choice", READ_BY)
def test_what_a_configuration_reads_is_where_its_lists_put_it(choice: str) -> None:
    config = composed("train" if choice.startswith("data=") else "train_detector", choice, f"paths.data_dir={DATA}")
    needs = list(paths(config["data"]))
    places = [str(place).replace("/vinvl/datasets/", "/vinvl/") for place in put(choice)]
    missing = [
        need
        for need in needs  # of released features it has patterns
        if not any(fnmatch(place, str(one)) for one in (need, *need.parents[:-2]) for place in places)
    ]
    assert needs and missing == []


def test_every_choice_of_data_is_in_a_list_or_needs_none() -> None:
    choices = {f"{group}={name}" for group in ("data", "detection_data") for name in GROUPS[group]}
    assert {choice for choice in choices if not NOT_DOWNLOADED.fullmatch(choice)} == set(READ_BY)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_names_its_sources(name: str) -> None:
    data, text = LISTS[name], (CONF / "download" / f"{name}.yaml").read_text()
    files = [(part, file) for part in data.parts.values() for file in part.files]
    assert data.page.startswith("https://") and data.known and set(data.usual) <= set(data.parts)
    for _, file in files:
        assert file.hash is None or re.fullmatch("sha256:[0-9a-f]{64}", file.hash)
        assert not (file.bytes and file.about_gb)
    assert not any(file.hash or file.bytes for _, file in files) or re.search(
        "^# (Sizes?|Hash).*: ", text, re.MULTILINE
    )
    places = [(file.to or part.to, file.name) for part, file in files]
    assert len(set(places)) == len(places)
    targets = [target for part, file in files for target in file.targets(Path(file.to or part.to))]
    assert len(set(targets)) == len(targets)
    for how in data.then.values():
        for called in re.findall(r"[a-z0-9_]+/[a-z0-9_…]+", re.sub(r"\{data\}\S*", "", how)):
            group, _, part = called.partition("/")
            assert group not in LISTS or part in LISTS[group].parts or "…" in part, called


def test_names_and_parts() -> None:
    names = {name: list(parts) for name, _, parts in chosen_parts(["coco", "gqa/metrics", "nlvr2/all"])}
    assert names == {"coco": ["captions"], "gqa": ["metrics"], "nlvr2": ["statements", "pictures"]}
    patches = LISTS["objects365"].parts["pictures"].files
    assert [patches[0].name, patches[50].makes] == ["patch0.tar.gz", ["patch50"]] and len(patches) == 51
    assert [patches[15].to, patches[16].to] == [f"detector/objects365/images/{version}" for version in ("v1", "v2")]
    for words, told in (
        ("vqa22", "There is no data set 'vqa22' to download: did you mean vqa2?"),
        ("../paths/default", "There is no data set '..' to download: there are coco,"),
        ("coco/pictures", "coco has no part 'pictures': give one of captions, annotations,"),
        ("vinvl", "Say which part of vinvl: vinvl/vqa, vinvl/gqa"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            list(chosen_parts([words]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"url": "ftp://host/f"}, "ftp://host/f is no http or https address"),
        ({"url": "https:///f"}, "is no http or https address"),
        ({"to": "../out"}, "'../out' is no place below the data folder"),
        ({"makes": ["/etc/passwd"]}, "'/etc/passwd' is no place below the data folder"),
        ({"named": "a/b"}, "'a/b' is no name of a file"),
        ({"url": "https://host/%2e%2e"}, "'..' is no place below the data folder"),
        ({"url": []}, "needs named and by_hand"),
        ({"sha": "1"}, "is no list of downloads (Object contains unknown field `sha` - at `$.parts[...].files[0]`)"),
        ({"bytes": "many"}, "Expected `int | null`, got `str`"),
    ],
)  # fmt: skip
def test_a_list_of_ones_own_that_cannot_be_used(change: dict[str, Any], told: str, tmp_path: Path, capsys: Any) -> None:
    file = {"url": "https://host/f"} | change
    content = {"what": "", "page": "", "known": "", "parts": {"a": {"what": "", "to": "set", "files": [file]}}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main([str(path), "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and told in error and error.count("\n") == 1
    path.write_bytes(b"\xff: [")
    assert main([str(path)]) == 1 and "is no list of downloads" in capsys.readouterr().err
    assert main([str(tmp_path / "none.yaml")]) == 1 and "does not exist" in capsys.readouterr().err


def test_without_a_name_it_says_what_there_is(capsys: Any) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name}/{part}" in told for name, data in LISTS.items() for part in data.parts)
    assert main(["--list", "gqa"]) == 0 and "coco" not in capsys.readouterr().out
