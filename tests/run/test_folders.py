"""Where runs and checkpoints lie, how an error reaches a person, and what a failed run leaves."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset

from vinvl.run import folders as runs
from vinvl.run.door import remove_empty_run, run_door
from vinvl.run.errors import UserError, sentence_of

LAUNCHERS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, "VINVL_DATA", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def checkpoint(folder: Path, run: str, which: str, age: int = 0, name: str = "demo") -> Path:
    """An (empty) checkpoint in a run of a name, `age` seconds old."""
    path = folder / name / run / "checkpoints" / f"{which}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1_000_000_000 - age, 1_000_000_000 - age))
    return path


# --- where runs lie ---


def test_rank_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for launcher in LAUNCHERS:
        assert runs.process_rank() == 0
        monkeypatch.setenv(launcher, "3")
        assert runs.process_rank() == 3
        monkeypatch.setenv(launcher, "")


def test_a_fresh_run_gets_a_folder_named_by_the_time(tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    for nothing_to_continue in (None, "last", str(checkpoint(tmp_path / "elsewhere", "one", "last"))):
        folder = Path(runs.run_directory(str(tmp_path), "demo", nothing_to_continue))
        assert folder.parent == tmp_path / "demo"
        assert before <= datetime.strptime(folder.name[:19], "%Y-%m-%d_%H-%M-%S") <= datetime.now()
        assert not folder.exists()  # naming it makes nothing


@pytest.mark.parametrize("which", ["last", "best"])
def test_going_on_happens_in_the_folder_of_the_newest_checkpoint(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = checkpoint(tmp_path, "one", which, age=10)
    checkpoint(tmp_path, "two", which, age=20)
    checkpoint(tmp_path, "three", "best" if which == "last" else "last", age=5)
    assert runs.newest_checkpoint(tmp_path, "demo", which) == newest
    for given in (which, str(newest)):
        assert runs.resolve_checkpoint(given, str(tmp_path), "demo") == newest
    for rank in ("0", "2"):  # which else keeps out of the way of the others
        monkeypatch.setenv("RANK", rank)
        assert Path(runs.run_directory(str(tmp_path), "demo", which)) == tmp_path / "demo" / "one"
    assert Path(runs.run_directory(str(tmp_path), "demo", None)) == tmp_path / "demo" / "ranks" / "rank-2"


def test_without_a_name_the_newest_run_of_all_is_found_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path, "old", "best", age=20)
    job = checkpoint(tmp_path, "today/0", "best", age=5, name="multirun")
    assert runs.resolve_checkpoint("best", str(tmp_path), None) == job
    assert f"The newest run that has a best checkpoint: {job}" in capsys.readouterr().err
    newest = checkpoint(tmp_path, "new", "best", age=1, name="other")
    assert runs.resolve_checkpoint("best", str(tmp_path), None) == newest
    runs.resolve_checkpoint("best", str(tmp_path), "demo")
    assert capsys.readouterr().err.count("The newest") == 1
    with pytest.raises(UserError, match=r"no run under \S+ has a checkpoints/last.ckpt; give a file\."):
        runs.resolve_checkpoint("last", str(tmp_path), None)


def test_auto_names_the_same_folder_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, job, name in (("0", "", "auto"), ("3", "", "auto"), ("0", "4711", "slurm-4711"), ("3", "9", "slurm-9")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert runs.run_directory(str(tmp_path), "demo", "auto") == str(tmp_path / "demo" / name)


def test_nothing_to_go_on_from_is_refused_by_name(tmp_path: Path) -> None:
    for name, told in (("last", r"no run under .*demo has a checkpoints/last.ckpt"), ("x.ckpt", "x.ckpt does not exi")):
        with pytest.raises(UserError, match=told):
            runs.resolve_checkpoint(name, str(tmp_path), "demo")


def test_data_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINVL_DATA", str(tmp_path / "elsewhere"))
    assert runs.data_root() == str(tmp_path / "elsewhere")
    monkeypatch.setenv("VINVL_DATA", "")
    root = runs.repository_root()
    assert root is not None and runs.data_root() == str(root / "data")
    monkeypatch.setattr(runs, "PACKAGE", tmp_path / "site-packages" / "vinvl")  # as if installed from a wheel
    monkeypatch.chdir(tmp_path)
    assert runs.repository_root() is None and runs.data_root() == str(tmp_path / "data")
    assert runs.config_directory() == str(tmp_path / "site-packages" / "vinvl" / "conf")


# --- how an error reaches a person ---

TOLD = "regions.h5 has no image 7: extract it."


class Spoilt(Dataset[int]):
    """Every item is refused, in the data worker that reads it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise KeyError("index")
        except KeyError as error:
            raise UserError(TOLD) from error


def refuse(*_: object) -> None:
    raise UserError(TOLD)


