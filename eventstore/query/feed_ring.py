"""The newest of a log, read once, framed once, and shared by all who follow it in a process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventstore.errors import IntegrityError
from eventstore.model.query import EventFilter
from eventstore.query.feed import Look, matching
from eventstore.query.render import to_json_lines

__all__ = ["Batch", "Form", "Framing", "Part", "Ring", "framed", "joined"]

_LF = 10
# So many forms of a batch are made beforehand, while together they take so many times what its events take.
# Beyond, each consumer has its own made.
_SHARED_MAX = 64
_SHARED_TIMES = 4


class Framing(StrEnum):
    """How events are put into a stream."""

    SSE = "sse"  # Server-Sent Events: id is the seq, data the event
    LINES = "lines"  # an event a line


@dataclass(frozen=True, slots=True)
class Form:
    """What a consumer wants, and how."""

    wanted: EventFilter
    framing: Framing


@dataclass(frozen=True, slots=True)
class Part:
    """Framed events: the bytes, how many, and the seq up to which nothing is left out."""

    data: bytes
    count: int
    through: int


def framed(events: pa.Table, framing: Framing) -> pa.BinaryArray:
    """Each event as it stands in the stream."""
    data = to_json_lines(events)
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LF) + 1
    if len(ends) != events.num_rows:
        raise IntegrityError("a stored value has a line break", hint="run eventstore verify")
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    lines = pa.BinaryArray.from_buffers(
        pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    if framing is Framing.LINES or not len(ends):
        return lines
    seqs = events.column("seq").combine_chunks().cast(pa.string()).view(pa.binary())
    return pc.binary_join_element_wise(b"id: ", seqs, b"\ndata: ", lines, b"\n", b"")


def joined(frames: pa.BinaryArray) -> bytes:
    """Framed events, one after the other."""
    if not len(frames):
        return b""
    _, offsets, data = frames.buffers()
    ends = np.frombuffer(offsets, np.int32)
    start, end = int(ends[frames.offset]), int(ends[frames.offset + len(frames)])
    found: bytes = data.slice(start, end - start).to_pybytes()
    return found


class Batch:
    """Every event behind seq `after` up to `through`, framed for those who follow. Never changes.

    `forms` are the filters and framings that are wanted by now; others are made for whoever asks.
    """

    def __init__(self, after: int, look: Look, forms: Iterable[Form] = ()) -> None:
        self.after, self.through, self.events = after, look.through, look.events
        self._frames: dict[Framing, pa.BinaryArray] = {}
        self._shared: dict[Form, Part] = {}
        left = self.events.nbytes * _SHARED_TIMES
        for form in islice(forms, _SHARED_MAX):
            if left <= 0:
                break
            if form.framing not in self._frames:
                self._frames[form.framing] = framed(self.events, form.framing)
            mask = matching(self.events, form.wanted)
            frames = self._frames[form.framing]
            wanted = frames if mask is None else frames.filter(mask)
            part = self._shared[form] = Part(joined(wanted), len(wanted), self.through)
            left -= len(part.data)
        # What it takes in memory, about.
        self.size_bytes: int = self.events.nbytes + sum(
            [f.nbytes for f in self._frames.values()] + [len(part.data) for part in self._shared.values()]
        )

    def shared(self, form: Form) -> Part | None:
        """All that a form wants of it; None: that was not made beforehand."""
        return self._shared.get(form)

    def part(self, form: Form, *, after: int, limit: int) -> Part:
        """What a form wants of it behind a seq, at most `limit` events."""
        mask = pc.greater(self.events.column("seq"), after).combine_chunks()
        wanted = matching(self.events, form.wanted)
        rows = pc.indices_nonzero(mask if wanted is None else pc.and_(mask, wanted))
        through = self.through
        if len(rows) > limit:
            rows = rows.slice(0, limit)
            through = self.events.column("seq")[rows[limit - 1].as_py()].as_py()
        frames = self._frames.get(form.framing)
        if frames is None:
            return Part(joined(framed(self.events.take(rows), form.framing)), len(rows), through)
        return Part(joined(frames.take(rows)), len(rows), through)


class Ring:
    """The last batches of a log, each joined to the one before; the oldest go when they are too large
    together. Used by one thread."""

    def __init__(self, after: int, *, size_bytes_max: int) -> None:
        self.through = after  # every event up to here has been in the ring, or was before it
        self._start = after
        self._size_bytes_max = size_bytes_max
        self._batches: deque[Batch] = deque()
        self.size_bytes = 0

    def add(self, batch: Batch) -> None:
        """Add what follows."""
        assert batch.after == self.through, (batch.after, self.through)
        self._batches.append(batch)
        self.size_bytes += batch.size_bytes
        self.through = batch.through
        while self.size_bytes > self._size_bytes_max and len(self._batches) > 1:
            self.drop_oldest()

    def drop_oldest(self) -> None:
        """Drop the oldest batch: who has not had it reads by a cursor."""
        oldest = self._batches.popleft()
        self.size_bytes -= oldest.size_bytes
        self._start = oldest.through

    def holds(self, cursor: int) -> bool:
        """Whether everything that follows a seq, as far as it was read, is still here."""
        return cursor >= self._start

    def after(self, cursor: int) -> Batch | None:
        """The first batch that goes beyond a seq; None: nothing was read beyond it."""
        for batch in reversed(self._batches):
            if batch.after <= cursor:
                return batch if batch.through > cursor else None
        return None
