"""Matrices of scores from elsewhere: what is read of them, and what is refused in a sentence."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.retrieval.samples import retrieval_data
from vinvl.retrieval.results import read_matrix, score
from vinvl.retrieval.run import DESCRIPTION, ScoreFiles, candidates_digest
from vinvl.run.errors import UserError

SCORES = np.random.default_rng(0).normal(size=(6, 30))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_matrix(path, 6, 30)
    assert "\n" not in str(raised.value) and path.name in str(raised.value)
    return str(raised.value)


def bomb(path: Path) -> None:
    """Gigabytes of zeros in a file of megabytes, were it written to its end; the sizes are what is looked at."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 25))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.zeros(1).expand(6000, 6000), "says that it has 36,000,000 numbers, and the file holds fewer"),
        (torch.from_numpy(SCORES) + 1j, "of the kind torch.complex128"),
        (torch.from_numpy(SCORES).to_sparse(), "is sparse"),
        ({"a": torch.from_numpy(SCORES)}, "has scores of 1 pairs by number"),
        (dict.fromkeys(range(180), "a"), "cannot be read"),
        (Path("/"), "is damaged or holds more than tensors, so it was not opened: give a .npy"),
        ("text", "holds <U4 of shape ()"),
    ],
    ids=["expanded", "complex", "sparse", "named", "texts", "code", "text"],
)
def test_files_of_torch_that_are_no_matrix(tmp_path: Path, value: Any, told: str) -> None:
    torch.save(value, tmp_path / "m.pt")
    assert told in refusal(tmp_path / "m.pt")


def test_a_parameter_is_a_matrix_and_a_changed_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(torch.nn.Parameter(torch.from_numpy(SCORES)), path)
    np.testing.assert_array_equal(read_matrix(path, 6, 30), SCORES)
    content = path.read_bytes()
    place = content.index(SCORES.tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert "checksum" in refusal(path)


def test_files_of_numpy_that_are_no_matrix(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    bomb(path)
    assert "has 33,554,432 bytes unpacked, more than the scores of this split" in refusal(path)
    np.savez(path, a=SCORES, b=SCORES)
    assert "holds 'a.npy, b.npy': give a file of one matrix" in refusal(path)
    np.savez(path)
    assert "give a file of one matrix" in refusal(path)
    for content in (b"1,2", b"", pickle.dumps(SCORES)):
        (tmp_path / "m.npy").write_bytes(content)
        assert "m.npy is no file of NumPy: give a .npy" in refusal(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", SCORES)
    (tmp_path / "m.npy").write_bytes((tmp_path / "m.npy").read_bytes()[:-8])
    assert "cannot be read" in refusal(tmp_path / "m.npy")


@pytest.fixture
def folder(demo_data: Path, tmp_path: Path) -> tuple[Any, Any, ScoreFiles]:
    """Data, records and a folder of scores as an evaluation leaves it."""
    data = retrieval_data(demo_data, test_images=None)
    records = data.read_split("test")
    folds = data.test_folds(len(records), records.offsets, "test")
    files = ScoreFiles(tmp_path, "a" * 24, folds, data.blocks("test", folds))
    files.prepare({"candidates": candidates_digest(records, folds)})
    for number in range(len(files.blocks)):
        files.write(number, np.random.default_rng(number).normal(size=files.shape(number)))
    return data, records, files


def test_a_folder_of_scores_is_known_as_of_other_candidates_or_not_whole(folder: Any) -> None:
    data, records, files = folder
    assert score(data, records, files.folder, "wrong").headline == "recall_mean"
    about = json.loads((files.folder / DESCRIPTION).read_text())

    def refused(**changes: Any) -> str:
        (files.folder / DESCRIPTION).write_text(json.dumps({**about, **changes}))
        with pytest.raises(UserError) as raised:
            score(data, records, files.folder, "wrong")
        return str(raised.value)

    assert "has scores of other images or captions" in refused(candidates="b" * 24)
    assert "is missing, damaged or of other candidates" in refused(fingerprint="b" * 24)
    numbers = np.full(files.shape(0), np.nan, dtype=np.float32)
    content = files.path(0).read_bytes()
    files.path(0).write_bytes(content[:128] + numbers.tobytes() + content[128 + numbers.nbytes :])
    assert "is missing, damaged or of other candidates" in refused()
    files.path(0).unlink()
    assert "with the scores of images 0 to " in refused()
    (files.folder / DESCRIPTION).write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"):
        score(data, records, files.folder, "wrong")


def test_other_captions_are_other_candidates(folder: Any) -> None:
    _, records, files = folder
    digest = candidates_digest(records, files.folds)
    (fold,) = files.folds
    assert digest == candidates_digest(records, [fold])
    for other in (fold._replace(images=fold.images[::-1]), fold._replace(captions=fold.captions[::-1])):
        assert candidates_digest(records, [other]) != digest
