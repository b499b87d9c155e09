r"""Free text in values: one pattern that Postgres and DuckDB understand alike.

Values are stored as the JSON text that the caller sent, so one character can stand there in several ways:
an e with an accent as itself or as `\u00e9`, a quote as `\"`. A person who searches types none of that. So
the pattern names every way in which a character may be written, and both of its cases: engines are asked for
neither, since each folds case by tables of its own.
"""

from __future__ import annotations

__all__ = ["longest_plain", "pattern"]

# Characters that no JSON writer escapes: they stand for themselves in every stored value. Writers for the web
# escape the others of ASCII, some of them.
_PLAIN = frozenset(" !#$%()*,-.:;=?@[]^_{|}~")
_SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def longest_plain(text: str) -> str:
    """The longest part of a text that stored values can hold in no other way than as it is, but for the case
    of A to Z."""
    shown = "".join(c if c.isascii() and (c.isalnum() or c in _PLAIN) else "\0" for c in text)
    return max(shown.split("\0"), key=len)


def pattern(text: str) -> str:
    """The regular expression for values that hold a text, whichever way it is written there.

    Letters match in both cases: a letter as it is, and as its one upper-case or lower-case character, if it
    has one. The expression is made of characters, classes and alternatives alone.
    """
    return "".join(map(_written, text))


def _written(char: str) -> str:
    if char.isascii() and char.isalnum():
        return char if char.isdigit() else f"[{char.lower()}{char.upper()}]"
    if char in _PLAIN:
        return _literal(char)
    ways = [] if char < " " or char in '"\\' else [_literal(c) for c in _cases(char)]
    if char in _SHORT:
        ways.append(rf"\\{_literal(_SHORT[char])}")
    if char == '"':
        ways.append(char)  # the quotes around a string, as in "draft" or {"status":"draft"}
    ways += [_escaped(c) for c in _cases(char)]
    return f"(?:{'|'.join(ways)})"


def _cases(char: str) -> list[str]:
    """A character and its other case. Where that is several characters, or of ASCII, it has none: sharp s is
    not SS, and the Kelvin sign no k."""
    found = dict.fromkeys([char, char.lower(), char.upper()])
    return [c for c in found if c == char or (len(c) == 1 and not c.isascii())]


def _escaped(char: str) -> str:
    r"""A character as `\uXXXX`, with hexadecimal digits of either case; beyond U+FFFF as two of them."""
    units = char.encode("utf-16-be").hex()
    digits = [c if c.isdigit() else f"[{c}{c.upper()}]" for c in units]
    return "".join(rf"\\u{''.join(digits[at : at + 4])}" for at in range(0, len(digits), 4))


def _literal(char: str) -> str:
    return char if char.isalnum() or not char.isascii() or char in " _" else f"\\{char}"
