"""Tells a webhook how a night went: one JSON message, tried a few times, whose failure never fails the run."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster.amounts import duration, some
from cluster.changes import Changes
from cluster.runs import RunState
from cluster.secrets import redact
from schemas.base import Frozen

ATTEMPTS = 4
TIMEOUT = 10.0
HASTY = 2.0
"""Seconds for the only try of a process that was told to end."""
MOST = 10
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class Notice(Frozen):
    """What is told; `text` is all of it in a few lines, as chat services show it."""

    text: str
    pipeline: str
    run: str | None
    status: str
    exit_code: int
    store: str
    changes: Mapping[str, tuple[str, ...]]
    """What changed -> subjects: models, pairs, image sets."""
    failures: tuple[str, ...]
    held: int = 0
    """How many starts in a row have found one and the same night at work; 0 of a night that began."""

    @property
    def is_bad(self) -> bool:
        """Whether somebody should look: work failed, or a night is at work for longer than it is from one start to the next."""
        return self.exit_code != 0 or self.held > 1

    @property
    def is_news(self) -> bool:
        """Whether it says more than that all is as it was."""
        return bool(self.changes) or self.is_bad


def make_notice(
    store: str,
    pipeline: str,
    state: RunState | None,
    changes: Changes | None,
    exit_code: int,
    failures: tuple[str, ...] = (),
    status: str = "NOT STARTED",
    run: str | None = None,
) -> Notice:
    """A notice without credentials; without the `state` of the run, `status` and `run` say what became of the night."""
    found: dict[str, list[str]] = {}
    for change in changes.subjects if changes else ():
        found.setdefault(change.change, []).append(change.subject)
    status, run = (state.status, state.run) if state else (status, run)
    head = f"{run or pipeline}: {status}" + (f" in {duration(state.seconds)}" if state else "")
    lines = [head, *(f"{word}: {_few(subjects)}" for word, subjects in found.items())]
    lines += [f"- {failure}" for failure in failures[:MOST]]
    if len(failures) > MOST:
        lines.append(f"and {some(len(failures) - MOST, 'failure')} more")
    return Notice(
        text=redact("\n".join(lines)),
        pipeline=pipeline,
        run=run,
        status=status,
        exit_code=exit_code,
        store=redact(store),
        changes={word: tuple(subjects) for word, subjects in found.items()},
        failures=tuple(redact(failure) for failure in failures[:MOST]),
    )


def make_held_notice(store: str, pipeline: str, lines: tuple[str, ...], times: int) -> Notice:
    """A notice of a start that found another night of the pipeline at work, as `times` starts in a row have."""
    return Notice(
        text=redact("\n".join([f"{pipeline}: HELD", *lines])),
        pipeline=pipeline,
        run=None,
        status="HELD",
        exit_code=0,
        store=redact(store),
        changes={},
        failures=(),
        held=times,
    )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def post(url: str, notice: Notice, sleep: Callable[[float], object] = time.sleep, hasty: bool = False) -> str | None:
    """Send it; None if it arrived, else what went wrong, without the url, which may be a secret.

    hasty: try once and for two seconds only, because this process was told to end.
    """
    url = url.strip()  # a file that holds a secret ends with a new line
    host = _host(url)
    if host is None:
        return "the webhook must be an http or https url (--webhook or MICLIP_WEBHOOK)"
    body = json.dumps(notice.model_dump(mode="json"), ensure_ascii=False).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    said: str | None = ""
    for attempt in range(1 if hasty else ATTEMPTS):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        said, again = _try_hastily(request) if hasty else _try(request, TIMEOUT)
        if said is None:
            return None
        if not again:
            break
    return f"the webhook at {host} was not told: {said}"


def _host(url: str) -> str | None:
    """Whose url it is; None if it is no http or https url."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError: no number
    except ValueError:
        return None
    return parts.hostname if parts.scheme in ("http", "https") else None


def _try(request: urllib.request.Request, timeout: float) -> tuple[str | None, bool]:
    """(None or what went wrong, whether another try may do better)."""
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answered {error.code}", error.code in _BUSY
    except (
        OSError,
        http.client.HTTPException,
    ) as error:  # of names, connections, silence, and answers that are no HTTP
        return _reason(error), not isinstance(error, http.client.InvalidURL)
    except ValueError as error:
        return _reason(error), False


def _try_hastily(request: urllib.request.Request) -> tuple[str | None, bool]:
    """In a thread that is left behind: a timeout is one of each step, and looking up a name has none."""
    answers: list[tuple[str | None, bool]] = []
    thread = threading.Thread(target=lambda: answers.append(_try(request, HASTY)), daemon=True)
    thread.start()
    thread.join(HASTY)
    return answers[0] if answers else ("TimeoutError", False)


def _reason(error: Exception) -> str:
    """The class alone: what such an error says may hold the url."""
    reason: Any = getattr(error, "reason", error)
    return type(reason if isinstance(reason, Exception) else error).__name__
