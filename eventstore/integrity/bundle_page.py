"""The page in a bundle that says in plain words what it is: for people, not for programs.

It holds texts of anybody's, so every one of them is escaped, characters that are not seen are shown by their
numbers, and the page takes nothing from elsewhere and runs nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

__all__ = ["bundle_page", "visible"]

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "dt{font-weight:600}dd{margin:0 0 .5rem 1rem}code,dd{overflow-wrap:anywhere}"
    "pre{overflow-x:auto;padding:.5rem;border:1px solid}"
)
# In Python as in any other program: nothing of the store is needed.
_HOW = "pip install cryptography\npython verify_bundle.py FILE --key KEY"


def visible(text: str) -> str:
    """A text in which every character is seen: others (control characters, ones that change the direction of
    writing) as their numbers."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def bundle_page(
    *,
    tenant_id: str,
    question: Mapping[str, object],
    asked_by: str,
    asked_at: str,
    reason: str | None,
    events: int,
    destroyed: Sequence[tuple[int, int, int]],
    log_size: int,
    key_text: str,
    key_sha256: str,
) -> bytes:
    """The page as UTF-8. `destroyed` is what is gone within the question: first and last seqs, and the
    numbers of the certificates."""
    asked = ", ".join(f"{name} {value}" for name, value in question.items()) or "all events of the log"
    facts = [
        ("Log", f"the log of the tenant {tenant_id}"),
        ("Question", asked),
        ("Answer", f"{events:,} events"),
        ("Asked by", asked_by),
        ("Asked at", f"{asked_at} (UTC)"),
        ("Reason", reason or "none was given"),
        ("Destroyed before", _gone(destroyed)),
        ("Length of the log", f"{log_size:,} events when this was made"),
        ("Key", key_text),
        ("SHA-256 of the key", key_sha256),
    ]
    rows = "\n".join(f"<dt>{name}</dt><dd><bdi>{_escaped(text)}</bdi></dd>" for name, text in facts)
    return _PAGE.format(style=_STYLE, title=_escaped(tenant_id), rows=rows, how=html.escape(_HOW)).encode()


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _gone(destroyed: Sequence[tuple[int, int, int]]) -> str:
    if not destroyed:
        return "nothing within what was asked for"
    parts = [f"seq {first:,} to {last:,} (certificate {number})" for first, last, number in destroyed]
    return ", ".join(parts)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evidence: {title}</title>
<style>{style}</style>
</head>
<body>
<h1>Evidence from an event store</h1>
<p>This file holds events that the store recorded, and what anybody needs to check that they are genuine.</p>
<dl>
{rows}
</dl>
<h2>What is proved</h2>
<ul>
<li>No byte of this file was changed since the store signed it.</li>
<li>No event was changed since it was recorded: its hash follows from its content and from the event before
it.</li>
<li>Each event is in the log whose checkpoint is in this file: the number of its events, and one hash over all
of them, signed.</li>
<li>If the question was a range of seqs: that none in it is missing, but those that were destroyed under the
certificates in this file.</li>
</ul>
<h2>What is not proved</h2>
<ul>
<li>That the key is the store's. Compare its SHA-256 above with one that you were given in another way.</li>
<li>That no other event meets the question, unless it was a range of seqs. That is the store's word.</li>
<li>That the checkpoint is the one that others have. Compare <code>checkpoint.txt</code> with one that was
published, or ask for the proof that one continues the other.</li>
<li>That what somebody recorded was true, or that the store's clock was right.</li>
</ul>
<h2>How to check it</h2>
<p>Do not trust this page: check the file that you were given, whole, as one <code>.zip</code>. Unpacked parts
prove nothing. No network and no access to the store is needed.</p>
<pre>{how}</pre>
<p>FILE is the file, KEY the store's public key as you know it (it begins like the one above).
<code>verify_bundle.py</code> is one short file of Python, to be had from the documentation of the store, and
to be read before it is trusted. Where the store's own program is installed,
<code>eventstore verify-bundle FILE --key KEY</code> does the same.</p>
<h2>What is in it</h2>
<dl>
<dt>events.ndjson</dt><dd>the events, one a line, in the order of the log</dd>
<dt>proofs.ndjson</dt><dd>for each of them, the hashes that lead from it to the checkpoint</dd>
<dt>windows.ndjson</dt><dd>the periods of the log in which they lie, with the files of the archive</dd>
<dt>certificates</dt><dd>what stands for events that were destroyed within what was asked for</dd>
<dt>checkpoint.txt</dt><dd>the signed checkpoint</dd>
<dt>key.pub</dt><dd>the public keys of the store</dd>
<dt>bundle.json</dt><dd>the question, for programs</dd>
</dl>
</body>
</html>
"""
