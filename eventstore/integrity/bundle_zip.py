"""The file that a bundle is: a zip of one form, with a signed note for its comment.

Members are stored as they are, one after the other from the first byte on, without extra fields and all with
the same date; what stands behind them follows from them. So the same members are the same bytes, and a reader
that knows the form has nothing to choose (docs/reference/bundle-format.md).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

from eventstore.errors import InputError

__all__ = ["BUNDLE_BYTES_MAX", "BundleZip", "bundle_text"]

# A zip counts in 32 bits, unless it has another form for large ones.
BUNDLE_BYTES_MAX = 2**32 - 2
MEMBERS_MAX = 2**16 - 2
_VERSION = 20  # members in folders; without compression, encryption or a second look at sizes
_DATE = 1 << 5 | 1  # 1 January 1980, the first day that a zip knows
_PIECE_BYTES = 2**20


def bundle_text(sha256: str) -> str:
    """What is signed of a bundle: the SHA-256 of all its bytes before the comment. No checkpoint reads so."""
    return f"eventstore bundle v1\nsha256 {sha256}\n"


class BundleZip:
    """Writes a bundle into an empty file, member by member, in the order in which they come."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._central: list[bytes] = []
        self._name, self._start, self._crc = b"", 0, 0

    def begin(self, name: str) -> None:
        """Begin a member, whose content is then written with `write`."""
        self.end()
        if len(self._central) >= MEMBERS_MAX:
            raise _too_large(f"more than {MEMBERS_MAX} members")
        self._name, self._start, self._crc = name.encode("ascii"), self._file.tell(), 0
        self._file.write(bytes(30) + self._name)  # what stands there follows when the size is known

    def write(self, content: bytes) -> None:
        """Add to the member.

        Raises:
            InputError: the file has become larger than a zip may be.
        """
        self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        if self._file.tell() > BUNDLE_BYTES_MAX:
            raise _too_large("4 GiB and more")

    def add(self, name: str, content: bytes) -> None:
        """A whole member."""
        self.begin(name)
        self.write(content)

    def end(self) -> None:
        """End the member that was begun, if one was."""
        if not self._name:
            return
        end = self._file.tell()
        size = end - self._start - 30 - len(self._name)
        fields = struct.pack("<5H3I2H", _VERSION, 0, 0, 0, _DATE, self._crc, size, size, len(self._name), 0)
        self._file.seek(self._start)
        self._file.write(b"PK\3\4" + fields)
        self._file.seek(end)
        self._central.append(
            struct.pack("<4sH", b"PK\1\2", _VERSION) + fields + struct.pack("<10xI", self._start) + self._name
        )
        self._name = b""

    def finish(self, sign: Callable[[str], bytes]) -> int:
        """Write what follows from the members, and the note that `sign` makes of a text; the file's size."""
        self.end()
        at, central, count = self._file.tell(), b"".join(self._central), len(self._central)
        # The comment's length stands before it, and is signed with the rest: a note of this text has that.
        length = len(sign(bundle_text("0" * 64)))
        if at + len(central) + length > BUNDLE_BYTES_MAX:
            raise _too_large("4 GiB and more")
        self._file.write(central)
        self._file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(central), at, length))
        self._file.seek(0)
        digest = hashlib.sha256()
        while piece := self._file.read(_PIECE_BYTES):
            digest.update(piece)
        comment = sign(bundle_text(digest.hexdigest()))
        assert len(comment) == length
        self._file.write(comment)
        return self._file.tell()


def _too_large(what: str) -> InputError:
    return InputError(
        f"a bundle cannot hold {what}", hint="ask for less in one: a shorter time, or fewer entities"
    )
