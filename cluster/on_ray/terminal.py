"""The terminal belongs to the person: what Ray's processes print goes to the run log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO


class Terminal(NamedTuple):
    """Private copies of the person's stdout and stderr."""

    out: TextIO
    err: TextIO


@contextmanager
def own_the_terminal(log_path: Path) -> Iterator[Terminal]:
    """Point file descriptors 1 and 2 of this process and its children at a log; yields the terminal.

    Enter before Ray is started and leave after it is shut down: its native code writes to the descriptors, whatever
    Python's sys.stdout is. Children do not inherit the copies, so a pipe behind stdout ends when this process does.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    copies = os.dup(1), os.dup(2)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        with open(copies[0], "w", closefd=False) as out, open(copies[1], "w", closefd=False) as err:
            yield Terminal(out, err)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for copy, descriptor in zip(copies, (1, 2)):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(log)
