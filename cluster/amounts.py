"""Amounts and messages in few words, as people read them everywhere: counts, SI prefixes, durations, first lines."""

from __future__ import annotations


def some(number: int, noun: str) -> str:
    """1, "stage" -> 1 stage; 2, "stage" -> 2 stages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def count(number: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{number:,.0f}"


def short(number: float, unit: str = "", base: float = 1000.0) -> str:
    """1234567 -> 1.2 M; bytes and FLOPs by their SI prefix."""
    if not number:
        return "-"
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(number) < base or prefix == "P":
            return f"{number:.0f} {unit}".strip() if prefix == "" else f"{number:.3g} {prefix}{unit}"
        number /= base
    return ""


def duration(seconds: float) -> str:
    """75.2 -> 1m15s."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def first_line(text: str) -> str:
    """The first line of a message; nothing of an empty one."""
    return next(iter(text.strip().splitlines()), "")
