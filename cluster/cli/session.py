"""One session of work: the terminal kept for the person, an executor, listeners of events, and signals that stop cleanly."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
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
from cluster.watching import CancelWatch
from schemas.errors import Interrupted, MiclipError, Terminated


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
            if self._run:
                stack.enter_context(CancelWatch(self.store, self._run, self.stop))
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
            from cluster.runs import split_run

            self.log.add(RayMetrics(split_run(self._run)[0]))
        return executor


def _close(events: StoreEvents) -> None:
    try:
        events.close()
    except Exception as error:  # the store may be away, and then that is what is reported
        sys.stderr.write(f"events not saved: {error}\n")


def _log_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "miclip" / "logs"


_ERRORS: dict[int, tuple[str, type[Interrupted]]] = {
    signal.SIGINT: ("Ctrl-C", Interrupted),
    signal.SIGTERM: ("SIGTERM", Terminated),
}


_STOPPING = "stopping; finished shards are kept, once more leaves at once"


class _Signals:
    """Ctrl-C or SIGTERM once: no new shards, clean end. Twice: leave now; finished shards are kept all the same.

    A thread of its own hears of a signal through the wakeup descriptor, at once even while the main thread is deep in a
    library, and writes the state: a machine that is taken back gives seconds.
    """

    def __init__(self, stop: StopFlag, progress: RunProgress) -> None:
        self._stop, self._progress = stop, progress
        self._before: dict[int, Any] = {}
        self._heard = 0

    def __enter__(self) -> _Signals:
        for number in _ERRORS:
            self._before[number] = signal.signal(number, self._handle)
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)  # as `set_wakeup_fd` wants it
        self._wakeup_before = signal.set_wakeup_fd(self._mouth.fileno())
        self._listener = threading.Thread(target=self._listen, name="miclip-signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._mouth.close()  # which ends the listener
        self._listener.join()
        self._ear.close()

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """In the main thread, between two steps of it; nothing here may wait for a lock that it holds."""
        self._heard += 1
        if self._heard > 1:
            os._exit(128 + number)

    def _listen(self) -> None:
        while heard := self._ear.recv(64):
            for number in heard:
                if number in _ERRORS:
                    # by a thread of its own: a terminal that nobody reads would hold up what has to be written in seconds
                    threading.Thread(target=self._progress.say, args=(_STOPPING, "yellow"), daemon=True).start()
                    try:
                        self._stop.stop(*_ERRORS[number])
                    except MiclipError as error:  # the store is away; the run meets it too and says what is wrong
                        self._progress.say(f"state not saved: {error}", "red")
