"""Going on with a run: what is refused as another run, and what is not; compiled models; what a run's folder keeps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.door_in_process import TINY, checkpoint, composed, refused_in_process, run_in_process
from vinvl.data.sampling import BatchLoader
from vinvl.pretraining.task import PretrainingTask
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.options import leaves, require_plugins
from vinvl.run.survival import differences, resume_path, tidy_run_folder

PRETRAINING = ["task=pretraining", *TINY, "data.num_workers=0", "trainer.max_epochs=-1", "test_after_fit=false"]
FIRST = [*PRETRAINING, "trainer.max_steps=2", "trainer.accumulate_grad_batches=2"]


@pytest.fixture(scope="module")
def first(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates of a compiled model."""
    folder = tmp_path_factory.mktemp("first") / "run"
    compiled = ["compile.enabled=true", "compile.backend=eager", "compile.dynamic=true"]
    run_in_process("train", demo_data, folder, *FIRST, *compiled)
    return folder


def test_a_compiled_model_has_the_checkpoints_of_any_other(first: Path, demo_data: Path, tmp_path: Path) -> None:
    run_in_process("train", demo_data, tmp_path / "plain", *FIRST)
    compiled, plain = (
        read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (first, tmp_path / "plain")
    )
    assert list(compiled) == list(plain)
    assert all(torch.allclose(compiled[name], plain[name], atol=1e-5) for name in plain)


def test_compiling_is_asked_of_torch(demo_data: Path, tmp_path: Path) -> None:
    """The backend is called at all, and its graphs are what runs."""
    made, run = list[Any](), list[int]()

    def counting(graph: Any, _: Any) -> Any:
        made.append(graph)
        return lambda *given: (run.append(1), graph.forward(*given))[1]

    torch._dynamo.register_backend(counting, name="counting")
    run_in_process("train", demo_data, tmp_path / "run", *FIRST, "compile.enabled=true", "compile.backend=counting")
    assert made and run


def test_what_does_not_make_another_run_may_change(first: Path, demo_data: Path, tmp_path: Path) -> None:
    harmless = ["trainer.max_steps=3", "data.num_workers=1", "data.eval_batch_size=7", "trainer.log_every_n_steps=1"]
    run_in_process("train", demo_data, tmp_path / "run", *FIRST, *harmless, checkpoint(first, "last"))
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.optimizer.lr=1e-3"], "optim.optimizer.lr was"),
        (["data.batch_size=8"], "data.batch_size was 16 and is 8"),
        (["trainer.accumulate_grad_batches=1"], "trainer.accumulate_grad_batches was 2 and is 1"),
        (["seed=5"], "seed was 88 and is 5"),
        (["data.variant=matched"], "data.variant was 'oscar' and is 'matched'"),
        (["model.config.hidden_size=64"], "model.config.hidden_size was 32 and is 64"),
        (["data.splits.train=${data.splits.val}"], "training_order.items was"),
        (["trainer=ddp", "trainer.accelerator=cpu"], "training_order.ranks was 1 and is 2"),
        (["task=vqa", "data.min_answer_count=2"], "is a checkpoint of PretrainingTask, and this run trains VQATask"),
    ],
)
def test_another_run_is_refused(first: Path, demo_data: Path, tmp_path: Path, overrides: list[str], words: str) -> None:
    given = [*FIRST, *overrides, checkpoint(first, "last")]
    sentence = refused_in_process("train", demo_data, tmp_path / "run", *given)
    assert words in sentence and str(first / "checkpoints/last.ckpt") in sentence
    if "trains VQATask" not in words:
        assert f"model.init={first / 'checkpoints/last.ckpt'}" in sentence


FORGED: list[tuple[dict[str, Any], str]] = [
    ({"global_step": 10**9}, "tells of 1000000000 updates in 4 batches"),
    ({"vinvl": {"batches_seen": -1}}, "tells of 2 updates in -1 batches"),
    ({"vinvl": {"batches_seen": "many"}}, "in 'many' batches"),
    ({"vinvl": {"batches_seen": 2**31}}, "in 2147483648 batches"),
    ({"loops": None}, "lacks 'loops'"),
    ({"callbacks": [1]}, "lacks 'callbacks'"),
]


