"""How large an Arrow IPC stream says that it is, before any of it is decompressed.

Its buffers may be compressed each, and tell their size in their first eight bytes; Arrow makes room for that
much at once. So the sizes are added up first, over the messages' own tables of buffers
(https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

__all__ = ["declared_bytes"]

# Places in the flatbuffers tables of Arrow's Message.fbs.
_MESSAGE_HEADER, _DICTIONARY_DATA, _BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 1, 2, 3


def declared_bytes(stream: pa.Buffer) -> int:
    """The bytes that the buffers of a stream take once they are decompressed.

    Raises:
        pa.ArrowInvalid, OSError, EOFError: it is no Arrow IPC stream.
    """
    total = 0
    reader = pa.ipc.MessageReader.open_stream(stream)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return total
        if message.type in ("record batch", "dictionary"):
            total += sum(_buffer_sizes(message))


def _buffer_sizes(message: pa.Message) -> Iterator[int]:
    # Arrow has checked the table itself when it read the message: offsets lie inside it.
    table = _Table.root(message.metadata.to_pybytes()).table(_MESSAGE_HEADER)
    batch = table.table(_DICTIONARY_DATA) if message.type == "dictionary" else table
    compressed = batch.has(_BATCH_COMPRESSION)
    for offset, length in batch.buffers(_BATCH_BUFFERS):
        declared = -1
        if compressed and length >= 8:
            declared = int.from_bytes(message.body.slice(offset, 8).to_pybytes(), "little", signed=True)
        yield length if declared < 0 else declared


class _Table:
    """A flatbuffers table at a position of a message."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        self._count = (struct.unpack_from("<H", data, self._fields)[0] - 4) // 2

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def table(self, field: int) -> _Table:
        return _Table(self._data, self._pointed(field))

    def buffers(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of (offset, length)."""
        at = self._pointed(field)
        (count,) = struct.unpack_from("<I", self._data, at)
        for n in range(count):
            yield struct.unpack_from("<qq", self._data, at + 4 + 16 * n)

    def _offset(self, field: int) -> int:
        if field >= self._count:
            return 0
        return int(struct.unpack_from("<H", self._data, self._fields + 4 + 2 * field)[0])

    def _pointed(self, field: int) -> int:
        at = self._at + self._offset(field)
        return int(at + struct.unpack_from("<I", self._data, at)[0])
