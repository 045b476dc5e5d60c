"""Files of a list: downloaded from the first place that has them, checked, unpacked, and put where they belong."""

import os
import shutil
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import pooch
import requests

from vinvl.downloads.listed import ListedFile, is_inside
from vinvl.downloads.transfer import TIMEOUT, NotHadError, Transfer
from vinvl.downloads.unpacking import unpack
from vinvl.run.errors import UserError, cause_of_kind, say
from vinvl.run.files import failure_told, json_object, lock, put_in_place
from vinvl.run.progress import progress

AT_ONCE = 8  # pictures, which are small
TRIES = 3  # of each of them


def fetch(
    file: ListedFile, folder: Path, mirrors: Sequence[str] = (), *, keep: bool = False, unchecked: bool = False
) -> None:
    """Puts what a file of a list makes into a folder, unless it is there.

    Args:
        mirrors: folders and URLs that are looked through for its name before the list's own places.
        keep: an archive stays beside what was unpacked.
        unchecked: of another size and hash than the list has, too.

    Raises:
        UserError: it is nowhere to be had, is not what it should be, or the disk is full. What has been downloaded
            stays in a hidden folder, .NAME.download, and is not downloaded again.
    """
    if all(target.exists() for target in file.targets(folder)):
        return
    lying = [place for place in (folder, *map(Path, mirrors)) if (place.expanduser() / file.name).is_file()]
    if lying and (file.makes or lying[0] != folder):
        found = lying[0].expanduser() / file.name
        _check(found, file, unchecked)
        say(f"{file.name}: {found}")
        if (lacks := _put(found, file, folder)) is not None:
            raise UserError(f"{lacks}: see what {found} is.")
        return
    if not file.urls and file.pictures_of is None:
        raise UserError(
            f"{file.name}: {file.by_hand} Put it into {folder}, or pass --from FOLDER; then give the command again."
        )
    with _download_folder(folder / f".{file.name}.download") as work:
        if file.pictures_of is not None:
            whole = _pictures(folder / file.pictures_of, work / "pictures")
        else:
            whole = _download(file, work, mirrors, unchecked)
        try:
            lacks = _put(whole, file, folder, moves=True)
        except UserError as error:
            if cause_of_kind(error, OSError) is None:  # else there is no room, and it is needed again
                whole.unlink()
            raise
        if file.makes and (keep or lacks is not None):
            put_in_place(whole, folder / file.name)
        shutil.rmtree(work)
        if lacks is not None:
            raise UserError(f"{lacks}: see what {folder / file.name} is, which is not downloaded again.")


def listed_by_server(file: ListedFile, to: str) -> list[ListedFile]:
    """The files of a folder of Azure's storage, as its server lists them, each with its folder below `to`.

    Raises UserError where the server lists none.
    """
    (url,) = file.urls
    address = urlsplit(url)
    container, _, prefix = address.path.strip("/").partition("/")
    found, marker = list[ListedFile](), ""
    while True:
        asked = {"restype": "container", "comp": "list", "prefix": f"{prefix}/", "marker": marker}
        place = f"{address.scheme}://{address.netloc}/{container}"
        try:
            answer = requests.get(place, params=asked, timeout=TIMEOUT)
            if answer.status_code != 200:
                raise UserError(f"{url} is not listed by its server ({answer.status_code} {answer.reason}).")
            listed = ElementTree.fromstring(answer.content)
        except (requests.RequestException, ElementTree.ParseError) as error:
            raise UserError(f"{url} is not listed by its server ({type(error).__name__}).") from error
        for blob in listed.iterfind("Blobs/Blob"):
            name = blob.findtext("Name") or ""
            below, md5 = name.removeprefix(f"{prefix}/"), blob.findtext("Properties/Content-MD5")
            if not name.startswith(f"{prefix}/") or not is_inside(below):
                raise UserError(f"{url} lists {name!r}, a place outside of it: it is not to be trusted.")
            size = blob.findtext("Properties/Content-Length") or ""
            one = ListedFile(
                url=f"{place}/{quote(name)}",
                named=PurePosixPath(below).name,
                to=str(PurePosixPath(to, PurePosixPath(below).parent)),
                bytes=int(size) if size.isdigit() else None,
                hash=f"md5:{b64decode(md5).hex()}" if md5 else None,
            )
            found.append(one)
        marker = listed.findtext("NextMarker") or ""
        if not marker:
            break
    if not found:
        raise UserError(f"{url} is empty, or is no folder.")
    return found


