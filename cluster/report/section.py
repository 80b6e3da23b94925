"""What a section of a report is; the shell knows nothing more of any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.report.data import ReportData
from cluster.report.html import Html


@dataclass(frozen=True)
class Section:
    """One part of the page.

    needs: it is shown if any of these tables has rows; always if there are none. assets: scripts and styles of its own,
    beside those of the shell, as file names in `assets/`.
    """

    id: str
    title: str
    needs: tuple[str, ...]
    render: Callable[[ReportData], Html]
    assets: tuple[str, ...] = ()
