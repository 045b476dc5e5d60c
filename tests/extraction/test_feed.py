"""Which pictures go through the network together, and who works on which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.detector.samples import SMALL, network_input
from tests.picture_samples import broken_pictures, gradient, save
from vinvl.detector.detector import normalised, pad_batch, padded_size
from vinvl.extraction import feed as feed_module
from vinvl.extraction.feed import FeedOptions, PictureFeed, alike, window_size
from vinvl.pictures import PictureNames, ReadingOptions, find_pictures
from vinvl.run.errors import UserError

SIZES = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 64]))), max_size=40)


@given(sizes=SIZES, batch_size=st.integers(1, 5), mixed=st.booleans())
def test_every_picture_is_in_one_batch_of_its_like(
    sizes: list[tuple[int, int] | None], batch_size: int, mixed: bool
) -> None:
    batches = alike(range(10, 10 + len(sizes)), sizes, batch_size, mixed)
    assert sorted(index for batch in batches for index in batch) == list(range(10, 10 + len(sizes)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert batches == sorted(batches, key=min)
    for batch in batches:
        found = [sizes[index - 10] for index in batch]
        if None in found:
            assert len(batch) == 1
        elif not mixed:
            assert len(set(found)) == 1
    whole = -(-sum(size is not None for size in sizes) // batch_size) + sizes.count(None)
    assert not mixed or len(batches) == whole


def feed(folder: Path, done: set[str] | None = None, **options: object) -> PictureFeed:
    names = {"rank", "world_size"}
    placed = {name: options.pop(name) for name in names & set(options)}
    finished = done or set()
    return PictureFeed(
        find_pictures(folder, PictureNames()),
        lambda image_id: image_id in finished,
        SMALL,
        FeedOptions(ReadingOptions(), **options),  # type: ignore[arg-type]
        **placed,  # type: ignore[arg-type]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(30):
        save(tmp_path / f"{index:02d}.png", gradient(60 + 20 * (index % 3), 50))
    return tmp_path


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_pictures(folder: Path, world_size: int) -> None:
    shares = [
        [index for batch in feed(folder, batch_size=4, rank=rank, world_size=world_size).batches() for index in batch]
        for rank in range(world_size)
    ]
    assert sorted(index for share in shares for index in share) == list(range(30))
    assert min(map(len, shares)) > 0


def test_what_is_done_is_passed_over_and_leaves_the_other_batches_as_they_were(folder: Path) -> None:
    everything = list(feed(folder, batch_size=4).batches())
    first = {f"{index:02d}" for index in everything[0]}
    assert list(feed(folder, done=first, batch_size=4).batches()) == everything[1:]
    half = {f"{everything[1][0]:02d}"}
    assert list(feed(folder, done=half, batch_size=4).batches())[1] == everything[1][1:]


def test_nothing_is_measured_where_all_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "picture_size", lambda *_: pytest.fail("was measured"))
    assert list(feed(folder, done={f"{index:02d}" for index in range(30)}).batches()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_the_network_s_input(folder: Path, workers: int) -> None:
    seen = []
    *batches, last = feed(folder, batch_size=3, workers=workers)
    assert len(last) == 0
    for batch in batches:
        assert len({tuple(pixels.shape) for pixels in batch.pixels}) == 1
        for image_id, pixels, size in zip(batch.ids, batch.pixels, batch.original_sizes, strict=True):
            image = gradient(60 + 20 * (int(image_id) % 3), 50)
            assert size == image.size and pixels.dtype == torch.uint8
            assert torch.equal(normalised(pixels), network_input(image, SMALL))
            seen.append(image_id)
    assert sorted(seen) == [f"{index:02d}" for index in range(30)]


def test_broken_pictures_come_with_their_reason_and_others_are_not_lost(tmp_path: Path) -> None:
    words = broken_pictures(tmp_path)
    save(tmp_path / "good.png", gradient(200, 150))  # as large as the cut-off one: they share a batch
    batches = list(feed(tmp_path, batch_size=4, workers=0))
    assert [image_id for batch in batches for image_id in batch.ids] == ["good"]
    reasons = {Path(one.path).name: one.reason for batch in batches for one in batch.unusable}
    assert reasons.keys() == words.keys() and all(word in reasons[name] for name, word in words.items())


def test_a_batch_can_be_taken_apart(folder: Path) -> None:
    batch = next(iter(feed(folder, batch_size=4, workers=0)))
    singles = list(batch.single())
    assert tuple(one.ids[0] for one in singles) == batch.ids and len(batch) == 4
    assert all(torch.equal(one.pixels[0], pixels) for one, pixels in zip(singles, batch.pixels, strict=True))


@given(pictures=st.integers(0, 5000), world_size=st.integers(1, 16))
def test_windows_leave_no_process_without_work(pictures: int, world_size: int) -> None:
    windows = -(-pictures // window_size(pictures, world_size))
    assert windows >= min(world_size, pictures)


def test_padded_size_is_that_of_the_batch() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 900, size=(50, 2)).tolist():
        batch, _ = pad_batch([torch.zeros(network_input(gradient(width, height), SMALL).shape)], SMALL.pad_multiple)
        assert padded_size(width, height, SMALL) == (batch.shape[3], batch.shape[2])


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("batch_size", 1.5), ("workers", -1)])
def test_options_that_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name}={value}"):
        FeedOptions(ReadingOptions(), **{name: value})  # type: ignore[arg-type]
