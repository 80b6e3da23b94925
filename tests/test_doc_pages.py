"""docs/ as a whole: every page is found from the README, every kind has its page, every error its advice, every picture is small."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from cluster.spec_file import parse_spec
from jobs.kinds import KINDS, get_kind
from schemas import errors
from schemas.cells import OverModels
from schemas.extract_specs import ExtractSpec, Output
from tests import picture_docs
from tests.test_docs import ROOT, blocks

DOCS = ROOT / "docs"
NEVER_WRITTEN = {"inspect", "index_images", "measure_sae"}  # every pipeline has them as it needs them


def test_the_readme_leads_to_every_page_once():
    found = re.findall(r"^\| \[(\w[\w-]*)\]\(docs/([\w-]+)\.md\)", (ROOT / "README.md").read_text(), re.M)
    listed = [page for _, page in found] + ["kinds"]
    assert all(name == page for name, page in found)
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md"))


# -- kinds.md


def rows_of_kinds() -> dict[str, list[str]]:
    """kind -> the cells of its row."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (DOCS / "kinds.md").read_text(), re.M)
    return {kind: cells.split(" | ") for kind, cells in rows}


def tables_of(kind: str) -> set[str]:
    return {table for rounds in get_kind(kind).TABLES.values() for tables in rounds.values() for table in tables}


def test_every_kind_that_is_written_has_a_row_with_its_tables():
    rows = rows_of_kinds()
    assert set(rows) == set(KINDS) - NEVER_WRITTEN - {"selftest"}
    for kind, cells in rows.items():
        named = set(re.findall(r"`(\w+)`", cells[2]))
        assert named - tables_of(kind) == set() and tables_of(kind) - named <= {"bad_inputs"}, kind


def test_kinds_that_nobody_writes_are_named_with_their_tables():
    below = (DOCS / "kinds.md").read_text().split("Three kinds are never written")[1]
    for kind in (*NEVER_WRITTEN, "selftest"):
        assert {name for name in {kind, *tables_of(kind)} if f"`{name}`" not in below} == set(), kind


def test_every_kind_has_a_spec_on_its_page_and_the_page_a_query_and_a_picture():
    specs = {block.page: set() for block in blocks("yaml")}
    for block in blocks("yaml"):
        specs[block.page] |= {stage.kind for stage in parse_spec(block.text, str(block)).pipeline.stages.values()}
    for kind, cells in rows_of_kinds().items():
        page = re.search(r"\]\((\w+\.md)", cells[3])[1]
        text = (DOCS / page).read_text()
        assert kind in specs[page], f"{page}: no spec with kind: {kind}"
        assert "```sql" in text and "](pictures/" in text, page


# -- extract.md


def test_the_page_of_extraction_has_every_field_and_output():
    page = (DOCS / "extract.md").read_text()
    own = set(ExtractSpec.model_fields) - set(OverModels.model_fields) - {"kind", "images"}
    assert {name for name in own if not re.search(rf"^\|[^|]*`{name}`", page, re.M)} == set()
    assert {name for name in get_args(Output) if not re.search(rf"^\| `{name}` \|", page, re.M)} == set()


# -- troubleshooting.md


def errors_under(heading: str) -> set[str]:
    section = (DOCS / "troubleshooting.md").read_text().split(f"## {heading}")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([A-Z]\w+)` \|", section, re.M))


def test_every_error_stands_once_and_under_the_exit_code_that_it_ends_with():
    classes = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.MiclipError)}
    told = {code: errors_under(f"Exit code {code}:") for code in (1, 2, 3, 130, 143)}
    assert told == {code: {name for name, kind in classes.items() if kind.exit_code == code} for code in told}
    page = (DOCS / "troubleshooting.md").read_text()
    assert [name for name in classes if len(re.findall(rf"^\| `{name}` \|", page, re.M)) != 1] == []


# -- pictures


def test_every_picture_is_shown_drawn_by_the_script_and_small():
    drawn = {*picture_docs.DEMO, *picture_docs.NIGHTLY, "explorer"}
    shown = {name for page in DOCS.glob("*.md") for name in re.findall(r"\]\(pictures/(\w+)\.png\)", page.read_text())}
    there = {path.stem: path.stat().st_size for path in (DOCS / "pictures").glob("*.png")}
    assert set(there) == drawn == shown
    assert {name for name, size in there.items() if size > picture_docs.LARGEST} == set()


def test_every_picture_says_in_words_what_it_shows():
    for page in DOCS.glob("*.md"):
        assert all(len(words) > 20 for words in re.findall(r"!\[([^\]]*)\]", page.read_text())), page.name


# -- quickstart.md


@pytest.mark.slow
def test_the_quickstart_runs_as_it_stands(tmp_path: Path):
    first = next(block for block in blocks("yaml") if block.page == "quickstart.md")
    (tmp_path / "first.yaml").write_text(first.text)
    python = shlex.quote(sys.executable)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = ""
    for block in blocks("sh"):
        if block.page == "quickstart.md" and block.words == "quickstart":
            script = f'miclip() {{ {python} -m cluster.cli "$@"; }}\n{block.text}'
            done = subprocess.run(
                ["bash", "-ec", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"
            printed += done.stdout
    assert "first-00001 done  15 stages published" in printed and "shape=" in printed
    assert (tmp_path / "first.html").stat().st_size > 100_000
