"""A pre-training run that is killed or asked to stop goes on with the next unseen batch, to the same last bit."""

import csv
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.run.struck import DISK_FULL, Kill
from tests.run.survival_runs import (
    KILLED,
    PRETRAINING,
    assert_same_run,
    ended,
    killed,
    output,
    run,
    saved_updates,
    seen_rows,
    start,
    start_ranks,
    times_trained,
    write_corpora,
)
from vinvl.run.signals import INTERRUPTED, START_AGAIN

pytestmark = pytest.mark.slow
BATCHES = 35  # of the whole run: 21 in the first pass over the data, whose last update has a single one, then 14


@pytest.fixture(scope="module", autouse=True)
def corpora(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_corpora(tmp_path_factory.getbasetemp(), demo_data)


@pytest.fixture(scope="module")
def whole(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, demo_data, *PRETRAINING) == 0, output(folder)
    assert saved_updates(folder) == 18 and len(seen_rows(folder)) == BATCHES
    return folder


@pytest.fixture(scope="module")
def whole_on_two_ranks(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole_on_two_ranks")
    assert [ended(rank) for rank in start_ranks(folder, demo_data, *PRETRAINING)] == [0, 0], output(folder, "0")
    return folder


def logged(folder: Path) -> list[dict[str, str]]:
    """The log of the run in a folder, one row a step, without what depends on the time."""
    (path,) = (folder / "run/csv").glob("*.csv")
    with path.open() as file:
        rows = [{name: value for name, value in row.items() if not name.endswith("/s")} for row in csv.DictReader(file)]
    assert len({row["step"] for row in rows}) == len(rows)
    return rows


def test_whatever_befalls_it_the_same_command_goes_on(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    """Killed at random steps and from outside, and on a full disk."""
    generator, saved = random.Random(20), tmp_path / "run/checkpoints"
    early = Kill(signal.SIGKILL, "train", generator.randrange(4))  # before the first checkpoint
    assert run(tmp_path, demo_data, *PRETRAINING, kill=early) == KILLED
    stop_on_a_full_disk(tmp_path, demo_data)
    (saved / ".last.ckpt.partial").write_bytes(b"what a kill leaves")
    kills = [
        Kill(signal.SIGKILL, "train", 1),  # between the two batches of the first update after going on
        Kill(signal.SIGKILL, "train", generator.randrange(6, 11)),  # after batches and an evaluation
        Kill(signal.SIGKILL, "val", generator.randrange(8)),
    ]
    for kill in kills:
        assert run(tmp_path, demo_data, *PRETRAINING, kill=kill) == KILLED
        assert not (tmp_path / "run/results.json").exists()
    before, process = (
        (saved / "last.ckpt").stat().st_mtime_ns,
        start(tmp_path, demo_data, *PRETRAINING, "data.num_workers=1"),
    )
    process.wait_until(lambda: (saved / "last.ckpt").stat().st_mtime_ns != before)
    killed(process)
    assert run(tmp_path, demo_data, *PRETRAINING) == 0, output(tmp_path)
    assert sorted(path.name for path in saved.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert_same_run(tmp_path, whole)


def stop_on_a_full_disk(folder: Path, data: Path) -> None:
    """A run from the first update on that finds no room for its third checkpoint, and says so; the second is whole."""
    assert run(folder, data, *PRETRAINING, kill=Kill(DISK_FULL, "train", 9)) == 1
    errors = [line for line in output(folder).splitlines() if "rror" in line]
    assert len(errors) == 1 and errors[0].startswith("error: The checkpoint "), errors
    for words in ("run/checkpoints/last.ckpt cannot be saved", "MiB are free", "the one saved before it is whole"):
        assert words in errors[0]
    assert saved_updates(folder) == 4
    assert sorted(path.name for path in (folder / "run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_asked_to_stop_time_and_again(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    """Each process goes on where the one before it stopped, and trains on nothing twice; (signal, exit code, updates
    then saved)."""
    stops = [
        (Kill(signal.SIGTERM, "train", 8), START_AGAIN, 5),  # in the first of two batches of an update
        (Kill(signal.SIGUSR1, "train", 1), START_AGAIN, 6),  # an evaluation follows: it is left at its first batch
        (Kill(signal.SIGKILL, "val", 5), KILLED, 6),  # it is made when the run goes on
        (Kill(signal.SIGUSR1, "val", 3), START_AGAIN, 6),  # in the middle of it
        (Kill(signal.SIGINT, "train", 8), INTERRUPTED, 11),  # in the last batch of a pass, an update of its own
    ]
    for stop, code, updates in stops:
        assert run(tmp_path, demo_data, *PRETRAINING, kill=stop) == code
        assert saved_updates(tmp_path) == updates
        assert "go on with the same command" in output(tmp_path) and "Traceback" not in output(tmp_path)
        assert not (tmp_path / "run/results.json").exists()
    assert run(tmp_path, demo_data, *PRETRAINING) == 0, output(tmp_path)
    assert_same_run(tmp_path, whole)
    assert times_trained(tmp_path) == BATCHES
    assert logged(tmp_path) == logged(whole)
    assert "site-packages" not in output(tmp_path)  # no warning, Lightning's about loaders and folders among them


def test_more_epochs_than_were_asked_for_at_first(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    """Lightning restores no loader at the end of an epoch; the second begins where the first has ended all the same."""
    whole_epochs = ["trainer.max_steps=-1", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"]
    for epochs in (1, 2):
        assert run(tmp_path, demo_data, *PRETRAINING, *whole_epochs, f"trainer.max_epochs={epochs}") == 0
    seen = seen_rows(tmp_path)
    assert len(seen) == times_trained(tmp_path) == 42
    assert {number: rows for number, rows in seen.items() if number <= BATCHES} == seen_rows(whole)


def test_a_killed_run_on_paired_corpora(demo_data: Path, tmp_path: Path) -> None:
    """Both ranks, killed between two saved updates, with a corpus that goes round more often than the other."""
    modes = "{file:../train.jsonl,textb_sample_mode:2},{file:../val.jsonl,textb_sample_mode:1,loss_weight:0.5}"
    given = [
        *PRETRAINING,
        f"data.splits.train=[{modes}]",
        "data.paired=true",
        "data.batch_size=8",
        "trainer.max_steps=10",
    ]
    once, twice = tmp_path.parent / f"{tmp_path.name}_once", tmp_path
    assert [ended(rank) for rank in start_ranks(once, demo_data, *given)] == [0, 0], output(once, "0")
    kills = {rank: Kill(signal.SIGKILL, "train", 10 + rank) for rank in (0, 1)}
    assert ended(start_ranks(twice, demo_data, *given, kills=kills)[0]) == KILLED
    assert [ended(rank) for rank in start_ranks(twice, demo_data, *given)] == [0, 0], output(twice, "0")
    for rank in ("0", "1"):
        assert_same_run(once, twice, rank)


def test_two_ranks_read_an_epoch_between_them(whole: Path, whole_on_two_ranks: Path) -> None:
    both = [seen_rows(whole_on_two_ranks, rank) for rank in ("0", "1")]
    epoch = [rows for number in range(1, 12) for rows in (both[0][number], both[1][number])]
    alone = [rows for number, rows in seen_rows(whole).items() if number <= 21]
    repeated = Counter(row for rows in epoch for row in rows)
    repeated.subtract(row for rows in alone for row in rows)
    extra = +repeated
    assert not -repeated  # every row, as often as one process alone reads it
    assert extra.total() == 16 and any(Counter(rows) == extra for rows in epoch)  # 21 batches on two: one comes twice


def test_two_ranks_stopped_and_killed(whole_on_two_ranks: Path, demo_data: Path, tmp_path: Path) -> None:
    """A signal to one of them or both stops both after the same update; a kill of both costs what was not saved.

    The second stop is asked for in an evaluation between two batches of an update, which is finished, and so is that.
    """
    for place, batch, told, trained in (("train", 8, (0, 1), 10), ("val", 2, (1,), 13)):
        stops = {rank: Kill(signal.SIGTERM, place, batch) for rank in told}
        ranks = start_ranks(tmp_path, demo_data, *PRETRAINING, kills=stops)
        assert [ended(rank) for rank in ranks] == [START_AGAIN, 0], output(tmp_path, "0") + output(tmp_path, "1")
        assert times_trained(tmp_path, "0") == times_trained(tmp_path, "1") == trained
    kills = {rank: Kill(signal.SIGKILL, "train", 10 + rank) for rank in (0, 1)}
    assert ended(start_ranks(tmp_path, demo_data, *PRETRAINING, kills=kills)[0]) == KILLED
    assert [ended(rank) for rank in start_ranks(tmp_path, demo_data, *PRETRAINING)] == [0, 0], output(tmp_path, "0")
    for rank in ("0", "1"):
        assert_same_run(tmp_path, whole_on_two_ranks, rank)
