"""The difference of two values, for people to read: words of texts, paths of objects and arrays. Pure.

Values are JSON texts, or None where the event gave none. What is shown is bounded whatever they are; what is
left out is counted. Nothing here raises: what cannot be compared as JSON is compared as the text it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any, Final

from eventstore.console.values import reveal, same_to_the_eye, visible

__all__ = ["Change", "ChangeKind", "Difference", "Piece", "PieceKind", "difference"]

# Larger objects and arrays are compared as texts, not member by member.
_PARSED_CHARACTERS_MAX = 65_536
# Of each text: what is shown where it stands alone, and how much of what is the same stands around a change.
_SHOWN_CHARACTERS_MAX = 2_000
_AROUND_CHARACTERS = 120
# The part in which two texts differ is compared word by word up to so many characters, and so many pairs of
# equal words (whose number is what the comparison costs).
_COMPARED_CHARACTERS_MAX = 4_000
_PAIRS_MAX = 4_000
# Texts of which less stays the same are shown one after the other: words picked out of them say nothing.
_ALIKE_MIN = 0.3
_WORD_CHARACTERS_MAX = 64  # longer words are compared in their middle
_CHANGES_MAX = 40
_CHARACTERS_MAX = 8_000  # after which no further change is shown
_MEMBERS_MAX = 5_000
_LEVELS_MAX = 30
_ITEMS_ALIGNED_MAX = 200
_MEMBER_CHARACTERS_MAX = 400
_NAME_CHARACTERS_MAX = 100

_UNSEEN = "differs only in white space, or in characters that are not seen"
_WORDS = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)?)?")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class PieceKind(StrEnum):
    """same: in both. gone: in the old one. new: in the new one. cut: the same in both, and not shown."""

    SAME = "same"
    GONE = "gone"
    NEW = "new"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, in order."""

    kind: PieceKind
    text: str


class ChangeKind(StrEnum):
    """added: there was nothing. removed: there is nothing now."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `path` is where in the value (empty: the value itself). `pieces`, if there are any, are
    both texts in one; `old` and `new` are given otherwise (None: there is none)."""

    path: str
    kind: ChangeKind
    old: str | None = None
    new: str | None = None
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes that are shown, how many are not (None: nobody counted), and what else is to be said."""

    changes: tuple[Change, ...]
    left_out: int | None = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it is written: 1 and 1.0 differ, and none is too large."""

    text: str


class _Absent:
    """Where there is no value."""


_ABSENT: Final = _Absent()


def difference(old: str | None, new: str | None) -> Difference:
    """What is different in two JSON texts. None: there is no value."""
    if old == new:
        return Difference(())
    found = _Comparison()
    try:
        before, after = _parsed(old), _parsed(new)
        if before == after:
            found.note("the same value, written in another way")
            found.texts("", old or "", new or "")
        else:
            found.values("", before, after)
    except (ValueError, RecursionError):
        found = _Comparison()
        found.note("not compared member by member, but as text")
        found.optional_texts(old, new)
    return Difference(tuple(found.changes), found.left_out, tuple(found.notes))


def _parsed(text: str | None) -> Any:
    """A value in which nothing is lost: numbers as they are written, no member twice.

    Raises:
        ValueError: no JSON, or one that has to be compared as text. RecursionError: nested too deeply.
    """
    if text is None:
        return _ABSENT
    if len(text) > _PARSED_CHARACTERS_MAX and text[:1] in "{[":
        raise ValueError("too long")
    return json.loads(
        text, parse_int=_Number, parse_float=_Number, parse_constant=_Number, object_pairs_hook=_members
    )


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


