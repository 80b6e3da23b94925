"""Builds HTML from Python values; whatever is not HTML already is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

VOID = {"br", "col", "img", "input", "meta", "wbr"}


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element. None and False leave an attribute out, True gives it no value; `class_` is class, `data_x` data-x."""
    return Html(f"<{name}{_attributes(attributes)}>" + ("" if name in VOID else f"{join(children)}</{name}>"))


def join(children: Any) -> Html:
    """Children in order: iterables are flattened, None is nothing, text is escaped."""
    if children is None:
        return Html()
    if isinstance(children, Html):
        return children
    if isinstance(children, Iterable) and not isinstance(children, str):
        return Html("".join(join(child) for child in children))
    return Html(escape(str(children), quote=True))


def script_json(data: Any, **attributes: Any) -> Html:
    """Data for the page's script; `<` is written as an escape, so that no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Html(
        f'<script type="application/json"{_attributes(attributes)}>' + text.replace("<", "\\u003c") + "</script>"
    )


def _attributes(attributes: dict[str, Any]) -> str:
    return "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