def wrap(error: BaseException) -> BaseException:
    """As Hydra's instantiate wraps what a constructor raises, twice."""
    inner, outer = ValueError("Error in call to target 'a'"), RuntimeError("Error in call to target 'b'")
    inner.__cause__, outer.__cause__ = error, inner
    return outer


def while_cleaning_up() -> None:
    try:
        refuse()
    finally:
        raise KeyError("while cleaning up")


def in_another_process() -> None:
    with ProcessPoolExecutor(1) as pool:
        list(pool.map(refuse, [1]))


@pytest.mark.parametrize("fails", [refuse, while_cleaning_up, in_another_process, lambda: next(iter(LOADER))])
def test_a_sentence_is_found_wherever_it_was_said(fails: Callable[[], object]) -> None:
    with pytest.raises((UserError, KeyError)) as caught:
        fails()
    assert sentence_of(caught.value) == sentence_of(wrap(caught.value)) == TOLD


LOADER = DataLoader(Spoilt(), num_workers=1)


def test_other_errors_have_no_sentence() -> None:
    assert sentence_of(wrap(KeyError("a"))) is None
    assert sentence_of(ValueError("vinvl.run.errors.UserError: not one")) is None


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    return OmegaConf.create({"paths": {"output_dir": str(tmp_path / "run"), "runs_dir": str(tmp_path / "runs")}})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a" * 300, rf"No file can have the name '{'a' * 60}'…, which is too long: give another\."),
        ("a\0b", r"a name that no file can have \(.*embedded null .*\)"),
        ("a\ud800b", r"a name that no file can have \('utf-8' codec .* surrogates not allowed\)"),
        ("", "a name that no file can have .*empty name"),
    ],
)
def test_a_door_says_which_name_no_file_can_have(name: str, sentence: str, config: DictConfig) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        run_door(lambda _: Path(name).with_name(Path(name).name or "b").with_suffix("").stat(), config)


def test_a_door_prints_sentences_and_warnings_escaped_and_keeps_other_tracebacks(
    config: DictConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn_and_refuse(_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("skipped \x1b[31m\nimage\u202e", stacklevel=1)
        raise UserError("split '\x1b]0;me\x07' is unknown.")

    with pytest.raises(SystemExit) as left:
        run_door(warn_and_refuse, config)
    assert left.value.code == r"error: split '\x1b]0;me\x07' is unknown."  # printed to stderr, exit code 1
    assert r"skipped \x1b[31m\nimage\u202e" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_door(lambda _: 1 / 0, config)


# --- what a failed run leaves ---


def failed_run(folder: Path) -> Path:
    """The folder as Hydra leaves it."""
    (folder / "csv").mkdir(parents=True)
    for name in (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "train.log",
                 "train_ddp_process_1.log"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("a: 1\n")
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_an_empty_run_is_removed_by_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = failed_run(tmp_path / "runs" / "demo" / "now")
    monkeypatch.setenv("RANK", "1")
    remove_empty_run(folder)
    assert (folder / ".hydra" / "config.yaml").exists()
    monkeypatch.setenv("RANK", "0")
    remove_empty_run(folder)
    assert list((tmp_path / "runs" / "demo").iterdir()) == []
    remove_empty_run(tmp_path / "never" / "made")


def test_what_is_empty_above_a_removed_run_goes_too_up_to_the_folder_of_runs(tmp_path: Path) -> None:
    runs = tmp_path / "own" / "runs"
    remove_empty_run(failed_run(runs / "demo" / "now"), tmp_path / "elsewhere")
    assert (runs / "demo").is_dir()
    (runs / "kept").mkdir()
    remove_empty_run(failed_run(runs / "demo" / "now"), runs)
    assert [one.name for one in runs.iterdir()] == ["kept"]
    (runs / "kept").rmdir()
    remove_empty_run(failed_run(runs / "demo" / "now"), runs)
    assert list((tmp_path / "own").iterdir()) == []


@pytest.mark.parametrize(
    "kept",
    [
        "results.json",
        "checkpoints/last.ckpt",
        "slurm-4711.log",  # hydra.run.dir may be a folder of one's own
        "notes/train.log",
        "earlier/.hydra/config.yaml",
        ".hydra/more/results.json",
        "a link",
        "no .hydra",
    ],
)
def test_a_run_with_anything_of_value_stays_as_it_is(tmp_path: Path, kept: str) -> None:
    folder = failed_run(tmp_path / "now")
    if kept == "no .hydra":
        (folder / ".hydra").rename(folder / "hydra")
    elif kept == "a link":
        (folder / "checkpoints").symlink_to(tmp_path / "nowhere")
    else:
        (folder / kept).parent.mkdir(parents=True, exist_ok=True)
        (folder / kept).write_text("dear to somebody")
    before = tree(folder)
    remove_empty_run(folder)
    assert tree(folder) == before and (folder / "checkpoints").is_symlink() == (kept == "a link")