class _Comparison:
    """Collects changes, up to as many as are shown."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.left_out: int | None = 0
        self.notes: list[str] = []
        self._looked_at = 0
        self._characters = 0

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _add(self, change: Change) -> None:
        if len(self.changes) < _CHANGES_MAX and self._characters < _CHARACTERS_MAX:
            self.changes.append(change)
            texts = (change.path, change.old, change.new, *(piece.text for piece in change.pieces))
            self._characters += sum(len(text or "") for text in texts)
        elif self.left_out is not None:
            self.left_out += 1

    def _add_plain(self, path: str, old: str | None, new: str | None) -> None:
        kind = ChangeKind.CHANGED
        if old is None or new is None:
            kind = ChangeKind.ADDED if old is None else ChangeKind.REMOVED
        self._add(Change(path, kind, old, new))

    # --- objects and arrays -------------------------------------------------------------------------------

    def values(self, path: str, old: Any, new: Any, level: int = 0) -> None:
        self._looked_at += 1
        if self._looked_at > _MEMBERS_MAX:
            self.left_out = None
            return
        if old == new:
            return
        if isinstance(old, str) and isinstance(new, str):
            self.texts(path, old, new)
        elif level < _LEVELS_MAX and _is_object(old, new):
            self._objects(path, old, new, level + 1)
        elif level < _LEVELS_MAX and isinstance(old, list) and isinstance(new, list):
            self._arrays(path, old, new, level + 1)
        else:
            self._plain(path, old, new)

    def _objects(self, path: str, old: Any, new: Any, level: int) -> None:
        before = {} if old is _ABSENT else old
        after = {} if new is _ABSENT else new
        if not before and not after:  # one of them is an empty object, the other nothing at all
            self._plain(path, old, new)
        for name in (*before, *(name for name in after if name not in before)):
            self.values(_member(path, name), before.get(name, _ABSENT), after.get(name, _ABSENT), level)

    def _arrays(self, path: str, old: list[Any], new: list[Any], level: int) -> None:
        head = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        head = min(len(old), len(new)) if head is None else head
        tail = 0
        while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
            tail += 1
        before, after = old[head : len(old) - tail], new[head : len(new) - tail]
        for first, last, start, end in _aligned(before, after):
            for n in range(max(last - first, end - start)):
                was = before[first + n] if first + n < last else _ABSENT
                now = after[start + n] if start + n < end else _ABSENT
                index = head + (first if now is _ABSENT else start) + n
                self.values(f"{path}[{index}]", was, now, level)

    def _plain(self, path: str, old: Any, new: Any) -> None:
        """Both as they are. A text is in quotes where the other is none: "1" is not 1."""
        if isinstance(old, str | _Absent) and isinstance(new, str | _Absent):
            before, after = (value if isinstance(value, str) else None for value in (old, new))
            self.optional_texts(before, after, path)
            return
        self._add_plain(
            path,
            None if old is _ABSENT else self._compact(old),
            None if new is _ABSENT else self._compact(new),
        )

    def _compact(self, value: Any) -> str:
        parts: list[str] = []
        if not _write(value, parts, _MEMBER_CHARACTERS_MAX, 0):
            self.note(f"too long: showing the first {_MEMBER_CHARACTERS_MAX:,} characters of a part")
        return visible("".join(parts))

    # --- texts --------------------------------------------------------------------------------------------

    def optional_texts(self, old: str | None, new: str | None, path: str = "") -> None:
        """Texts of which one may not be there."""
        if old is not None and new is not None:
            self.texts(path, old, new)
            return
        self._add_plain(
            path, None if old is None else self._shown(old), None if new is None else self._shown(new)
        )

    def texts(self, path: str, old: str, new: str) -> None:
        pieces = () if _is_whole(old) or _is_whole(new) else self._pieces(old, new)
        if pieces:
            self._add(Change(path, ChangeKind.CHANGED, pieces=pieces))
        elif max(len(old), len(new)) <= _SHOWN_CHARACTERS_MAX and same_to_the_eye(old, new):
            self.note(_UNSEEN)
            self._add_plain(path, reveal(old) or '""', reveal(new) or '""')
        else:
            self._add_plain(path, self._shown(old), self._shown(new))

    def _shown(self, text: str) -> str:
        if len(text) > _SHOWN_CHARACTERS_MAX:
            self.note(f"too long: showing the first {_SHOWN_CHARACTERS_MAX:,} of {len(text):,} characters")
        return visible(text[:_SHOWN_CHARACTERS_MAX]) or '""'

    def _pieces(self, old: str, new: str) -> tuple[Piece, ...]:
        """Both texts in one, word by word; none: they have too little in common."""
        head, tail = _common(old, new)
        before, after = old[head : len(old) - tail], new[head : len(new) - tail]
        pieces: list[Piece] = []
        is_unseen = False
        if len(before) > _COMPARED_CHARACTERS_MAX or len(after) > _COMPARED_CHARACTERS_MAX:
            if head + tail < _ALIKE_MIN * max(len(old), len(new)):
                return ()
            self.note(f"too long: showing the first {_SHOWN_CHARACTERS_MAX:,} characters of what differs")
            _hunk(pieces, before[:_SHOWN_CHARACTERS_MAX], after[:_SHOWN_CHARACTERS_MAX])
        else:
            alike = head + tail + _word_by_word(pieces, before, after)
            is_unseen = same_to_the_eye(before, after)
            if alike < _ALIKE_MIN * max(len(old), len(new)) and not is_unseen:
                return ()
        if is_unseen:
            self.note(_UNSEEN)
        beginning = _around(old[:head], before=False)
        ending = _around(old[len(old) - tail :] if tail else "", after=False)
        return (*beginning, *pieces, *ending)


def _is_object(old: Any, new: Any) -> bool:
    return isinstance(old, dict | _Absent) and isinstance(new, dict | _Absent)


def _member(path: str, name: str) -> str:
    if len(name) <= _NAME_CHARACTERS_MAX and _PLAIN_NAME.fullmatch(name):
        return f"{path}.{name}" if path else name
    return f"{path}[{visible(json.dumps(name[:_NAME_CHARACTERS_MAX], ensure_ascii=False))}]"


def _aligned(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[int, int, int, int]]:
    """The parts in which two arrays differ: from and to of each. Items that only moved up or down stay equal;
    in long ones place decides."""
    if max(len(old), len(new)) > _ITEMS_ALIGNED_MAX:
        return [(0, len(old), 0, len(new))]
    before, after = list(map(_written, old)), list(map(_written, new))
    if _pairs(before, after) > _PAIRS_MAX:
        return [(0, len(old), 0, len(new))]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    return [(a, b, c, d) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal"]


def _written(item: Any) -> str:
    parts: list[str] = []
    _write(item, parts, _PARSED_CHARACTERS_MAX, 0)
    return "".join(parts)


def _write(value: Any, parts: list[str], left: int, level: int) -> bool:
    """Append a value as JSON, up to so many characters in all; whether that was all of it."""
    match value:
        case dict() | list() if level > _LEVELS_MAX:
            parts.append("…")
            return False
        case dict():
            parts.append("{")
            for n, (name, member) in enumerate(value.items()):
                parts.append(f"{', ' if n else ''}{json.dumps(name[:left], ensure_ascii=False)}: ")
                if sum(map(len, parts)) > left or not _write(member, parts, left, level + 1):
                    return _ended(parts)
            parts.append("}")
        case list():
            parts.append("[")
            for n, item in enumerate(value):
                parts.append(", " if n else "")
                if sum(map(len, parts)) > left or not _write(item, parts, left, level + 1):
                    return _ended(parts)
            parts.append("]")
        case _Number():
            parts.append(value.text[:left])
            return len(value.text) <= left
        case str():
            parts.append(json.dumps(value[:left], ensure_ascii=False))
            return len(value) <= left
        case _:
            parts.append(json.dumps(value))
    return True


def _ended(parts: list[str]) -> bool:
    if parts[-1] != "…":
        parts.append("…")
    return False


# --- words --------------------------------------------------------------------------------------------------


def _is_whole(text: str) -> bool:
    """Whether a text says something as a whole, as a date does, and no part of it by itself."""
    return not text or bool(_DATE.fullmatch(text[:100]))


def _common(old: str, new: str) -> tuple[int, int]:
    """How many characters two texts share at the beginning and at the end, in whole words."""
    most = min(len(old), len(new))
    head = _shared(most, lambda n: old[:n] == new[:n])
    least = max(0, head - _WORD_CHARACTERS_MAX)
    while head > least and _within_word(old, head, new):
        head -= 1
    tail = _shared(most - head, lambda n: n == 0 or old[-n:] == new[-n:])
    least = max(0, tail - _WORD_CHARACTERS_MAX)
    while tail > least and any(
        _within_word(text, len(text) - tail, text) or text[-tail].isspace() for text in (old, new)
    ):
        tail -= 1
    return head, tail


def _shared(most: int, holds: Any) -> int:
    """The largest count up to `most` for which it holds (as it does for every smaller one)."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if holds(middle) else (least, middle - 1)
    return least


