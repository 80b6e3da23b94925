"""Tests that need a browser where there is none: skipped and said once, or failed where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chromium import MISSING, SWITCH

ROOT = Path(__file__).parent.parent
TESTS = """\
import pytest

@pytest.mark.browser
@pytest.mark.parametrize("page", [1, 2])
def test_page(page): pass

@pytest.mark.skip("for another reason")
def test_other(): pass
"""


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({}, 0, "2 tests of the report and the explorer need a browser"),
        ({SWITCH: "1"}, 1, f"{MISSING}, and {SWITCH} is set"),
    ],
)
def test_pages_that_were_not_looked_at_are_said(
    tmp_path: Path, environment: dict[str, str], code: int, said: str
) -> None:
    (tmp_path / "test_pages.py").write_text(TESTS)
    words = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-p", "tests.chromium", "-p", "no:cacheprovider"]  # fmt: skip
    kept = {name: text for name, text in os.environ.items() if name not in ("CHROMIUM", SWITCH)}
    environment = {
        **kept,
        "PATH": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **environment,
    }
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code and said in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("pages were not looked at") == int(not code)
