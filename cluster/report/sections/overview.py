"""The runs that a report is about: how they ended, what they published, where the time went, what failed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

from cluster.amounts import count, duration, first_line, short, some
from cluster.report.data import ReportData, RunFacts
from cluster.report.html import Html, join, tag
from cluster.report.section import Section
from cluster.report.tables import Cell, Column, data_table
from cluster.runs import StageState, UnplannedCell
from schemas.tables import get_table

GOOD = {"DONE", "published", "cached"}
BAD = {"FAILED", "STOPPED", "failed"}
MOST_TRACEBACKS = 20


def render(data: ReportData) -> Html:
    """Every run in turn, then the tables of all of them."""
    if not data.runs:
        return tag("p", "No run has finished in this store yet.", class_="none")
    return join([*(_run(facts, data, len(data.runs) > 1) for facts in data.runs), _tables(data)])


SECTION = Section("runs", "Runs", (), render)


def _run(facts: RunFacts, data: ReportData, named: bool) -> Html:
    state = facts.state
    return join(
        [
            tag("h3", state.run) if named else None,
            _verdict(facts),
            _figures(facts, data),
            _stages(facts, data),
            _failures(facts),
            _timings(facts),
        ]
    )


def state_badge(word: str) -> Html:
    """A state in its colour."""
    return tag("span", word, class_=f"state {'good' if word in GOOD else 'bad' if word in BAD else 'warm'}")


# ---------------------------------------------------------------- how it ended


def _verdict(facts: RunFacts) -> Html | None:
    """A box for every run that did not simply end well."""
    state = facts.state
    unfinished = len(state.parts) - len(state.published)
    words = {
        "FAILED": f"This run failed for {some(unfinished, 'stage')} of {count(len(state.parts))}.",
        "STOPPED": "This run was stopped before its end.",
        "INTERRUPTED": "This run was interrupted.",
        "RUNNING": "This run had not ended when the page was written"
        + (f"; its driver last said that it lives at {_clock(facts.last_sign)}." if facts.last_sign else "."),
    }.get(state.status)
    notes = [words, state.message or None, "A small trial: not all images were read." if state.limited else None]
    if state.status == "DONE" and not state.limited:
        return None
    lead = tag("strong", f"{state.status}. ") if words else None
    return tag("div", lead, " ".join(filter(None, notes)), class_="alarm", role="alert" if words else None)


def _figures(facts: RunFacts, data: ReportData) -> Html:
    state = facts.state
    published = [data.stages[s.digest] for s in state.stages if s.digest in data.stages]
    stored = sum(part.bytes for p in published for parts in p.tables.values() for part in parts)
    cached = sum(s.state == "cached" for s in state.stages)
    began = state.began or (facts.events[0]["time"] if facts.events else None)
    figures = {
        "state": state_badge(state.status),
        "began": _clock(began) if began else None,
        "took": duration(facts.seconds),
        "stages": f"{count(len(published))} of {count(len(state.parts))}" + (f", {count(cached)} cached" if cached else ""),
        "rows": count(sum(p.rows(table) for p in published for table in p.tables)),
        "stored": short(stored, "B"),
    }  # fmt: skip
    return tag("dl", (tag("div", tag("dt", k), tag("dd", v)) for k, v in figures.items() if v), class_="facts")


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


# ---------------------------------------------------------------- stages


def _stages(facts: RunFacts, data: ReportData) -> Html:
    order = {"failed": 0, "to do": 1}
    parts = sorted(facts.state.parts, key=lambda part: order.get(part.state, 2))
    columns = [Column("cell"), Column("output"), Column("state"), Column("shards", True), Column("rows", True),
               Column("stored", True), Column("first error")]  # fmt: skip
    rest = f"miclip status {facts.state.run} lists all stages."
    return join([tag("h3", "Stages"), data_table("Stages", columns, [_stage(part, data) for part in parts], rest)])


def _stage(stage: StageState | UnplannedCell, data: ReportData) -> list[object]:
    if isinstance(stage, UnplannedCell):
        none = Cell("–", 0)
        return [stage.cell, "", state_badge(stage.state), none, none, none, first_line(stage.error)]
    published = data.stages.get(stage.digest)
    rows = sum(published.rows(table) for table in published.tables) if published else 0
    size = sum(part.bytes for parts in published.tables.values() for part in parts) if published else 0
    return [
        stage.cell,
        tag("span", f"{stage.output} {stage.detail}".rstrip(), class_="mono", title=stage.digest),
        state_badge(stage.state),
        Cell(f"{count(stage.shards_done)}/{count(stage.shards)}", stage.shards),
        Cell(count(rows) if published else "–", rows),
        Cell(short(size, "B") if published else "–", size),
        first_line(stage.error),
    ]


def _failures(facts: RunFacts) -> Html | None:
    seen: dict[str, tuple[StageState, str]] = {}
    for stage in facts.state.stages:
        for failure in facts.failures.get(stage.digest, ()):
            what = f"{stage.cell}, shard {failure.shard}: {failure.error} after {some(failure.attempts, 'attempt')}"
            seen.setdefault(failure.traceback, (stage, what))
    if not seen:
        return None
    shown = [
        tag("details", tag("summary", what), tag("pre", traceback))
        for traceback, (_, what) in list(seen.items())[:MOST_TRACEBACKS]
    ]
    left = len(seen) - len(shown)
    more = tag("p", f"{left} more: miclip logs {facts.state.run} --failed", class_="note") if left else None
    return join([tag("h3", "Failures"), shown, more])


# ---------------------------------------------------------------- where the time went


def _timings(facts: RunFacts) -> Html | None:
    """Seconds of workers by phase: what the shards that ended in this run took, cached stages having taken none."""
    spent: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in facts.events:
        if event["event"] not in ("shard_done", "shard_failed"):
            continue
        row = spent[event["title"], event["round_name"]]
        row["shards"] += event["event"] == "shard_done"
        row["failed"] += event["event"] == "shard_failed"
        row["items"] += event.get("items", 0)
        for phase, seconds in event.get("seconds", {}).items():
            row[f"in {phase}"] += seconds
    if not spent:
        return None
    phases = _phases(spent.values())
    columns = [Column("work"), Column("round"), Column("shards", True), Column("failed tries", True), Column("items", True),
               Column("items/s", True, "items per second of worker time"),
               *(Column(phase.removeprefix("in "), True, "seconds of workers") for phase in phases)]  # fmt: skip
    rows = []
    for (title, name), row in spent.items():
        total = sum(row[phase] for phase in phases)
        rate = row["items"] / total if total else 0.0
        rows.append(
            [title, name, row_count(row["shards"]), row_count(row["failed"]), row_count(row["items"]),
             Cell(f"{rate:,.1f}", rate), *(Cell(duration(row[p]), row[p]) for p in phases)]
        )  # fmt: skip
    return join([tag("h3", "Where workers spent their time"), data_table("Time of workers", columns, rows)])


def row_count(number: float) -> Cell:
    """A whole number with separators that sorts as one."""
    return Cell(count(number), number)


def _phases(rows: Iterable[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith("in ")))


def _tables(data: ReportData) -> Html | None:
    if not data.rows:
        return tag("p", "Nothing is published.", class_="none")
    rows = [[tag("code", name), row_count(n), get_table(name).row] for name, n in data.rows.items()]
    columns = [Column("table"), Column("rows", True), Column("one row is")]
    return join([tag("h3", "Published tables"), data_table("Published tables", columns, rows)])
