"""Sound files whose header is wrong about how much sound follows it, and libsndfile reads no more than it promises.

WAV files that were never closed, MP3 files without a count of their frames or joined from several, and Ogg files that
are a chain of several (an internet radio's, a link for every song) are handed to it so that it reads them to their end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import RawIOBase
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

MP3_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s of layer III by a frame's header, of MPEG-1 and of MPEG-2 and 2.5 (ISO/IEC 11172-3, 13818-3)."""
MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Hz, by a header's version."""
MP3_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""How a frame of layer III begins."""
LEAST_BEHIND = 65536
"""Bytes behind the sound of a WAV file that may be anything: padding, or a tag that is no chunk."""


class Pieces(RawIOBase):
    """Bytes, and parts of a file, one after another as one file to be read."""

    def __init__(self, path: Path, *pieces: bytes | range):
        self.file = open(str(path), "rb")  # noqa: SIM115  closed with this
        self.pieces = pieces
        self.ends = list(accumulate(map(len, pieces)))
        self.place = 0

    def __repr__(self) -> str:
        return repr(self.file.name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = max(0, offset + (0, self.place, self.ends[-1])[whence])
        return self.place

    def readinto(self, buffer: Any) -> int:
        target, done = memoryview(buffer).cast("B"), 0
        for piece, end in zip(self.pieces, self.ends, strict=True):
            start = self.place - (end - len(piece))
            if not 0 <= start < len(piece) or done == len(target):
                continue
            part = piece[start : start + len(target) - done]
            if isinstance(part, range):
                self.file.seek(part.start)
                part = self.file.read(len(part))
            target[done : done + len(part)] = part
            done, self.place = done + len(part), self.place + len(part)
        return done

    def close(self) -> None:
        self.file.close()
        super().close()


class Unfinished(Pieces):
    """A WAV file whose writer has not yet said how long it is, read as if it had promised all that follows."""

    def __init__(self, path: Path, place: int, promised: int):
        super().__init__(path, range(place), b"\xff" * 4, range(place + 4, path.stat().st_size))
        self.promised = promised
        """Bytes of sound that the header tells of."""


def sources(path: Path) -> Iterator[Path | Pieces]:
    """What to give to libsndfile: the file, or something in its stead; of a chained Ogg file each link."""
    with open(path, "rb") as content:
        head, kind = content.read(4), content.read(8)[4:]
    if head[:3] == b"ID3" or _frame_size(head, b""):
        yield _counted(path) or path
    elif head in (b"RIFF", b"RIFX") and kind == b"WAVE":
        yield _unfinished(path) or path
    elif head == b"OggS" and len(links := _links(path)) > 1:
        yield from (Pieces(path, link) for link in links)
    else:
        yield path


def _unfinished(path: Path) -> Unfinished | None:
    """A WAV file, if sound follows behind what it promises, which is 0 bytes or those of a while ago.

    Chunks that go on to the file's end (a LIST of names and dates) are no sound: the file is closed.
    """
    size, place, found, promised = path.stat().st_size, 12, 0, 0
    with open(path, "rb") as file:
        order: Literal["little", "big"] = "big" if file.read(4) == b"RIFX" else "little"
        whole = 8 + int.from_bytes(file.read(4), order)
        while place + 8 <= size:
            file.seek(place)
            name, length = file.read(4), int.from_bytes(file.read(4), order)
            if not all(32 <= byte < 127 for byte in name):
                if not found or not promised:
                    return Unfinished(path, found, 0) if found else None
                # a header that was right once ends with the sound; what follows may be padding, or a tag
                behind = name + file.read(LEAST_BEHIND)
                is_sound = whole <= place + 1 and len(behind) > LEAST_BEHIND and len(set(behind)) > 1
                return Unfinished(path, found, promised) if is_sound and name[:3] != b"ID3" else None
            if name == b"data" and not found:
                found, promised = place + 4, length
            place += 8 + length + length % 2
    return Unfinished(path, found, 0) if found and not promised and abs(place - size) > 1 else None


def _counted(path: Path) -> Pieces | None:
    """An MP3 file of layer III headed by a count of its frames, if it has none or more than it says."""
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        first, head, frames, place, end = 0, b"", 0, 0, len(content)
        before = b""  # the frame that ends here begins with these four bytes; empty where none does
        while 0 <= place < end - 4:
            found = content[place : place + 4]
            size = _frame_size(found, before)
            if size and (before or _frame_size(content[place + size : place + size + 4], found)):
                first, head = (first, head) if frames else (place, found)
                frames, place, before = frames + 1, place + size, found
            elif before:
                before = b""  # perhaps another kind of frames begins
            elif found[:3] == b"ID3":  # a tag, whose length has 7 bits a byte
                lengths = content[place + 6 : place + 10]
                place += 10 + sum(length << 7 * byte for byte, length in enumerate(reversed(lengths)))
                if not frames and content[place : place + 4] in (b"fLaC", b"RIFF", b"FORM", b"OggS"):
                    return None
            else:
                following = MP3_SYNC.search(content, place + 1)
                place = following.start() if following else -1
        if not frames or frames <= _said(content[first : first + 200]) + 1:  # the frame with the count is none of them
            return None
    is_mono = head[3] >> 6 == 3
    side = (17 if is_mono else 32) if _is_mpeg1(head) else (9 if is_mono else 17)
    count = b"Xing" + (3).to_bytes(4, "big") + frames.to_bytes(4, "big") + (end - first).to_bytes(4, "big")
    for kbits in range(1, 15):  # the least rate that leaves room for the count
        own = bytes([head[0], head[1] | 1, kbits << 4 | head[2] & 0b1100, head[3]])
        if (size := _frame_size(own, own)) >= 4 + side + len(count):
            break
    return Pieces(path, (own + bytes(side) + count).ljust(size, b"\0"), range(first, end))


def _said(frame: bytes) -> int:
    """How many frames a file's first one says that there are, 0 if nothing; libsndfile does not read VBRI's count."""
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    return int.from_bytes(frame[place + 8 : place + 12], "big") if place >= 0 and frame[place + 7] & 1 else 0


def _is_mpeg1(head: bytes) -> bool:
    return head[1] >> 3 & 3 == 3


def _frame_size(head: bytes, like: bytes) -> int:
    """Bytes of the MP3 frame (layer III) that these four begin; 0 if none does, or none of the same kind as another."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0b11100110 != 0b11100010:
        return 0
    version, kbits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    is_other = like and (head[1] & 0b11110, head[2] & 0b1100) != (like[1] & 0b11110, like[2] & 0b1100)
    if version == 1 or kbits in (0, 15) or rate == 3 or is_other:
        return 0
    kilobytes = 144 if version == 3 else 72
    return kilobytes * 1000 * MP3_KBITS[version == 3][kbits] // MP3_RATES[version][rate] + (head[2] >> 1 & 1)


def _links(path: Path) -> list[range]:
    """Where each of an Ogg file's chained streams lies (RFC 3533: pages that begin one follow pages of another)."""
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        links: list[range] = []
        place, is_beginning = 0, False
        while place >= 0:
            if content[place : place + 4] != b"OggS" or place + 27 > len(content):
                place = content.find(b"OggS", place + 1)
                continue
            begins = bool(content[place + 5] & 2)
            segments = content[place + 26]
            end = min(len(content), place + 27 + segments + sum(content[place + 27 : place + 27 + segments]))
            if begins and not is_beginning:
                links.append(range(place, end))
            elif links:
                links[-1] = range(links[-1].start, end)
            place, is_beginning = end, begins
        return links
