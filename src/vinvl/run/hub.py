"""Models, detectors and tokenizers by name on the Hugging Face hub: NAME or NAME@REVISION → files in the hub's cache.

The cache, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are those of `huggingface_hub`, which downloads.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vinvl.run.errors import UserError, say
from vinvl.run.files import NO_ROOM, system_error, write_text_atomically

COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
FILE = re.compile(r"\w[\w.+-]*", re.ASCII)  # in a repository's folder, not in one below
MAIN = "main"  # the revision that is meant where none is said
FILE_ENDINGS = {".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl", ".json", ".txt", ".h5", ".yaml", ".zip"}
ANSWER_SECONDS = 10.0  # until the hub counts as unreachable
SHOWN = 8  # files of a repository
MB = 1e6

TOKENIZER_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")

Choose = Callable[[Sequence[str]], Sequence[str]]
"""The names of a repository's files → those to get, at the end the one that matters most; or none."""


class HubFiles(NamedTuple):
    """What a name stands for."""

    name: str  # NAME@COMMIT, which stands for the very same files for ever
    folder: Path  # with the files, in the hub's cache


class Unreachable(Exception):  # noqa: N818, the cache may do
    """The hub does not answer, or is not to be asked."""


def may_be_name(given: str | Path) -> bool:
    """Whether this may be a repository, and not a path; the hub is not asked for what may not.

    A path has more than one slash, begins with a dot or a slash, ends as a file, or begins with a folder that is there.
    With @REVISION a name is one in any case.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, at, revision = str(given).partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    if isinstance(given, Path) or at:
        return bool(at and REVISION.fullmatch(revision))
    return Path(name).suffix.lower() not in FILE_ENDINGS and not ("/" in name and Path(name).parent.is_dir())


def fetch(given: str | Path, what: str, needs: str, choose: Choose) -> HubFiles:
    """The files of a repository that are needed, which are downloaded where they are not in the cache.

    Args:
        given: NAME, whose newest files are meant, or NAME@REVISION: a branch, a tag or a commit. For a commit whose
            files are there the hub is not asked.
        what: is looked for ("model folder or file"), and `needs`: without which there is none; for messages.
        choose: the files to get.

    Raises:
        UserError: it can be no name; there is no such repository or revision, it is not open to everybody, has nothing
            to choose, or is not in the cache while the hub is out of reach; a download broke off or found no room.
    """
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)  # they tell every request to whoever listens to INFO
    if not may_be_name(given):
        raise UserError(
            f"There is no {what} {given}: give one that exists, or a name on the Hugging Face hub (NAME[@REVISION])."
        )
    repository, _, revision = str(given).partition("@")
    revision = revision or MAIN
    cache = _cache_of(repository)
    if COMMIT.fullmatch(revision) and choose(_names_in(cache / "snapshots" / revision)):
        return HubFiles(f"{repository}@{revision}", cache / "snapshots" / revision)
    try:
        commit, sizes = _listing(repository, revision)
    except Unreachable as reason:
        commit = _commit_in(cache, revision)
        sizes = dict.fromkeys(_names_in(cache / "snapshots" / commit), 0)
        if not choose(list(sizes)):
            raise UserError(
                f"{given!r} is no {what} here and not in the cache of the Hugging Face hub ({cache.parent}), and "
                f"{reason}: check the name, or get it where there is a connection."
            ) from None
        _say(f"{reason}: {repository}@{commit} is taken as it was downloaded before.")
    chosen = choose(list(sizes))
    if not chosen:
        held = ", ".join(list(sizes)[:SHOWN]) or "nothing"
        raise UserError(f"{given} on the Hugging Face hub is no {what}: it needs {needs}, and it holds {held}.")
    folder = cache / "snapshots" / commit
    missing = {name: sizes[name] for name in chosen if not (folder / name).exists()}
    if missing:
        _download(repository, commit, missing, cache)
    if revision != commit:  # where huggingface_hub and transformers look for it too when they are offline
        with suppress(UserError):
            write_text_atomically(cache / "refs" / revision, commit)
    return HubFiles(f"{repository}@{commit}", folder)


def tokenizer_files(names: Sequence[str]) -> list[str]:
    """The files of a tokenizer among those of a repository or folder; none if it has no vocabulary."""
    vocabularies = [name for name in VOCABULARIES if name in names]
    return [*(name for name in TOKENIZER_SETTINGS if name in names), *vocabularies] if vocabularies else []


def _cache_of(repository: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))


def _names_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if (folder / name).is_file()) if folder.is_dir() else []


def _commit_in(cache: Path, revision: str) -> str:
    """The commit that a revision was when it was last asked for; "unknown" if it never was."""
    if COMMIT.fullmatch(revision):
        return revision
    with suppress(OSError, UnicodeDecodeError):
        if COMMIT.fullmatch(commit := (cache / "refs" / revision).read_text(encoding="utf-8").strip()):
            return commit
    return "unknown"


def _listing(repository: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit that a revision is, and its files with their sizes in bytes.

    Raises Unreachable, and UserError where the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi(library_name="vinvl").model_info(
            repository, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS
        )
        files = {one.rfilename: one.size or 0 for one in info.siblings or () if FILE.fullmatch(one.rfilename)}
        if not COMMIT.fullmatch(str(info.sha)):
            raise ValueError("it names no commit")
    except OfflineModeIsEnabled:
        raise Unreachable("the hub is not asked (HF_HUB_OFFLINE is set)") from None
    except Exception as error:  # of its client, of the HTTP client below (which changes), or of an answer that is none
        refused = _refusal(error, repository, revision)
        if refused is not None:
            raise refused from None
        raise Unreachable(f"the Hugging Face hub cannot be reached ({_reason(error)})") from error
    return str(info.sha), files


def _refusal(error: Exception, repository: str, revision: str) -> UserError | None:
    """What the hub's refusal means for a person; None if it did not answer, or is out of order."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"{repository!r} on the Hugging Face hub"
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{name} is gated: agree to its terms at https://huggingface.co/{repository}, and log in (hf auth login) "
            "or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{repository!r} is not a folder here and is not on the Hugging Face hub, or is private there: check the "
            "name, or log in (hf auth login) or set HF_TOKEN."
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{name} has no revision {revision!r}: give a branch, a tag or a whole commit.")
    status = getattr(error.response, "status_code", 500) if isinstance(error, HfHubHTTPError) else 500
    if status < 500 and status != 429:
        return UserError(f"{name} is refused ({_reason(error)}): check the name, and HF_TOKEN if it is set.")
    return None


