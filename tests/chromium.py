"""The browser that tests look at pages with: where it is, and what pytest says where there is none."""

from __future__ import annotations

import os
import shutil

import pytest

SWITCH = "MICLIP_NEEDS_BROWSER"
MISSING = "no Chromium is on PATH (set CHROMIUM to one)"


def chromium() -> str | None:
    """The program, if there is one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `browser` is skipped without one, or fails where that is asked for."""
    if item.get_closest_marker("browser") and chromium() is None:
        if os.environ.get(SWITCH, "0") != "0":
            pytest.fail(f"{MISSING}, and {SWITCH} is set", pytrace=False)
        pytest.skip(MISSING)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says once, for all tests together, that nobody has looked at pages."""
    missed = [report for report in terminalreporter.stats.get("skipped", ()) if MISSING in str(report.longrepr)]
    if missed:
        terminalreporter.write_sep("!", "pages were not looked at", yellow=True)
        terminalreporter.write_line(
            f"{len(missed)} tests of the report and the explorer need a browser, and {MISSING}; {SWITCH}=1 makes that a failure"
        )
