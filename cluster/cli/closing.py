"""The last words of a run: what was published where, what failed and how to see more, what to type next."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from rich.text import Text

from cluster.amounts import count, duration, short, some
from cluster.cli.common import errors, make_table, screen
from cluster.ledger import load_published
from cluster.pipeline import WAITS, RunReport
from cluster.planned import READS
from cluster.stores import Store, prefetch
from schemas.plans import Published

_PLAIN = {"inspect", "index_images", "extract", "selftest"}
"""Kinds of jobs whose tables say as much as a page; all others have charts, lists and pictures."""


def tables_of(report: RunReport, store: Store) -> dict[str, dict[str, Any]]:
    """Table -> rows, bytes, stages and folder, of everything the run stands for."""
    digests = dict.fromkeys(stage.digest for stage in report.state.published)
    tables: dict[str, dict[str, Any]] = {}
    for _, published in prefetch(lambda digest: load_published(store, digest), digests):
        _add(tables, published, store)
    return tables


def _add(tables: dict[str, dict[str, Any]], published: Published | None, store: Store) -> None:
    for name, parts in published.tables.items() if published else ():
        table = tables.setdefault(name, {"rows": 0, "bytes": 0, "stages": 0, "folder": store.url(f"tables/{name}")})
        table["rows"] += sum(part.rows for part in parts)
        table["bytes"] += sum(part.bytes for part in parts)
        table["stages"] += 1


def report_json(report: RunReport, store: Store) -> dict[str, Any]:
    """The report for machines."""
    return {
        **report.state.model_dump(mode="json"),
        "exit_code": report.exit_code,
        "store": store.uri,
        "tables": tables_of(report, store),
        "failures": report.failures,
    }


def show_report(report: RunReport, store: Store, log_file: Path | None, advise: bool = True) -> None:
    """The report for people: tables on stdout, failures on stderr.

    log_file: what workers printed; None if they ran elsewhere. advise: say what to type next.
    """
    state = report.state
    console = screen()
    tables = tables_of(report, store)
    scope = f" --run {state.run}" if state.limited else ""

    def query(statement: str) -> str:
        return f'miclip sql --store {store.uri}{scope} "{statement}"'

    if tables:
        table = make_table("table", "rows", "size", "stages", "folder", right=("rows", "size", "stages"))
        for name, row in tables.items():
            if row["rows"] or name != "bad_inputs":
                table.add_row(name, count(row["rows"]), short(row["bytes"], "B"), count(row["stages"]), row["folder"])
        console.print(table)
    if tables.get("bad_inputs", {}).get("rows"):
        console.print(
            Text(f"some images were set aside: {query('SELECT DISTINCT uri, reason FROM bad_inputs')}", "yellow"),
            soft_wrap=True,
        )
    done = report.exit_code == 0
    published = state.published
    cached = sum(stage.state == "cached" for stage in published)
    words = "done" if done else "failed"
    before = f", {'all' if cached == len(published) else count(cached)} of them before" if cached else ""
    trial = "  (trial: read it with --run)" if state.limited else ""
    line = Text.assemble((f"{state.run} {words}", "bold green" if done else "bold red"))
    console.print(
        line.append(f"  {some(len(published), 'stage')} published{before}, {duration(state.seconds)}{trial}"),
        soft_wrap=True,
    )
    show_failures(report, store, log_file)
    if done and advise:
        last = [name for name in tables if name not in ("models", "images", "bad_inputs")] or ["stages"]
        console.print(Text(f"next: {query(f'SELECT * FROM {last[-1]} LIMIT 5')}", "dim"), soft_wrap=True)
        if not {stage.kind for stage in state.stages} <= _PLAIN:
            one = f" {state.run}" if state.limited else ""
            console.print(Text(f"or look at it: miclip report{one} --store {store.uri}", "dim"), soft_wrap=True)


def show_failures(report: RunReport, store: Store, log_file: Path | None, most: int = 8) -> None:
    """Each failure in a line, and the commands that show more."""
    if not report.failures:
        return
    console = errors()
    # what waits for an input that failed says nothing new
    causes = [failure for failure in report.failures if not _waits_for(failure)]
    waiting = Counter(waited for failure in report.failures if causes and (waited := _waits_for(failure)))
    causes = causes or report.failures
    # nor do the stages that failed for the same reason, such as all that need a model that cannot be opened
    alike = Counter(map(_reason, causes))
    first = {_reason(failure): failure for failure in reversed(causes)}
    for reason, number in list(alike.items())[:most]:
        more = f"  (and {some(number - 1, 'stage')} more alike)" if number > 1 else ""
        failure = first[reason].strip().replace("\n", " ")
        console.print(Text.assemble(("  ✗ ", "red"), failure, (more, "dim")), soft_wrap=True)
    if len(alike) > most:
        console.print(f"  and {len(alike) - most} more")
    for cause, number in list(waiting.items())[:most]:
        wait = "waits" if number == 1 else "wait"
        console.print(f"  {some(number, 'stage')} {wait}: {cause}", soft_wrap=True)
    if waiting:
        rest = sum(list(waiting.values())[most:])
        more = f"{some(rest, 'stage')} more wait for others; " if rest else ""
        console.print(
            f"  {more}mend what failed and retry, or take it out of the spec: what can do without it is made then"
        )
    run = report.state.run
    console.print(Text(f"tracebacks: miclip logs {run} --failed --store {store.uri}", "dim"), soft_wrap=True)
    if log_file is not None:
        console.print(Text(f"what workers printed: {log_file}", "dim"), soft_wrap=True)
    console.print(Text(f"go on: miclip retry {run} --store {store.uri}", "dim"), soft_wrap=True)


def _waits_for(failure: str) -> str:
    """What a stage waits for that fails only because one before it did; nothing of others."""
    return next((f"{word}{failure.partition(word)[2]}" for word in (WAITS, READS) if f": {word}" in failure), "")


def _reason(failure: str) -> str:
    """Why it failed, without the stage and shard in front."""
    return re.sub(r"^shard \d+: ", "", failure.partition(": ")[2])
