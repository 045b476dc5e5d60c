"""A file from a server, resumed where it was cut off: what pooch calls to download, for its own way does not resume."""

import errno
import json
import os
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import requests

from vinvl.run.errors import UserError
from vinvl.run.files import failure_told, free_room
from vinvl.run.progress import Show, progress

TRIES = 5  # in a row that bring nothing
UNREACHABLE_TRIES = 2  # where not even the first word of an answer comes
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
PIECE = 1 << 13  # at most so much of what came is lost at a cut
BUSY = (429, 500, 502, 503, 504)
REASONS = {401: "asks for a login", 403: "refuses", 404: "has no such file", 410: "has no such file any more"}


class NotHadError(Exception):
    """Why a file is not to be had from one place; another may have it."""


class CutOffError(Exception):
    """The connection ended before the file did."""


@dataclass
class Transfer:
    """Downloads into `part`, which stays when it is cut off or killed, and whose beginning is not asked for again.

    Beside it `part.json` says from which URL it is, and by which mark (ETag or date) the server tells one version of
    the file from another. A file that has changed, or a server that sends no parts of files, begins anew.

    Args:
        size: that the file must have; None: unknown.
    """

    part: Path
    size: int | None = None
    resumed: bool = field(default=False, init=False)
    _show: Show | None = field(default=None, init=False)

    def __call__(self, url: str, output_file: str, _pooch: Any, check_only: bool | None = False) -> None:
        """As pooch calls it; raises NotHadError, and UserError where the disk is full."""
        fruitless = 0
        with ExitStack() as bars:
            while True:
                before = self._bytes()
                try:
                    self._receive(url, bars)
                    break
                except (requests.RequestException, CutOffError) as error:
                    if "CERTIFICATE" in str(error).upper():
                        raise NotHadError(f"is not to be trusted ({_told(error)})") from error
                    answered = not isinstance(error, requests.ConnectionError | requests.ConnectTimeout)
                    fruitless = 0 if self._bytes() > before else fruitless + 1
                    if fruitless >= (TRIES if answered or before else UNREACHABLE_TRIES):
                        raise NotHadError(f"is cut off or not reached ({_told(error)})") from error
                    sleep(min(2**fruitless, 30) if fruitless else 0)
        self._show = None
        os.replace(self.part, output_file)
        self._notes.unlink(missing_ok=True)

    @property
    def _notes(self) -> Path:
        return self.part.with_name(f"{self.part.name}.json")

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self, url: str, bars: ExitStack) -> None:
        """Receives as much as comes, and shows it in a bar. Raises what `requests` does and what this file has."""
        notes = self._read_notes(url)
        have = self._bytes() if notes else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": notes["mark"]} if notes["mark"] else {}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416 and have:  # nothing is left to send, or the file is another now
                if have != notes["total"]:
                    self._forget()
                    raise CutOffError("another file lies there now")
                return
            start, total = _span(answer, have)
            if start and total != notes["total"]:
                self._forget()
                raise CutOffError("another file lies there now")
            self._check(answer, url, start, total)
            mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            notes = {"url": url, "mark": "" if mark.startswith("W/") else mark, "total": total}
            self.resumed = self.resumed or start > 0
            with open(self.part, "r+b" if start else "wb") as file:
                with self._writing():
                    self._notes.write_text(json.dumps(notes), encoding="utf-8")
                    file.seek(start)
                if total and self._show is None:
                    self._show = bars.enter_context(progress("MB", total / 1e6, start / 1e6))
                most = self.size or total
                for piece in answer.iter_content(PIECE):
                    if most is not None and file.tell() + len(piece) > most:
                        self._forget()
                        raise NotHadError(f"has another file, of more than {most:,} bytes")
                    with self._writing():
                        file.write(piece)
                        file.flush()
                    if self._show:
                        self._show(file.tell() / 1e6)
                with self._writing():
                    os.fsync(file.fileno())
        if total is not None and self._bytes() != total:
            raise CutOffError(f"{self._bytes():,} of {total:,} bytes came")
        if self.size is not None and self._bytes() != self.size:
            self._forget()
            raise NotHadError(f"has another file, not of {self.size:,} bytes")

    def _writing(self) -> AbstractContextManager[None]:
        """Around what writes, and not around what receives, whose errors are the operating system's too."""
        return failure_told(self.part, "make room, and give the command again: it goes on from there")

    def _read_notes(self, url: str) -> dict[str, Any]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] == url and isinstance(notes["mark"], str) and isinstance(notes["total"], int):
                return dict(notes)
        return {}

    def _check(self, answer: requests.Response, url: str, start: int, total: int | None) -> None:
        """Raises NotHadError where the file cannot be the wanted one, and UserError where there is no room for it."""
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise NotHadError("sends a web page in the place of the file")
        if self.size is not None and total is not None and total != self.size:
            raise NotHadError(f"has another file: {total:,} bytes, not {self.size:,}")
        free = free_room(self.part.parent)
        if total is not None and total - start > free:
            rooms = f"{(total - start) / 1e9:,.2f} GB are to come, and {free / 1e9:,.2f} GB are free"
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise UserError(f"{url}: {rooms}: make room, or pass --to FOLDER on a larger disk.") from full


def _span(answer: requests.Response, have: int) -> tuple[int, int | None]:
    """Where what is sent begins in the file, and how large the file is. Raises NotHadError, or CutOffError."""
    code = answer.status_code
    if code in BUSY:
        raise CutOffError(f"the server is busy: {code}")
    if code not in (200, 206):
        raise NotHadError(f"{REASONS.get(code, 'does not send it')} ({code} {answer.reason})")
    if code == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if not total.isdigit() or span.partition("-")[0] != str(have):
        raise NotHadError(f"sends another part than was asked for ({answer.headers.get('Content-Range')})")
    return have, int(total)


def _told(error: BaseException) -> str:
    """In a few words what `requests` tells in many."""
    reason: Any = error
    while isinstance(reason, Exception):
        innermost = reason
        reason = getattr(reason, "reason", None) or (reason.args or [None])[0]
    return " ".join((reason if isinstance(reason, str) else str(innermost)).rpartition(": ")[2].split())[:160]
