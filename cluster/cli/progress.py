"""Shows a run as it goes, from its events: a bar per piece of work on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from cluster.amounts import count, duration, first_line, some
from cluster.events import Event

LINE_SECONDS = 5.0
"""Without a terminal each piece of work says where it is at most this often."""

MAX_TITLE = 44
"""Characters of a title beside its bar."""

MAX_NOTES = 3
"""Different notes of workers that are shown for each piece of work; all are in `miclip logs`."""

MAX_LINE = 160
"""Failures are shown in full at the end."""


@dataclass
class WorkView:
    """What is known of one piece of work: sibling stages that share their passes."""

    title: str
    unit: str
    total: int
    stages: set[str]
    workers: int
    started: float
    items: int = 0
    before: int = 0
    """Items that an earlier run had done."""
    failures: int = 0
    retried: int = 0
    published: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    reasons: set[str] = field(default_factory=set)
    """Why shards failed, as far as it was said."""
    said: float = 0.0
    ended: bool = False

    def rate(self, now: float) -> float:
        """Items per second from the moment its first shard began until `now`."""
        return self.items / max(1e-3, now - self.started)

    def status(self, now: float) -> str:
        """Items, rate and what went wrong, in a few words."""
        words = [some(self.workers, "worker")] * bool(self.workers)
        if self.unit:
            words = [
                f"{count(self.before + self.items)}/{count(self.total)} {self.unit}",
                _per_second(self.rate(now)),
                *words,
            ]
        troubles = [f"{self.failures} failed"] * bool(self.failures) + [f"{self.retried} retried"] * bool(self.retried)
        return "  ".join([*words, *troubles])

    def result(self, now: float) -> str:
        """Items and rate of the whole."""
        return f"{count(self.total)} {self.unit}  {_per_second(self.rate(now))}" if self.unit else ""


_TEXTS = "texts"
"""The round of those stages of extract that embed texts and look at no image, and what its rows are."""
_SAID = {name: name for name in (_TEXTS, "iou", "clip", "synthetic", "naming", "random")}
_SAID |= {"try": "alphas", "label": "summary", "summarise": "summary"}
"""First round -> what a title says beside kind and subject, where stages of one kind do different things."""
_WAITING = "waiting for a worker"
_UNITS = {
    "extract": "images",
    "index_images": "files",
    "inspect": "",
    "probe": "",
    "align": "",
    "sae_features": "images",
    "describe": "images",
    "intervene": "images",
    "trace_errors": "images",
    "attention_maps": "images",
    "mine_rosetta": "",
    "invert": "images",
    "explain": "features",
    "score_explanations": "features",
    "map_explanations": "",
    "train_sae": "",
    "import_sae": "",
    "measure_sae": "",
    "geometry": "",
    "evaluate": "",
}
"""What the rows of the first round are; where one row is all there is, stages are counted."""


class EventClock:
    """Seconds since the epoch as the driver has them: those of its last event, and what has passed here since.

    Events of a run that is watched from elsewhere, or that is over, come at another pace than they happened.
    """

    def __init__(self) -> None:
        self._time = time.time()
        self._seen = time.monotonic()

    def set(self, event: Event) -> None:
        """Take the time of an event."""
        self._time, self._seen = float(event.get("time", self())), time.monotonic()

    def __call__(self) -> float:
        """Now."""
        return self._time + time.monotonic() - self._seen


class RunProgress:
    """A listener for EventLog; use it as a context manager around the run."""

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self._now = EventClock()
        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=not stream.isatty())
        self._quiet = quiet
        self._bars = self._make_bars() if stream.isatty() and not quiet else None
        self._works: dict[str, WorkView] = {}
        self._tasks: dict[str, TaskID] = {}

    def _make_bars(self) -> Progress:
        return Progress(
            SpinnerColumn(finished_text=Text("✓", "green")),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}", markup=False, style="dim"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            refresh_per_second=8,
            get_time=self._now,
        )

    def __enter__(self) -> RunProgress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            for key, work in self._works.items():
                if not work.ended:
                    self._bars.stop_task(self._tasks[key])
            self._bars.stop()

    def say(self, text: str, style: str = "") -> None:
        """One line, above the bars if there are any."""
        if not self._quiet:
            self._console.print(Text(text, style))

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self._now.set(event)
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _on_planned(self, event: Event) -> None:
        key, kind = event["work"], event["kind"]
        view = WorkView(
            _title(event),
            _TEXTS if event.get("first_round") == _TEXTS else _UNITS.get(kind, "rows"),
            event["rows"],
            set(event["stages"]),
            event["workers"],
            self._now(),
            before=event["rows"] - event["rows_left"],
            said=self._now(),
        )
        self._works[key] = view
        if self._bars:
            self._tasks[key] = self._bars.add_task(
                _cut(view.title), total=max(1, view.total), completed=view.before, status=_WAITING
            )
        else:
            again = f", {count(view.before)} done before" if view.before else ""
            items = f"{count(view.total)} {view.unit}, " if view.unit else ""
            self.say(f"{view.title}: {items}{some(len(view.stages), 'stage')}{again}")

    def _on_shard_done(self, event: Event) -> None:
        view = self._works[event["work"]]
        if event["round"] == 0:
            if view.items == 0:  # it may have waited for others; the clock of its rate starts with its first shard
                view.started = max(view.started, self._now() - sum(event["seconds"].values()))
            view.items = min(view.items + event["items"], view.total)
        for note in event.get("notes", ()):
            if note not in view.notes and len(view.notes) < MAX_NOTES:
                view.notes.add(note)
                self.say(f"{view.title}: {note}", "dim")
        self._update(event["work"], view)

    def _on_shard_failed(self, event: Event) -> None:
        view = self._works[event["work"]]
        view.failures += bool(event.get("final"))
        view.retried += not event.get("final")
        if event.get("final"):
            why = _why(event)
            if why not in view.reasons:  # stages and shards that fail alike are counted, and named when the run ends
                view.reasons.add(why)
                self.say(f"{view.title}: shard {event['shard']} failed: {why}", "red")
        self._update(event["work"], view)

    _on_open_failed = _on_shard_failed

    def _on_shard_lost(self, event: Event) -> None:
        view = self._works[event["work"]]
        again = "set aside" if event.get("final") else "trying again"
        view.failures += bool(event.get("final"))
        view.retried += not event.get("final")
        self.say(f"{view.title}: shard {event['shard']} lost its worker, {again}: {_why(event)}", "yellow")
        self._update(event["work"], view)

    def _on_shard_fatal(self, event: Event) -> None:
        self.say(_why(event), "red")

    def _on_damaged(self, event: Event) -> None:
        self.say(event["message"], "red")

    def _on_waiting(self, event: Event) -> None:
        self.say(event["message"], "yellow")

    def _on_error(self, event: Event) -> None:
        self.say(f"{event['subject']}: {event['message']}", "red")

    def _on_published(self, event: Event) -> None:
        for key, view in self._works.items():
            if event["stage"] in view.stages:
                view.published.add(event["stage"])
                if view.published == view.stages:
                    view.ended = True
                self._update(key, view)

    def _update(self, key: str, view: WorkView) -> None:
        now = self._now()
        if self._bars:
            task = self._tasks[key]
            status = view.result(now) if view.ended else view.status(now)
            done = view.before + view.items
            # a last step is left until the stages are published: merging follows the pass over the images
            self._bars.update(
                task, completed=max(1, view.total) if view.ended else min(done, max(0, view.total - 1)), status=status
            )
            return
        if view.ended:
            took = duration(now - view.started)
            self.say(
                f"{view.title}: {some(len(view.stages), 'stage')} published in {took}  {view.result(now)}".rstrip()
            )
        elif now - view.said > LINE_SECONDS and (status := view.status(now)):
            view.said = now
            left = view.total - view.before - view.items
            eta = f"  ETA {duration(left / view.rate(now))}" if view.items and left else ""
            self.say(f"{view.title}: {status}{eta}")


def _per_second(rate: float) -> str:
    """1234.5 -> 1,234/s; 0.0612 -> 0.0612/s."""
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def _cut(title: str) -> str:
    """A title with room left for the bar: long paths lose their middle."""
    return title if len(title) <= MAX_TITLE else f"{title[:12]}…{title[-(MAX_TITLE - 13) :]}"


def _title(event: Event) -> str:
    title = str(event["title"]).replace("index_images", "index", 1)
    return f"{title} {_SAID.get(str(event.get('first_round')), '')}".rstrip()


def _why(event: Event) -> str:
    text = f"{event.get('error', '')}: {first_line(str(event.get('message', '')))}".strip(": ")
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"
