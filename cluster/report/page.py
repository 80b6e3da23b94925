"""The shell of a report: head, navigation, sections in order, and the scripts and styles they need, in one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from cluster.report.colours import HEAT, series_css
from cluster.report.data import ReportData
from cluster.report.html import Html, join, script_json, tag
from cluster.report.section import Section
from schemas.errors import MiclipError

SHELL = ("page.css", "charts.css", "page.js", "tables.js", "charts.js")
KEYS = (
    ("/", "search"), ("j", "next card"), ("k", "previous card"), ("o", "overlay on or off"),
    ("t", "light or dark"), ("?", "these keys"), ("Esc", "close, leave"),
)  # fmt: skip


def make_page(data: ReportData, sections: Sequence[Section]) -> str:
    """The whole page. Equal data give equal bytes: nothing in it comes from a clock or from chance."""
    shown = [s for s in sections if not s.needs or data.has(*s.needs)]
    left_out = [s for s in sections if s not in shown]
    runs = ", ".join(facts.state.run for facts in data.runs) or "no runs"
    title = f"{runs} · miclip report"
    assets = dict.fromkeys((*SHELL, *(name for section in shown for name in section.assets)))
    script = Html("\n".join(_asset(name) for name in assets if name.endswith(".js")))
    style = Html("\n".join([series_css(), *(_asset(name) for name in assets if name.endswith(".css"))]))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Html('<link rel="icon" href="data:,">'),
        tag("style", style),
    )
    body = tag(
        "body",
        tag("a", "Skip to content", href="#content", class_="skip"),
        _header(runs, data),
        tag("div", _navigation(shown), tag("main", _sections(data, shown), _footer(left_out), id="content"), class_="columns"),
        _keys(),
        tag("div", id="tip", role="status", hidden=True),
        data.pictures.as_script(),
        script_json(HEAT, id="heat"),
        tag("script", script),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _sections(data: ReportData, sections: Sequence[Section]) -> Html:
    return join(
        tag("section", tag("h2", section.title), _body(data, section), id=section.id, aria_label=section.title)
        for section in sections
    )


def _body(data: ReportData, section: Section) -> Html:
    """What a section says; what cannot be read is told in its place, and the rest of the page stands."""
    try:
        return section.render(data)
    except MiclipError as error:
        return tag("div", tag("strong", "This part could not be read. "), str(error), class_="alarm", role="alert")


def _header(runs: str, data: ReportData) -> Html:
    toggle = tag("button", "◐", type="button", id="theme", title="Light or dark (t)", aria_label="Light or dark")
    keys = tag("button", "?", type="button", id="help", title="Keys (?)", aria_label="Keyboard shortcuts")
    where = tag("p", data.catalog.store.uri, class_="where")
    return tag("header", tag("div", tag("h1", runs), where), tag("div", keys, toggle, class_="tools"), class_="top")


def _navigation(sections: Sequence[Section]) -> Html:
    links = (tag("li", tag("a", section.title, href=f"#{section.id}")) for section in sections)
    return tag("nav", tag("ul", links), aria_label="Sections")


def _footer(left_out: Sequence[Section]) -> Html | None:
    if not left_out:
        return None
    names = "; ".join(f"{section.title} (no rows in {', '.join(section.needs)})" for section in left_out)
    return tag("footer", tag("p", f"Not on this page, because nothing was published for it: {names}."))


def _keys() -> Html:
    rows = (tag("tr", tag("td", tag("kbd", key)), tag("td", what)) for key, what in KEYS)
    close = tag("form", tag("button", "Close"), method="dialog")
    return tag("dialog", tag("h2", "Keys"), tag("table", tag("tbody", rows)), close, id="keys", aria_label="Keys")


def _policy(script: str) -> str:
    """Nothing may be fetched, and no script may run but ours."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _asset(name: str) -> str:
    return (files("cluster.report") / "assets" / name).read_text(encoding="utf-8").strip()
