"""Fetch a corpus's public archives and files: resumed where broken off, verified, unpacked inside the target only.

``fetch(archives, target) -> target`` downloads every archive into ``target/NAME.part`` (a second call continues it by
HTTP Range), checks size and, where one is publicly known, the checksum, unpacks, and leaves ``target/.NAME.done`` so
that a later call returns at once. lhotse's resumable_download was tried for this: it appends a whole file to a
part when the server ignores Range, and takes a connection that broke off for a finished download.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from data_prep.common import PrepareError

GZIP = b"\x1f\x8b"
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Archive:
    """One archive: its address, the name it is kept under and, where one is publicly known, its SHA-256."""

    url: str
    file_name: str = ""
    sha256: str | None = None
    unpack: bool = True
    """False for a file that stays as it is."""

    @property
    def name(self) -> str:
        return self.file_name or self.url.rsplit("/", 1)[-1]


def fetch(archives: Iterable[Archive], target: Path) -> Path:
    """The folder with all archives unpacked in it. Raises PrepareError."""
    target.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        done = target / f".{archive.name}.done"
        if done.exists():
            continue
        part = target / f"{archive.name}.part"
        _download(archive, part)
        _verify(archive, part)
        if archive.unpack:
            _unpack(archive, part, target)
        else:
            part.replace(target / archive.name)
        done.write_text(f"{archive.url}\n")
        part.unlink(missing_ok=True)
    return target


def _download(archive: Archive, part: Path) -> None:
    """Append what is missing to ``part``; a failure leaves what has arrived for the next call."""
    try:
        with _open(archive.url, part) as response:
            have = part.stat().st_size if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with part.open("ab" if have else "wb") as file, _bar() as bar:
                task = bar.add_task(archive.name, total=total, completed=have)
                while chunk := response.read(CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(task, advance=len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{part.stat().st_size}":
            return  # all of it arrived earlier; unpacking did not finish
        if error.code == 416:
            part.unlink()
            raise PrepareError(
                f"{archive.url}: the file there is shorter than {part}, which is removed; run again"
            ) from None
        raise PrepareError(f"{archive.url}: the server answers {error.code} {error.reason}; {_advice()}") from error
    except (OSError, HTTPException) as error:
        raise PrepareError(f"{archive.url}: {error}; what arrived is kept in {part}; {_advice()}") from error
    if total is not None and part.stat().st_size != total:
        have = part.stat().st_size
        raise PrepareError(f"{archive.url}: {have} of {total} bytes arrived, kept in {part}; {_advice()}")


def _open(url: str, part: Path) -> HTTPResponse:
    headers = {"User-Agent": "speech-mtl"}
    if part.exists() and part.stat().st_size > 0:
        headers["Range"] = f"bytes={part.stat().st_size}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)


def _advice() -> str:
    return "run the same command again to continue, or download it yourself and give its folder with --source"


def _bar() -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True), transient=True)


def _verify(archive: Archive, part: Path) -> None:
    """A part that is complete but wrong cannot be continued, so it is removed."""
    if archive.sha256 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != archive.sha256:
            part.unlink()
            raise PrepareError(f"{archive.name}: SHA-256 is {found}, expected {archive.sha256}; removed")
    if archive.unpack and not (zipfile.is_zipfile(part) or tarfile.is_tarfile(part)):
        part.unlink()
        raise PrepareError(f"{archive.name}: what {archive.url} sent is neither a zip nor a tar archive; removed")
    with part.open("rb") as file:
        is_gzip = file.read(2) == GZIP
    if archive.unpack and is_gzip:
        try:  # to the end, where gzip's checksum is: tar stops before
            with gzip.open(part) as stream:
                while stream.read(CHUNK_BYTES):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            part.unlink()
            raise PrepareError(
                f"{archive.name}: arrived damaged ({error}); removed, run the same command again"
            ) from None


def _unpack(archive: Archive, part: Path, target: Path) -> None:
    try:
        if zipfile.is_zipfile(part):
            with zipfile.ZipFile(part) as archive_zip:
                _refuse_escapes(archive_zip.namelist(), target)
                archive_zip.extractall(target)
        else:
            with tarfile.open(part) as archive_tar:
                _unpack_tar(archive_tar, target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        part.unlink()
        raise PrepareError(f"{archive.name}: cannot be unpacked safely ({error}); removed") from error


def _unpack_tar(archive: tarfile.TarFile, target: Path) -> None:
    """Without absolute paths, '..', links that lead outside, and device files."""
    if hasattr(tarfile, "data_filter"):
        archive.extractall(target, filter="data")
        return
    # Python before 3.11.4, which Debian 12 has
    for member in archive.getmembers():
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"member {member.name!r} is a link or a device; links need Python 3.11.4 or later")
    _refuse_escapes(archive.getnames(), target)
    archive.extractall(target)


def _refuse_escapes(names: Iterable[str], target: Path) -> None:
    root = target.resolve()
    for name in names:
        if not (root / name).resolve().is_relative_to(root):
            raise zipfile.BadZipFile(f"member {name!r} would be written outside {target}")
