"""What a plan reads: the run's data where they can be read as they are, and what files there are already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vinvl.data.corpus import index_folder, tokenizer_fingerprint
from vinvl.data.corpus.build import current_index
from vinvl.data.pretraining import PretrainingDataModule
from vinvl.data.text import load_tokenizer
from vinvl.errors import UserError


def why_unreadable(datamodule: Any) -> str | None:
    """Sets a datamodule up for training, or says why that cannot be done without writing files; None if it is done."""
    try:
        if isinstance(datamodule, PretrainingDataModule):
            _require_indices(datamodule)
        datamodule.setup("fit")
    except UserError as error:
        return str(error)
    return None


def _require_indices(datamodule: PretrainingDataModule) -> None:
    """Raises UserError if a corpus has no current index: `setup` would make one."""
    splits = {datamodule.split_of["train"], datamodule.split_of["val"]}
    files = [Path(entry["file"]) for split in sorted(splits) for entry in datamodule.corpora_of(split)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist.")
    fingerprint = tokenizer_fingerprint(load_tokenizer(datamodule.tokenizer_name))
    for file in files:
        if current_index(file, index_folder(file, fingerprint), fingerprint) is None:
            raise UserError(f"{file} has no current index; python -m vinvl.data.corpus build makes it.")


def store_bytes(datamodule: Any) -> int:
    """Size of the files of the region store, which has been opened."""
    return sum(header.path.stat().st_size for header in datamodule.store.headers)


def corpus_bytes(datamodule: PretrainingDataModule) -> tuple[int, int]:
    """Sizes of the corpus files of the training split and of their indices; both have been opened."""
    corpora = [share.corpus for share in datamodule.read_split(datamodule.split_of["train"]).shares]
    files = sum(Path(corpus.source).stat().st_size for corpus in corpora)
    return files, sum(entry.stat().st_size for corpus in corpora for entry in corpus.folder.iterdir())


def resident_bytes() -> int | None:
    """Memory of this process; None where the system does not say (other than Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)
