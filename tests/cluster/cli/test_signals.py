"""Signals to a command: heard at once, wherever the main thread is."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest
import typer

from cluster.cli.common import clean
from cluster.cli.progress import RunProgress
from cluster.cli.session import _Signals
from cluster.events import Event, EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.pipeline import PipelineRun
from cluster.runs import load_state, new_run
from cluster.stores.base import make_store
from cluster.stores.posix import PosixStore
from schemas.errors import Terminated
from schemas.layout import run_key
from schemas.pipeline_spec import PipelineSpec


def test_a_stop_is_told_while_the_main_thread_is_deep_in_a_library() -> None:
    """Python runs its handlers when the main thread comes back to it, which a library that loads may not for a minute."""
    stop, told = StopFlag(), threading.Event()
    in_time: list[bool] = []
    stop.listen(lambda _: told.set())
    release, busy = os.pipe()

    def send() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        in_time.append(told.wait(30))
        os.write(busy, b"x")

    with _Signals(stop, RunProgress(io.StringIO())):
        signal.siginterrupt(signal.SIGTERM, False)
        sender = threading.Thread(target=send)
        sender.start()
        ctypes.CDLL(None).read(release, ctypes.create_string_buffer(1), ctypes.c_size_t(1))
        sender.join()
    assert in_time == [True]
    assert isinstance(stop.error, Terminated) and "SIGTERM" in str(stop.error)


def test_handlers_are_put_back_and_nothing_of_it_stays() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with _Signals(StopFlag(), RunProgress(io.StringIO())):
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


class SlowStore(PosixStore):
    """A folder that waits before each request once `pause` is set, and remembers the requests of each thread."""

    pause = 0.0

    def __init__(self, root: str) -> None:
        self.asked: dict[str, list[str]] = defaultdict(list)
        super().__init__(root)

    def _path(self, key: str) -> str:  # which every request asks for
        self.asked[threading.current_thread().name].append(key)
        time.sleep(self.pause)
        return super()._path(key)


def test_a_stop_is_in_a_slow_store_within_two_seconds_however_many_stages_are_planned(tmp_path: Path) -> None:
    """One request says it. To look again where each of the stages stands would take some hundred of them."""
    stages = {f"s{n}": {"kind": "selftest", "subject": f"s{n}", "rows": 1} for n in range(120)}
    spec = PipelineSpec.model_validate({"name": "many", "stages": stages}, strict=False)
    store, stop, events = SlowStore(str(tmp_path)), StopFlag(), []
    run = new_run(store, "many", "")

    def interrupt(event: Event) -> None:
        events.append(event)
        if event["event"] == "shard_done" and not store.pause:
            store.pause = 0.3
            store.asked.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard.wait(60)
            store.pause = 0.0001

    heard = threading.Event()
    driver = PipelineRun(spec, run, store, SerialExecutor(store.uri), EventLog(interrupt), stop)
    stop.listen(lambda _: heard.set())
    with _Signals(stop, RunProgress(io.StringIO())), pytest.raises(Terminated):
        driver.run()
    assert store.asked["miclip-signals"] == [run_key(run, "state.json")]
    (stopped,) = [event for event in events if event["event"] == "stopped"]
    assert 0.3 <= stopped["saved_after"] < 2 and stopped["status"] == "INTERRUPTED"
    state = load_state(store, run)
    assert (state.status, state.exit_code, len(state.stages)) == ("INTERRUPTED", 143, 120)


def test_a_stop_before_a_run_has_begun_is_its_first_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is told so while its session opens never says that it is RUNNING."""
    spec = PipelineSpec.model_validate({"name": "early", "stages": {"s": {"kind": "selftest"}}}, strict=False)
    store, stop, said = make_store(str(tmp_path)), StopFlag(), []
    run = new_run(store, "early", "")
    stop.stop("SIGTERM", Terminated)
    replace = store.replace

    def note(key: str, data: bytes) -> None:
        said.append((key, data))
        replace(key, data)

    monkeypatch.setattr(store, "replace", note)
    with pytest.raises(Terminated):
        PipelineRun(spec, run, store, SerialExecutor(store.uri), EventLog(), stop).run()
    states = [data for key, data in said if key == run_key(run, "state.json")]
    assert states and all(b'"INTERRUPTED"' in state for state in states)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_a_verb_that_only_waits_closes_what_is_open_and_says_how_it_ended(
    number: signal.Signals, code: int
) -> None:
    closed = []

    @clean
    def wait() -> None:
        with ExitStack() as stack:
            stack.callback(closed.append, "closed")
            os.kill(os.getpid(), number)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        with pytest.raises(typer.Exit) as ended:
            wait()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert ended.value.exit_code == code and closed == ["closed"]
    assert signal.getsignal(signal.SIGTERM) is before
