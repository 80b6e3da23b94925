"""What a person sees while a run goes, given its events."""

from __future__ import annotations

import io
from typing import Any

import pytest

from cluster.amounts import count, duration, short, some
from cluster.cli.progress import RunProgress, WorkView, _per_second


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def planned(work: str = "w", kind: str = "extract", **fields: Any) -> dict[str, Any]:
    base = {
        "event": "planned",
        "work": work,
        "kind": kind,
        "title": f"{kind} demo:x",
        "stages": ["s1", "s2"],
        "shards": 4,
    }
    return {**base, "rows": 400, "rows_left": 300, "ready": 3, "workers": 2, **fields}


def shard(state: str = "done", work: str = "w", **fields: Any) -> dict[str, Any]:
    base = {"event": f"shard_{state}", "work": work, "shard": 1, "round": 0, "items": 100, "seconds": {"process": 2.0}}
    return {**base, "error": "ValueError", "message": "no\nmore", "final": True, **fields}


def show(*events: dict[str, Any], stream: io.StringIO | None = None, quiet: bool = False) -> str:
    stream = stream or io.StringIO()
    with RunProgress(stream, quiet) as progress:
        for event in events:
            progress(event)
    return stream.getvalue()


def test_plain_lines_say_what_is_left_what_failed_and_what_was_published() -> None:
    done = [{"event": "published", "stage": stage} for stage in ("s1", "s2")]
    lines = show(planned(), shard(), shard("failed"), *done).splitlines()
    assert lines[0] == "extract demo:x: 400 images, 2 stages, 100 done before"
    assert lines[1] == "extract demo:x: shard 1 failed: ValueError: no"
    assert lines[2].startswith("extract demo:x: 2 stages published in ")
    assert len(lines) == 3


def test_texts_are_no_images_and_nobody_is_told_of_no_workers() -> None:
    assert show(planned(first_round="texts", rows_left=400)).startswith("extract demo:x texts: 400 texts, 2 stages")
    assert " worker" not in WorkView("t", "images", 4, set(), 0, 0.0).status(1.0)
    assert "1 worker" in WorkView("t", "images", 4, set(), 1, 0.0).status(1.0)


def test_a_work_of_which_there_is_nothing_to_say_yet_gets_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.cli.progress.LINE_SECONDS", -1)
    assert len(show(planned(kind="align", workers=0), shard()).splitlines()) == 1
    assert len(show(planned(kind="align", workers=1), shard()).splitlines()) == 2


def test_shards_that_fail_alike_are_announced_once() -> None:
    lines = show(planned(), shard("failed"), shard("failed"), shard("failed", message="another")).splitlines()
    assert [line.rpartition(": ")[2] for line in lines[1:]] == ["no", "another"]


def test_what_workers_note_is_said_once_and_only_the_first_few() -> None:
    notes = ["topk 64 latents: goes on from step 100", "out of memory at batch size 32, went on with 16"]
    lines = show(planned(), shard(notes=notes), shard(notes=notes), shard(notes=["a third", "a fourth"])).splitlines()
    assert lines[1:] == [f"extract demo:x: {note}" for note in (*notes, "a third")]


def test_a_failure_that_is_tried_again_is_not_announced_as_final() -> None:
    assert "failed" not in show(planned(), shard("failed", final=False))
    assert "shard 1 lost its worker, trying again: " in show(planned(), shard("lost", final=False))
    assert "shard 1 lost its worker, set aside: " in show(planned(), shard("lost"))


def test_a_terminal_shows_a_bar_for_each_work_with_items_and_workers() -> None:
    text = show(planned(), planned("v", title="extract demo:y"), shard(), stream=Terminal())
    assert "extract demo:x" in text and "extract demo:y" in text and "━" in text
    assert "200/400 images" in text and "2 workers" in text and "waiting for a worker" in text


def test_messages_are_shown_as_they_are_and_never_as_markup() -> None:
    assert "[red]x[/red]" in show({"event": "error", "subject": "m", "message": "[red]x[/red]"})


def test_quiet_says_nothing() -> None:
    assert show(planned(), shard("failed"), quiet=True) == ""


def test_numbers_for_people() -> None:
    assert [count(1234567), short(0), short(999), short(1_234_567, "B"), short(4.9e12, "FLOP")] == [
        "1,234,567", "-", "999", "1.23 MB", "4.9 TFLOP",
    ]  # fmt: skip
    assert [duration(0.25), duration(59), duration(75), duration(3700)] == ["0.2s", "59s", "1m15s", "1h01m"]
    assert [some(1, "stage"), some(2000, "stage")] == ["1 stage", "2,000 stages"]


def test_a_rate_is_a_number_that_people_read() -> None:
    assert [_per_second(rate) for rate in (0.0612, 3.14159, 99.94, 148.2, 1834.5)] == [
        "0.0612/s", "3.14/s", "99.9/s", "148/s", "1,834/s",
    ]  # fmt: skip


def test_a_long_title_leaves_room_for_its_bar_and_keeps_both_ends() -> None:
    title = "index folder:/data/a/very/long/way/to/the/pictures/of/imagenet/val"
    text = show(planned("w", title=title), stream=Terminal())
    assert "index folder…" in text and "of/imagenet/val" in text and title not in text


def test_a_run_that_is_looked_at_later_has_the_rates_that_it_had() -> None:
    """100 of 400 images in the 4 seconds of one shard, the end 12 seconds after that; read in no time, a year later."""
    events = [planned(rows_left=400, time=1000.0), shard(time=1010.0, seconds={"process": 4.0})]
    events += [{"event": "published", "stage": stage, "time": 1022.0} for stage in ("s1", "s2")]
    assert "  25/s  2 workers" in show(*events[:2])
    assert "extract demo:x: 2 stages published in 16s  400 images  6.25/s" in show(*events)
