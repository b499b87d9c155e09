"""Values of events as people read them: what cannot be seen made visible, JSON laid out, all of it bounded.

A stored value is whatever a caller sent: megabytes, nested without end, with characters that turn the text
around them (bidirectional overrides), or that nobody sees. Escaping for HTML is the templates'; this is about
what is left then.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import msgspec

__all__ = ["VALUE_CHARACTERS_MAX", "Readable", "laid_out", "readable", "reveal", "same_to_the_eye", "visible"]

# What is shown of one value; and longer JSON is shown as the text it is, not laid out.
VALUE_CHARACTERS_MAX = 20_000
_LAID_OUT_MAX = 65_536
_INDENT_LEVELS_MAX = 20

# Never shown as themselves: control characters (but tab and line feed), halves of surrogate pairs, line
# separators, characters that are invisible or turn the direction of text. Joiners stay: scripts and emoji
# need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# And what is a difference only where nothing else is one: white space, joiners, variation selectors.
_BLANK = re.compile("[\\s\u200c\u200d\ufe00-\ufe0f]")
# Signs for blanks: a dot, an arrow to a bar, a turned arrow, the letters CR.
_MARKS = {" ": "·", "\t": "\u21e5", "\n": "\u21b5\n", "\r": "\u240d"}
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Readable:
    """A text as it is shown. `left_out` counts the characters of it that are not."""

    text: str
    left_out: int = 0


def _code(found: re.Match[str] | str) -> str:
    character = found if isinstance(found, str) else found[0]
    return f"\u27e6U+{ord(character):04X}\u27e7"


def visible(text: str) -> str:
    """A text of which every character can be seen for what it is, but for white space and joiners."""
    return _HIDDEN.sub(_code, text.replace("\r\n", "\n"))


def reveal(text: str) -> str:
    """As `visible`, white space and everything else that takes no room included."""
    return "".join(map(_revealed, text))


def _revealed(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    is_unseen = _HIDDEN.match(character) or _BLANK.match(character) or unicodedata.combining(character)
    return _code(character) if is_unseen else character


def same_to_the_eye(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but white space, invisible characters and Unicode's several ways to
    write a letter."""
    return _skeleton(one) == _skeleton(other)


def _skeleton(text: str) -> str:
    return unicodedata.normalize("NFC", _BLANK.sub("", _HIDDEN.sub("", text)))


def readable(json_text: str, characters_max: int = VALUE_CHARACTERS_MAX) -> Readable:
    """A value in a line or a few: a string as its text (an empty one as `""`), anything else as JSON."""
    if json_text[:1] == '"' and len(json_text) <= _LAID_OUT_MAX:
        try:
            decoded = msgspec.json.decode(json_text.encode(errors="surrogatepass"), type=str)
        except msgspec.MsgspecError:
            decoded = json_text
        return _cut(decoded or json_text, characters_max)
    return _cut(json_text, characters_max)


def laid_out(json_text: str, characters_max: int = VALUE_CHARACTERS_MAX) -> Readable:
    """JSON with a line for each member; its numbers and strings are written as they are stored."""
    if len(json_text) > _LAID_OUT_MAX or not json_text.startswith(("{", "[")):
        return _cut(json_text, characters_max)
    parts: list[str] = []
    depth = size = 0
    tokens = [match[0] for match in _TOKENS.finditer(json_text)]
    for index, token in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        if token in ("{", "["):
            depth += 1
            parts.append(token if following in ("}", "]") else token + _line(depth))
        elif token in ("}", "]"):
            depth -= 1
            is_empty = index > 0 and tokens[index - 1] in ("{", "[")
            parts.append(token if is_empty else _line(depth) + token)
        else:
            parts.append({",": "," + _line(depth), ":": ": "}.get(token, token))
        size += len(parts[-1])
        if size > characters_max:
            break
    return _cut("".join(parts), characters_max, more=sum(map(len, tokens[index + 1 :])))


def _line(depth: int) -> str:
    return "\n" + "  " * min(depth, _INDENT_LEVELS_MAX)


def _cut(text: str, characters_max: int, more: int = 0) -> Readable:
    left_out = max(0, len(text) - characters_max) + more
    return Readable(visible(text[:characters_max]), left_out)