def test_what_a_checkpoint_cannot_have_seen(first: Path, tmp_path: Path) -> None:
    content, forged = read_checkpoint(first / "checkpoints/last.ckpt"), tmp_path / "last.ckpt"
    task = PretrainingTask.from_checkpoint(content, forged)
    for changes, words in FORGED:
        torch.save(content | changes | {"vinvl": content["vinvl"] | changes.get("vinvl", {})}, forged)
        with pytest.raises(UserError, match=rf"{words}.* model\.init={forged}"):
            task.check_resumable(forged)
    loader: Any = SimpleNamespace(state_dict=lambda: {"position": 1})
    BatchLoader.load_state_dict(loader, {"position": 1})
    for position in (-1, 2, 2**31, 1.0, True, None):
        with pytest.raises(UserError, match=r"of 1 training batches whose data go on at .*: it is damaged"):
            BatchLoader.load_state_dict(loader, {"position": position})  # type: ignore[dict-item]


def test_the_weights_may_begin_a_new_run_as_the_refusal_says(first: Path, demo_data: Path, tmp_path: Path) -> None:
    start = f"model.init={first / 'checkpoints/last.ckpt'}"
    run_in_process("train", demo_data, tmp_path / "run", *FIRST, "seed=5", "trainer.max_steps=1", start)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
)


@given(VALUES, st.sampled_from(["optim", "data", "model.config", "trainer.devices", "logger"]), VALUES)
def test_a_run_differs_in_its_recipe_alone(value: Any, section: str, other: Any) -> None:
    def config(of: Any) -> dict[str, Any]:
        nested = of
        for name in reversed(section.split(".")):
            nested = {name: nested}
        return dict(nested)

    assert list(differences(config(value), config(value))) == []
    found = {key for key, _, _ in differences(config(value), config(other))}
    one, two = dict(leaves(config(value))), dict(leaves(config(other)))
    if section in ("trainer.devices", "logger"):
        assert found == set()
    else:
        changed = {key for key in one.keys() & two.keys() if one[key] != two[key]}
        texts = {key for key in changed if isinstance(one[key], str) and isinstance(two[key], str)}
        assert changed - texts <= found <= changed


def test_files_may_have_moved() -> None:
    before = {"data": {"splits": {"train": "/old/disk/train.jsonl"}, "regions": "/old/disk/regions"}}
    moved = {"data": {"splits": {"train": "/new/disk/train.jsonl"}, "regions": "/new/disk/regions"}}
    other = {"data": {"splits": {"train": "/new/disk/other.jsonl"}, "regions": "/new/disk/regions"}}
    assert list(differences(before, moved)) == []
    assert [key for key, _, _ in differences(before, other)] == ["data.splits.train"]


# --- where a run goes on ---


def test_auto_goes_on_in_its_own_folder_alone(demo_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "demo_vqa" / "newer" / "checkpoints" / "last.ckpt"
    other.parent.mkdir(parents=True)
    other.touch()
    given = ["ckpt_path=auto", f"paths.runs_dir={tmp_path / 'runs'}"]
    with composed("train", demo_data, tmp_path / "own", *given) as config:
        assert resume_path(config) is None
        own = tmp_path / "own" / "checkpoints" / "last.ckpt"
        own.parent.mkdir()
        own.touch()
        assert resume_path(config) == own


def test_a_run_folder_loses_what_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", ".last.ckpt.partial", "notes.partial"):
        (tmp_path / "checkpoints" / name).touch()
    tidy_run_folder(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "notes.partial"]


def test_plugins_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_plugins(["--multirun", "hydra/launcher=basic", "seed=1,2"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hydra/launcher=slurm needs .*pip install 'vinvl\[slurm\]'"):
        require_plugins(["--multirun", "hydra/launcher=slurm", "seed=1,2"])
    for search in ("hydra/sweeper=optuna", "+hparams_search=optuna"):
        with pytest.raises(UserError, match=r"needs hydra-optuna-sweeper.*pip install 'vinvl\[sweep\]'"):
            require_plugins([search])
    require_plugins(["--multirun", "seed=1,2"])
