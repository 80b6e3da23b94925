"""Every fault of docs/faults.md has a promise and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
PROMISED = {int(number) for number in re.findall(r"^\| (\d+) \| ", PAGE, re.M)}


def parse_matrix() -> dict[int, list[str]]:
    """Fault -> the tests that hold it."""
    matrix: dict[int, list[str]] = {}
    for line in PAGE.partition("```text\n")[2].splitlines():
        if fault := re.match(r"^ ?(\d+)  \S", line):
            matrix[int(fault[1])] = []
        elif test := re.match(r"^    (tests/\S+::test_\w+)$", line):
            matrix[max(matrix)].append(test[1])
    return matrix


MATRIX = parse_matrix()


def test_every_promised_fault_has_a_test() -> None:
    assert set(MATRIX) == PROMISED == set(range(1, len(PROMISED) + 1)) and len(PROMISED) >= 45
    assert all(MATRIX.values())
    assert sum(map(len, MATRIX.values())) == PAGE.count("::test_")


@pytest.mark.parametrize("fault", MATRIX)
def test_the_tests_that_hold_a_fault_exist(fault: int) -> None:
    for name in MATRIX[fault]:
        path, _, function = name.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
