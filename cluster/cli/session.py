"""One session of work: the terminal kept for the person, an executor, listeners of events, and signals that stop cleanly."""

from __future__ import annotations

import os
import signal
import sys
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.cli.options import ExecutorName
from cluster.cli.progress import RunProgress
from cluster.events import EventLog, StoreEvents
from cluster.executor import DeferredExecutor, Executor, SerialExecutor, StopFlag
from cluster.on_ray.terminal import own_the_terminal
from cluster.stores import Store


class Session:
    """Opens an executor and closes it whatever happens; what libraries print goes to `log_file`."""

    def __init__(
        self,
        store: Store,
        executor: ExecutorName,
        *,
        run: str | None = None,
        address: str | None = None,
        cpus: int | None = None,
        gpus: int = 0,
        quiet: bool = False,
    ) -> None:
        self.store = store
        self.stop = StopFlag()
        self.log_file = _log_folder() / f"{run or f'session-{os.getpid()}'}.log"
        self._choice = (executor, address, cpus, gpus)
        self._run = run
        self._quiet = quiet
        self._stack = ExitStack()
        self.executor: Executor
        self.log: EventLog
        self.progress: RunProgress

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            # native code and children write to the descriptors, so a redirected sys.stdout is not enough
            terminal = stack.enter_context(own_the_terminal(self.log_file))
            self.progress = stack.enter_context(RunProgress(terminal.err, self._quiet))
            stack.enter_context(_Signals(self.stop, self.progress))
            events = StoreEvents(self.store, self._run) if self._run else None
            if events:
                events.start()
                stack.callback(_close, events)
            self.executor = self._open()
            stack.callback(self.executor.close)
            self.log = EventLog(*([events] if events else []), self.progress)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _open(self) -> Executor:
        name, address, cpus, gpus = self._choice
        if name == ExecutorName.serial:
            return SerialExecutor(self.store.uri)
        return DeferredExecutor(lambda: self._open_ray(address, cpus, gpus))

    def _open_ray(self, address: str | None, cpus: int | None, gpus: int) -> Executor:
        from cluster.on_ray.executor import RayExecutor

        self.progress.say(f"joining Ray at {address}" if address else "starting Ray here", "dim")
        executor = RayExecutor(self.store.uri, address, cpus, gpus)
        if self._run:
            from cluster.on_ray.metrics import RayMetrics

            self.log.add(RayMetrics(self._run.rpartition("-")[0]))
        return executor


def _close(events: StoreEvents) -> None:
    try:
        events.close()
    except Exception as error:  # the store may be away, and then that is what is reported
        sys.stderr.write(f"events not saved: {error}\n")


def _log_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "miclip" / "logs"


class _Signals:
    """Ctrl-C or SIGTERM once: no new shards, clean end. Twice: leave now; finished shards are kept all the same."""

    def __init__(self, stop: StopFlag, progress: RunProgress) -> None:
        self._stop, self._progress = stop, progress
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self._stop.reason:
            os._exit(130)
        self._stop.stop("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
        self._progress.say("stopping; finished shards are kept, once more leaves at once", "yellow")
