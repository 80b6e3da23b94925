"""Maps on a node's disk: whole or not there, whatever happens to the files or to who writes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs.mine_rosetta.scratch import BadImage, BlockFile, Scratch
from jobs.mine_rosetta.taps import InMemory

KEY, NUMBERS = "key", 5
IMAGES = [(64, "a"), (65, "b"), (67, "c"), (68, "d")]
BAD = BadImage(66, "x", "file:/x.png", "truncated", "cut short")
VALUES = torch.arange(20.0).reshape(4, 5)


def write(scratch: Scratch, key: str = KEY, block: int = 1, values: torch.Tensor = VALUES) -> None:
    assert scratch.room_for(key, values.numel() * 4)
    with scratch.writing(key, block) as file:
        file.add(IMAGES[:3], values[:3])
        file.set_aside([BAD])
        file.add(IMAGES[3:], values[3:])


def file_of(root: Path) -> Path:
    (path,) = root.glob("*/*.maps")
    return path


def test_any_rows_of_a_block_come_back_with_what_was_set_aside(tmp_path: Path) -> None:
    scratch = Scratch(1e6, tmp_path)
    assert not scratch.has(KEY, 1, NUMBERS)
    write(scratch)
    assert scratch.has(KEY, 1, NUMBERS) and not scratch.has(KEY, 0, NUMBERS)
    for start, stop in [(64, 69), (65, 68), (66, 67), (69, 80), (68, 69)]:
        raw = scratch.read(KEY, 1, NUMBERS, (start, stop))
        assert raw is not None
        places = [i for i, (index, _) in enumerate(IMAGES) if start <= index < stop]
        assert raw.images == tuple(IMAGES[i] for i in places)
        assert torch.equal(raw.values, VALUES[places])
        assert raw.problems == ((BAD,) if start <= 66 < stop else ())


@pytest.mark.parametrize("kept", [0, 3, 40, 80, 100, -1])
def test_a_file_that_lost_its_end_is_not_there(tmp_path: Path, kept: int) -> None:
    scratch = Scratch(1e6, tmp_path)
    write(scratch)
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert not scratch.has(KEY, 1, NUMBERS) and scratch.read(KEY, 1, NUMBERS, (64, 69)) is None
    write(scratch)
    assert scratch.has(KEY, 1, NUMBERS)


def test_a_file_of_other_numbers_or_of_something_else_is_not_there(tmp_path: Path) -> None:
    scratch = Scratch(1e6, tmp_path)
    write(scratch)
    assert scratch.read(KEY, 1, NUMBERS + 1, (64, 69)) is None
    file_of(tmp_path).write_bytes(b"something else" * 100)
    assert scratch.read(KEY, 1, NUMBERS, (64, 69)) is None


def test_an_error_while_a_block_is_written_leaves_nothing(tmp_path: Path) -> None:
    scratch = Scratch(1e6, tmp_path)
    scratch.room_for(KEY, 0)
    with pytest.raises(RuntimeError), scratch.writing(KEY, 1) as file:
        file.add(IMAGES, VALUES)
        raise RuntimeError
    assert not list(tmp_path.glob("*/*"))


WRITER = """
import sys, time, torch
from pathlib import Path
from jobs.mine_rosetta.scratch import Scratch
scratch = Scratch(1e6, Path(sys.argv[1]))
scratch.room_for("key", 0)
with scratch.writing("key", 1) as file:
    file.add([(64, "a")], torch.zeros(1, 5))
    print("half", flush=True)
    time.sleep(60)
"""


def test_a_process_killed_while_it_writes_leaves_no_block_and_its_remains_go_in_time(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    scratch = Scratch(1e6, tmp_path)
    (remains,) = tmp_path.glob("*/*.partial")
    assert not scratch.has(KEY, 1, NUMBERS) and not list(tmp_path.glob("*/*.maps"))
    write(scratch)
    assert scratch.has(KEY, 1, NUMBERS) and remains.exists()  # it may be somebody's who still writes
    os.utime(remains, (0, time.time() - 7200))
    scratch.room_for(KEY, 0)
    assert not remains.exists()


def test_what_others_have_not_used_for_longest_makes_room_and_what_is_in_use_here_stays(tmp_path: Path) -> None:
    for i, key in enumerate(("old", "older", "new")):
        write(Scratch(1e6, tmp_path), key)
        (folder,) = tmp_path.glob(f"{key}-*")
        os.utime(next(folder.glob("*.maps")), (0, [2000, 1000, 3000][i]))
    size = next(tmp_path.glob("*/*.maps")).stat().st_size
    scratch = Scratch(2.5 * size, tmp_path)
    assert scratch.has("older", 1, NUMBERS)  # used now, and by this one
    assert scratch.room_for("more", size)
    assert [key for key in ("old", "older", "new") if scratch.has(key, 1, NUMBERS)] == ["older"]
    assert not scratch.room_for("more", 3 * size)


def test_a_disk_that_cannot_be_written_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    scratch = Scratch(1e6, blocked)
    assert not scratch.room_for(KEY, 10) and not scratch.has(KEY, 1, NUMBERS)
    with scratch.writing(KEY, 1) as file:
        file.add(IMAGES, VALUES)
    assert scratch.read(KEY, 1, NUMBERS, (64, 69)) is None


@pytest.mark.parametrize("numbers", [0, 3, 100_000])
def test_a_full_disk_keeps_nothing_and_raises_nothing(numbers: int) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        file = BlockFile(full)
        file.add([(0, "a")], torch.zeros(1, numbers))
        assert not file.finish()


def test_what_several_passes_gave_stays_on_their_device() -> None:
    held = InMemory()
    for start in (0, 2):
        held.add([(start, "a"), (start + 1, "b")], torch.empty(2, 5, device="meta"))
    raw = held.take(5)
    assert raw.values.shape == (4, 5) and raw.values.device.type == "meta" and len(raw.images) == 4
    assert InMemory().take(5).values.shape == (0, 5)
