"""Values in the rows of a list: short, on one line, and with what was searched for in sight."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eventstore.console.values import readable, visible
from eventstore.query.free_text import pattern

__all__ = ["Snippet", "snippet"]

_CHARACTERS = 100
_AROUND = 40


@dataclass(frozen=True, slots=True)
class Snippet:
    """A part of a value: what was found in it (empty: nothing was looked for, or it is not in it), and what
    stands before and after. `cut_before` and `cut_after`: there is more."""

    before: str
    found: str = ""
    after: str = ""
    cut_before: bool = False
    cut_after: bool = False


def snippet(json_text: str | None, text: str | None = None) -> Snippet | None:
    """A value as a row shows it; around a text that was searched for, as it is stored. None: there is no
    value."""
    if json_text is None:
        return None
    found = None if text is None else re.search(pattern(text), json_text)
    if found is None:
        shown = readable(json_text, _CHARACTERS)
        return Snippet(" ".join(shown.text.split()) or shown.text, cut_after=shown.left_out > 0)
    start, end = max(0, found.start() - _AROUND), min(len(json_text), found.end() + _AROUND)
    return Snippet(
        visible(json_text[start : found.start()]),
        visible(found[0]),
        visible(json_text[found.end() : end]),
        cut_before=start > 0,
        cut_after=end < len(json_text),
    )
