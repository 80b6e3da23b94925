"""What native code and child processes print goes to the log; the person sees only what is meant for the person."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from cluster.on_ray.terminal import own_the_terminal

with own_the_terminal(Path(sys.argv[1])) as terminal:
    os.write(1, b"native out\\n")
    os.write(2, b"native err\\n")
    print("python noise")
    subprocess.run(["echo", "child noise"], check=True)
    print("for the person", file=terminal.out)
    print("a warning", file=terminal.err)
print("afterwards")
"""


def test_the_person_sees_only_what_is_meant_for_the_person(tmp_path: Path) -> None:
    log = tmp_path / "runs" / "run.log"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout == "for the person\nafterwards\n"
    assert done.stderr == "a warning\n"
    assert sorted(log.read_text().splitlines()) == ["child noise", "native err", "native out", "python noise"]


def test_an_error_inside_gives_the_terminal_back(tmp_path: Path) -> None:
    script = SCRIPT.replace('print("for the person", file=terminal.out)', "raise SystemExit('told you')")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "told you\n")
