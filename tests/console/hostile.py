"""What is written into events and addresses with bad intentions, and how to see that a page took it as text.

Each payload that is to run says `zq7x`: as the name of a handler, an element, an attribute or what a script
would call. So whatever of it became more than text is found by that name.
"""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlsplit

from eventstore.model.event import NewEvent
from tests.unit.helpers import new_event

__all__ = ["MARK", "PAYLOADS", "Parsed", "findings", "hostile_event"]

MARK = "zq7x"

_RUN = "window.zq7x=1"
PAYLOADS: tuple[str, ...] = (
    # elements in the middle of text
    f"<script>{_RUN}</script>",
    f"<ScRiPt >{_RUN}</sCrIpT >",
    "<script src=//zq7x.invalid/x.js></script>",
    f"<script/x>{_RUN}</script>",
    f"<<script>{_RUN}//<</script>",
    f"<img src=x onerror={_RUN}>",
    f"<img src=x onerror='{_RUN}'//",
    f'<img """><script>{_RUN}</script>">',
    f"<svg onload={_RUN}>",
    f"<svg/onload={_RUN}>",
    f"<svg><script>{_RUN}</script></svg>",
    f"<svg><animate onbegin={_RUN} attributeName=x dur=1s>",
    f"<svg><set attributeName=href to=javascript:{_RUN}>",
    f"<svg><a xlink:href='javascript:{_RUN}'><text y=9>x</text></a></svg>",
    f"<svg><title></title><style><img src=x onerror={_RUN}></style></svg>",
    f"<svg><foreignObject><iframe srcdoc='<script>parent.{_RUN}</script>'></iframe></foreignObject></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={_RUN}>",
    f"<body onload={_RUN}>",
    f"<input autofocus onfocus={_RUN}>",
    f"<details open ontoggle={_RUN}>x</details>",
    f"<video><source onerror={_RUN}></video>",
    f"<iframe srcdoc='<script>parent.{_RUN}</script>'></iframe>",
    f"<iframe src=javascript:parent.{_RUN}></iframe>",
    f"<object data='data:text/html,<script>parent.{_RUN}</script>'></object>",
    f"<embed src=javascript:{_RUN}>",
    "<base href=//zq7x.invalid/>",
    "<meta http-equiv=refresh content='0;url=//zq7x.invalid/'>",
    "<link rel=stylesheet href=//zq7x.invalid/x.css>",
    "<form action=//zq7x.invalid/><button>zq7x</button></form>",
    f"<template><script>{_RUN}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={_RUN}>'>",
    f"<a href='javascript:{_RUN}'>zq7x</a>",
    "<div hx-get='//zq7x.invalid/' hx-trigger=load>zq7x</div>",
    f"<div hx-on::load='{_RUN}'>zq7x</div>",
    "<div data-hx-get='/console/' data-hx-trigger=load data-zq7x>x</div>",
    # out of what stands around it
    f"</title><script>{_RUN}</script>",
    f"</textarea><script>{_RUN}</script>",
    f"</pre></td></table><script>{_RUN}</script>",
    f"</script><script>{_RUN}</script>",
    f"</style><script>{_RUN}</script>",
    f"--><script>{_RUN}</script><!--",
    f"]]><script>{_RUN}</script>",
    f"&lt;script&gt;{_RUN}&lt;/script&gt;",
    f"&#60;img src=x onerror={_RUN}&#62;",
    # out of an attribute
    f'"><script>{_RUN}</script>',
    f"'><script>{_RUN}</script>",
    f'" onmouseover="{_RUN}" autofocus onfocus="{_RUN}" x="',
    f"' onmouseover='{_RUN}' autofocus onfocus='{_RUN}' x='",
    f"x onfocus={_RUN} autofocus",
    f"` onfocus=`{_RUN}` autofocus",
    f'"/onfocus="{_RUN}"/autofocus/x="',
    '" style="background:url(//zq7x.invalid/)" x="',
    '" hx-get="//zq7x.invalid/" hx-trigger="load" x="',
    # as an address
    f"javascript:{_RUN}",
    f"JaVaScRiPt:{_RUN}",
    f"java\tscript:{_RUN}",
    f" javascript:{_RUN}",
    f"javascript://%0a{_RUN}",
    f"data:text/html,<script>{_RUN}</script>",
    "data:text/html;base64,PHNjcmlwdD56cTd4PC9zY3JpcHQ+zq7x",
    "vbscript:msgbox(zq7x)",
    "//zq7x.invalid/",
    "https://zq7x.invalid/",
    "\\\\zq7x.invalid\\x",
    "/../../zq7x?a=b#c",
    # in script, style and JSON
    f"';{_RUN};//",
    f'";{_RUN};//',
    f"\\';{_RUN};//",
    f"${{{_RUN}}}",
    f"\\u003cscript\\u003e{_RUN}\\u003c/script\\u003e",
    "x}body{background:url(//zq7x.invalid/)}",
    "expression(zq7x())",
    # in a template
    "{{7*7}}zq7x",
    "{{ visit.csrf }}zq7x",
    "{{ self.__init__.__globals__ }}zq7x",
    "{% raw %}zq7x{% endraw %}",
    "{% include 'base.html' %}zq7x",
    "${7*7}zq7x",
    "#{7*7}zq7x",
    "<%= 7*7 %>zq7x",
    "%(zq7x)s %s {0} {zq7x}",
    # in a spreadsheet
    '=HYPERLINK("//zq7x.invalid/","x")',
    "+zq7x|' /C calc'!A0",
    "@SUM(zq7x)",
    # in a header or a log
    "zq7x\r\nSet-Cookie: zq7x=1",
    "zq7x%0d%0aSet-Cookie:%20zq7x=1",
    "zq7x\x1b]0;zq7x\x07\x1b[31m",
    # letters that are not what they look like
    "\u202ezq7x\u202d\u2066gnp.exe\u2069",
    "zq7x\u200b\u200d\ufeff\u00ad",
    "\uff1cscript\uff1ezq7x\uff1c/script\uff1e",
    "\u02ba\u02b9\u2018\u201czq7x",
    "zq7x\u2028\u2029\x85\x0b\x0c",
    "zq7x" + "\u0301" * 80,
    "\U0001f4a5\U0001d4e9zq7x",
    "\ufffe\uffff\ufffdzq7x",
    "%00zq7x\\0\\x00",
    "../../../../etc/passwd%2500zq7x",
    "' OR 1=1 --zq7x",
    "zq7x" + "W" * 90,
    "<zq7x " + "a" * 80,
)

