"""HTML pages that need no network: every text is escaped unless a tag made it, and pictures lie in the page itself."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""What the page may load (nothing that is not in it) and run (nothing)."""
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --paper: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #343b44; --paper: #0d1117; --card: #151b23; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 4rem; max-width: 1500px; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: .5rem 0 0; font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; }
h2 { margin: 2.5rem 0 .25rem; padding-top: .75rem; border-top: 1px solid var(--line); font-size: 1.35rem; }
h3 { margin: 0; font-size: 1rem; }
p { margin: .25rem 0 .75rem; max-width: 75ch; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.grid { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.row { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 1rem 0; }
.box { min-width: 0; padding: .75rem .9rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0; max-width: 620px; }
figure svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .5rem 0; font-size: .9rem; }
.key i { display: inline-block; width: 1.6em; margin-right: .4em; vertical-align: middle; border-top: 3px solid; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: normal; }
td:last-child { overflow-wrap: anywhere; }
.frames td, .frames th { border: 0; padding: 2px 6px 2px 0; vertical-align: middle; text-align: center; }
.frames th:first-child { text-align: right; font-weight: normal; color: var(--soft); }
.frames img { display: block; width: clamp(52px, 8vw, 112px); image-rendering: pixelated; border-radius: 3px; }
video { display: block; width: 100%; border-radius: 6px; image-rendering: pixelated; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
"""


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: str | Iterable[str], **attributes: str) -> Markup:
    """Return an element. Children and attributes are escaped, except children that are Markup; the attribute `class_`
    is `class`."""
    words = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    if name in ("img", "meta", "br"):
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{joined(*children)}</{name}>")


def joined(*children: str | Iterable[str]) -> Markup:
    """Return texts (escaped), Markup (as it is) and sequences of both, one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(Markup(escape(child)))
        else:
            parts.append(joined(*child))
    return Markup("".join(parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], **attributes: str) -> Markup:
    """Return a table that scrolls sideways where it is wider than the page."""
    top = tag("tr", [tag("th", cell) for cell in head]) if any(head) else Markup()
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    return tag("div", tag("table", top, body, **attributes), class_="scroll")


def data_uri(kind: str, content: bytes) -> str:
    """Return bytes of a media type, such as image/png, as an address that contains them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page(title: str, body: Markup, colours: Mapping[str, tuple[str, str]]) -> str:
    """Return a whole page. colours: light and dark colour of each name; --c-NAME is the variable of style sheets."""
    light, dark = ("".join(f"--c-{name}: {pair[index]}; " for name, pair in colours.items()) for index in (0, 1))
    style = f"{STYLE}:root {{ {light}}} @media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
    head = joined(
        tag("meta", charset="utf-8"), Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"), tag("title", title),
        tag("style", Markup(style)),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
