"""Colours of charts and overlays: told apart by colour-blind readers, and ordered by lightness where they mean more or less."""

from __future__ import annotations

N_SERIES = 8
"""Colours before they come again with another dash."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")

SERIES = (
    ("#0f6cbd", "#5cb3ff"),
    ("#c44e00", "#ff9a4d"),
    ("#00795c", "#3fd0a4"),
    ("#a8327d", "#f08bc8"),
    ("#8a6d00", "#e6c84a"),
    ("#5b4bc4", "#a99bff"),
    ("#0b7f92", "#59d0e2"),
    ("#5f6672", "#b3bac4"),
)
"""(on light, on dark): after Okabe and Ito's choice, with lightness moved until each has contrast 4 on its ground."""

HEAT = (
    "#280d46", "#3e0c57", "#570663", "#710367", "#8b0266", "#a40b61", "#bf0d57", "#d91345",
    "#ea352e", "#f65304", "#f87606", "#fc9006", "#fbab2f", "#f7c45d", "#f3db87", "#f5f0a0",
)  # fmt: skip
"""Sixteen steps from nothing to most: OKLCH lightness rises evenly from .24 to .94 while the hue goes from violet to yellow."""


def series_class(number: int) -> str:
    """The CSS class that carries the colour of a series."""
    return f"s{number % N_SERIES}"


def series_dash(number: int) -> str | None:
    """The dash of a series; the first eight have none."""
    return DASHES[number // N_SERIES % len(DASHES)] or None


def series_css() -> str:
    """The rules behind `series_class`: each sets `--series`."""
    return "\n".join(f".s{i}{{--series:light-dark({light},{dark})}}" for i, (light, dark) in enumerate(SERIES))