# What the pages are made of. Nothing else may come out of a template.
_MADE_OF = """
html head meta title link script body a header div nav ul ol li span details summary form input label button
main p footer h1 h2 h3 h4 section article aside table caption colgroup col thead tbody tfoot tr th td dl dt dd
time pre code bdi b strong em small abbr del ins s hr br select option optgroup textarea fieldset legend
datalist figure figcaption mark output progress meter kbd wbr
svg g path rect line circle polyline polygon text tspan desc use defs pattern clippath
"""
_ELEMENTS = frozenset(_MADE_OF.split())
_ADDRESSED = """
href src action formaction xlink:href data poster srcset ping cite
hx-get hx-post hx-put hx-delete hx-patch hx-push-url hx-replace-url
"""
_ADDRESSES = frozenset(_ADDRESSED.split())
_HTMX_WORDS = frozenset(("true", "false"))


class Parsed(HTMLParser):
    """A page as a browser takes it apart: `elements` with their attributes, and the `text` of it all."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def values(self, name: str) -> list[str]:
        """The values of all attributes of that name."""
        return [value or "" for _, attrs in self.elements for n, value in attrs if n == name]


def _of_attribute(tag: str, name: str, value: str) -> str | None:
    if name.startswith(("on", "hx-on", "data-hx-")) or name in ("style", "srcdoc"):
        return f"<{tag} {name}={value!r}>"
    if MARK in name:
        return f"an attribute {name!r} of <{tag}>"
    if name in _ADDRESSES:
        found = urlsplit(value)
        own = not found.scheme and not found.netloc and not value.startswith(("\\", "//", " "))
        if not own and value not in _HTMX_WORDS:
            return f"an address elsewhere: <{tag} {name}={value!r}>"
    return None


def findings(page: str) -> list[str]:
    """All that is in a page and could not come from the templates."""
    parsed = Parsed(page)
    found = [f"a comment {c[:80]!r}" for c in parsed.comments if MARK in c]
    for tag, attrs in parsed.elements:
        names = dict(attrs)
        if tag not in _ELEMENTS:
            found.append(f"an element <{tag}>")
        if tag == "script" and not str(names.get("src") or "").startswith("/console/static/"):
            found.append(f"a script {names}")
        if tag == "meta" and "http-equiv" in names:
            found.append(f"a meta element {names}")
        found += [f for name, value in attrs if (f := _of_attribute(tag, name, value or "")) is not None]
    return found


def hostile_event(payload: str) -> NewEvent:
    """An event with the payload in every field and value, and as the name of a member."""
    return new_event(
        payload,
        entity_type=payload[:200],
        action=payload[:100],
        field=payload,
        actor=payload,
        source=payload,
        workspace_id=payload,
        old_value=payload,
        new_value={payload: [payload, {payload: payload}]},
        metadata={payload: payload},
    )
