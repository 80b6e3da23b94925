"""Numbers as people read them in tables and hover texts."""

from __future__ import annotations

import math


def short_number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent where that stays short: 0.0123, 12.3, 1,230; – if there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e7:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    if float(value).is_integer() or size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def percent(share: float | None) -> str:
    """0.1234 -> 12.3 %, 0.00123 -> 0.12 %; – if there is none."""
    if share is None or math.isnan(share):
        return "–"
    return f"{100 * share:.1f} %" if share == 0 or abs(share) >= 0.01 else f"{100 * share:.2g} %"