def _put(whole: Path, file: ListedFile, folder: Path, *, moves: bool = False) -> str | None:
    """Unpacks an archive into the folder, and says what it lacks; moves or copies another file, or a folder, there."""
    target = folder / file.name
    if file.makes:
        return unpack(whole, file.makes, folder)
    if moves:
        with failure_told(target, "give the command again"):
            put_in_place(whole, target, durable=whole.is_file())
    else:
        with _download_folder(folder / f".{file.name}.download") as work, failure_told(target, "make room"):
            shutil.copyfile(whole, work / file.name)
            put_in_place(work / file.name, target)
            shutil.rmtree(work)
    return None


def _check(path: Path, file: ListedFile, unchecked: bool) -> None:
    """Raises UserError where a file that lies there is not the wanted one."""
    advice = "get it again, or pass --unchecked if it is a newer one"
    if unchecked:
        return
    if file.bytes is not None and path.stat().st_size != file.bytes:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, not {file.bytes:,}: {advice}.")
    if file.hash is not None:
        kind, _, wanted = file.hash.partition(":")
        if pooch.file_hash(str(path), alg=kind) != wanted:
            raise UserError(f"{path} is not the file with {file.hash}: {advice}.")


@contextmanager
def _download_folder(work: Path) -> Iterator[Path]:
    """The hidden folder that a download is gathered in, and that one process at a time works in."""
    with failure_told(work, "check folder, permissions and room"):
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    try:
        if lock(descriptor) is False:
            raise UserError(f"Another process is downloading into {work}: wait for it, or stop it first.")
        yield work
    finally:
        with suppress(OSError):  # what is in it is for the next time
            work.rmdir()
        os.close(descriptor)


def _download(file: ListedFile, work: Path, mirrors: Sequence[str], unchecked: bool) -> Path:
    """The whole file, in the work folder, from the first URL that has it. Raises UserError."""
    bases = [one.rstrip("/") for one in mirrors if one.startswith(("http://", "https://"))]
    told = list[str]()
    for url in [*(f"{base}/{quote(file.name)}" for base in bases), *file.urls]:
        say(f"{file.name}: {url}")
        try:
            return _retrieved(url, file, work, unchecked)
        except NotHadError as error:
            told.append(f"{url} {error}")
            say(f"  {error}", error=True)
    advice = f"{file.by_hand} " if file.by_hand else ""
    raise UserError(
        f"{file.name} is not to be had: {'; '.join(told)}. {advice}Try later, or pass --from FOLDER or URL."
    )


def _retrieved(url: str, file: ListedFile, work: Path, unchecked: bool) -> Path:
    """What pooch downloads and checks. A wrong one that was put together of two halves is downloaded once more."""
    pooch.get_logger().setLevel("ERROR")
    transfer = Transfer(work / ".part", None if unchecked else file.bytes)
    known = None if unchecked else file.hash
    for last in (False, True):
        try:
            return Path(pooch.retrieve(url, known, fname=file.name, path=work, downloader=transfer))
        except ValueError as error:
            if last or not transfer.resumed:
                raise NotHadError(f"has another file, not that of {known}") from error
    raise AssertionError


def _pictures(listing: Path, folder: Path) -> Path:
    """The pictures of a JSON with COCO's `images`, downloaded into a folder. Raises UserError if any is not had."""
    images = json_object(listing).get("images")
    try:
        urls = {str(image["file_name"]): str(image["coco_url"]) for image in images}  # type: ignore[union-attr]
    except (TypeError, KeyError) as error:
        raise UserError(f"{listing} has no images with file_name and coco_url: get it again.") from error
    if bad := [name for name in urls if not is_inside(name) or "/" in name]:
        raise UserError(f"{listing} names a picture {bad[0]!r}, which is no name of a file: it is not to be trusted.")
    folder.mkdir(exist_ok=True)
    wanted = {name: url for name, url in urls.items() if not (folder / name).exists()}
    session, failed = requests.Session(), list[str]()

    def get(name: str) -> str | None:
        error: Exception | None = None
        for _ in range(TRIES):
            try:
                with session.get(wanted[name], timeout=TIMEOUT) as answer:
                    answer.raise_for_status()
                    content = answer.content
            except requests.RequestException as failure:
                error = failure
                continue
            (folder / f"{name}.part").write_bytes(content)
            os.replace(folder / f"{name}.part", folder / name)
            return None
        return f"{wanted[name]} ({error})"

    there = len(urls) - len(wanted)
    with (
        failure_told(folder, "make room, and give the command again"),
        ThreadPoolExecutor(AT_ONCE) as threads,
        progress("pictures", len(urls), there) as show,
    ):
        for number, failure in enumerate(threads.map(get, wanted), start=there + 1):
            failed += [failure] if failure else []
            show(number)
    if failed:
        raise UserError(
            f"{len(failed):,} of {len(urls):,} pictures of {listing} were not had, such as {failed[0]}: try later."
        )
    return folder