def _within_word(text: str, at: int, other: str) -> bool:
    """Whether a word goes on across a place in a text, or in the other one."""
    if at == 0 or not (text[at - 1].isalnum() or text[at - 1].isspace()):
        return False
    before = text[at - 1]
    following = [t[at] for t in (text, other) if at < len(t)]
    if before.isspace():
        return any(c.isspace() for c in following)
    return any(c.isalnum() or c.isspace() for c in following)


def _word_by_word(pieces: list[Piece], old: str, new: str) -> int:
    """Append what differs and what does not; how many characters are the same."""
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    if _pairs(before, after) > _PAIRS_MAX:
        _hunk(pieces, old, new)
        return 0
    alike = 0
    for tag, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            same = "".join(before[a:b])
            alike += len(same)
            pieces += _around(same)
        else:
            _hunk(pieces, "".join(before[a:b]), "".join(after[c:d]))
    return alike


def _pairs(old: Sequence[str], new: Sequence[str]) -> int:
    """How many pairs of equal words there are."""
    counts: dict[str, int] = {}
    for word in new:
        counts[word] = counts.get(word, 0) + 1
    return sum(counts.get(word, 0) for word in old)


def _hunk(pieces: list[Piece], old: str, new: str) -> None:
    show = reveal if same_to_the_eye(old, new) else visible
    if old:
        pieces.append(Piece(PieceKind.GONE, show(old)))
    if new:
        pieces.append(Piece(PieceKind.NEW, show(new)))


def _around(same: str, *, before: bool = True, after: bool = True) -> list[Piece]:
    """A part that is the same; where it is long, what stands next to a change. `before`, `after`: whether
    there is a change before it, and after it."""
    if len(same) <= 3 * _AROUND_CHARACTERS:
        return [Piece(PieceKind.SAME, visible(same))] if same else []
    head = same[:_AROUND_CHARACTERS] if before else ""
    tail = same[-_AROUND_CHARACTERS:] if after else ""
    cut = Piece(PieceKind.CUT, f"{len(same) - len(head) - len(tail):,} characters the same")
    pieces = [Piece(PieceKind.SAME, visible(head)), cut, Piece(PieceKind.SAME, visible(tail))]
    return [piece for piece in pieces if piece.text]
