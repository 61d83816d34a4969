"""Files of language models: ARPA texts and KenLM's binaries; KenLM is in flashlight-text's wheel (extra 'lm')."""

from __future__ import annotations

import mmap
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any

BINARY_MAGIC = b"mmap lm http://kheafield.com/code format version"


class DecodingError(ValueError):
    """Settings or files of the beam search that cannot be used; names what was found and what would be accepted."""


def vocabulary(path: Path) -> tuple[list[str], int]:
    """The words of an ARPA file or a KenLM binary, without <unk>, <s> and </s>, and the byte at which it begins.

    Raises DecodingError.
    """
    start = 0
    try:
        with open(path, "rb") as file:
            head = file.read(len(BINARY_MAGIC))
            file.seek(0)
            if head == BINARY_MAGIC:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    words: Iterable[str] = _binary_words(path, content)
            else:
                start = _arpa_start(path, file)
                words = list(_arpa_words(file))
    except OSError as error:
        raise DecodingError(f"{path}: {error.strerror}; expected an ARPA file or a KenLM binary") from None
    except UnicodeDecodeError:
        raise DecodingError(f"{path}: words that are not UTF-8; expected an ARPA file or a KenLM binary") from None
    return [word for word in words if word.lower() not in ("<unk>", "<s>", "</s>")], start


def _arpa_start(path: Path, lines: Iterable[bytes]) -> int:
    """The byte at which the line '\\data\\' begins, up to which the lines are read.

    Remarks may come before it, and a mark of UTF-8.
    """
    place, first = 0, b""
    for line in lines:
        bare = line.removeprefix(BOM_UTF8)
        if bare.strip() == b"\\data\\":
            return place + len(line) - len(bare)
        place += len(line)
        first = first or line.strip()
    shown = first[:40].decode(errors="replace")
    raise DecodingError(
        f"{path}: neither an ARPA file nor a KenLM binary: it begins with {shown!r} and has no line '\\data\\'; "
        "`speech-mtl lm` makes an ARPA file"
    )


def _arpa_words(lines: Iterable[bytes]) -> Iterator[str]:
    """The second columns of the section of unigrams."""
    for line in lines:
        if line.strip() == b"\\1-grams:":
            break
    for line in lines:
        if line.startswith(b"\\"):
            return
        columns = line.split()
        if len(columns) >= 2:
            yield columns[1].decode()


def _binary_words(path: Path, content: mmap.mmap) -> list[str]:
    """KenLM appends the words to its tables, each ended by a zero, <unk> first."""
    place = content.rfind(b"<unk>\0")
    if place < 0 or content[-1:] != b"\0":
        raise DecodingError(f"{path}: a KenLM binary without its words; build it with KenLM's build_binary")
    return content[place:-1].decode().split("\0")


def load(path: Path, start: int, words: list[str]) -> Any:
    """flashlight's KenLM; a word is asked for by its place in `words`. Raises DecodingError."""
    try:
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise DecodingError(f"language models need flashlight-text ({error}); pip install 'speech_mtl[lm]'") from None
    try:
        with _beginning_at(path, start) as readable, _silent_stderr():
            return KenLM(str(readable), Dictionary(words))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DecodingError(f"{path}: KenLM cannot read it: {reason}") from None


@contextmanager
def _beginning_at(path: Path, start: int) -> Iterator[Path]:
    """The file, or a copy without what comes before `start`: KenLM reads no ARPA file with remarks at its head."""
    if not start:
        yield path
        return
    with TemporaryDirectory() as folder, open(path, "rb") as whole:
        part = Path(folder) / path.name
        whole.seek(start)
        with open(part, "wb") as target:
            copyfileobj(whole, target)
        yield part


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """KenLM draws a progress bar of its own while it reads an ARPA file, straight to the process's stderr."""
    try:
        kept = os.dup(2)
    except OSError:  # a service's, closed: there is nothing to keep silent
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
