"""Pages need no network, and no text of data becomes a part of them."""

import re

from starflow_world.io.html import Markup, data_uri, joined, page, table, tag

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&'


def test_texts_and_attributes_are_escaped_and_markup_is_not_escaped_again() -> None:
    inner = tag("b", HOSTILE)
    found = tag("p", inner, [HOSTILE, tag("i", "x")], title=HOSTILE, class_="soft")
    assert found.count("<") == found.count(">") == 6
    assert found.startswith('<p title="&quot;&gt;&lt;script&gt;')
    assert found.endswith('<i>x</i></p>')
    assert "<b>&quot;&gt;&lt;script&gt;" in found
    assert isinstance(joined("a", [inner]), Markup)


def test_cells_of_tables_are_escaped() -> None:
    found = table(["", HOSTILE], [[HOSTILE, "2"]])
    assert "<script" not in found
    assert found.count("&lt;script&gt;") == 2


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    found = page(HOSTILE, tag("img", src=data_uri("image/png", b"x"), alt=HOSTILE), {"blue": ("#00f", "#88f")})
    assert "default-src 'none'; img-src data:" in found
    assert "<script" not in found
    assert not re.search(r'(src|href)="(?!data:|#)', found)
    assert "url(" not in found
    assert "--c-blue: #88f" in found.partition("prefers-color-scheme: dark")[2]