def _reason(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].strip().rstrip(".:")
    return text[:200] or type(error).__name__


def _download(repository: str, commit: str, sizes: Mapping[str, int], cache: Path) -> None:
    """Gets files into the cache, in their order; what has come whole is not asked for again. Raises UserError."""
    from vinvl.run.folders import process_rank
    from vinvl.run.progress import progress

    total, came = sum(sizes.values()), 0.0
    number = f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {total / MB:,.1f} MB"
    _say(f"{repository}@{commit}: {number}, from the Hugging Face hub to {cache}")
    with progress("MB", total / MB, error=True) if process_rank() == 0 else nullcontext(None) as show:

        def add(number: float) -> None:
            nonlocal came
            came += number
            if show is not None:
                show(came / MB)

        for name in sizes:
            try:
                _get(repository, name, commit, _bar(add))
            except Exception as error:  # see `_listing`
                raise _broken(error, repository, commit, cache) from error


def _get(repository: str, name: str, commit: str, bar: Any) -> None:
    """Downloads a file; where the connection breaks once more, which older clients give up at."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    for last in (False, True):
        try:
            hf_hub_download(repository, name, revision=commit, etag_timeout=ANSWER_SECONDS, tqdm_class=bar)
            return
        except Exception as error:
            if last or isinstance(error, OSError | HfHubHTTPError):
                raise


def _broken(error: Exception, repository: str, commit: str, cache: Path) -> UserError:
    failed = system_error(error)
    if failed is not None and failed.errno in NO_ROOM:
        return UserError(
            f"There is no room for {repository} in {cache}: make room, or set HF_HOME to a folder on another disk."
        )
    return _refusal(error, repository, commit) or UserError(
        f"{repository} did not come whole ({_reason(error)}): give the same command again; whole files are kept."
    )


def _bar(add: Callable[[float], None]) -> Any:
    """A silent bar of tqdm, which tells `add` how much has come."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            add(n or 0)

    return Silent


def _say(sentence: str) -> None:
    from vinvl.run.folders import process_rank  # as above; the models' room needs no Hydra for it

    if process_rank() == 0:
        say(sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence, error=True)
