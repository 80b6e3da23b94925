"""Signals to a command: heard at once, wherever the main thread is."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import threading

from cluster.cli.progress import RunProgress
from cluster.cli.session import _Signals
from cluster.executor import StopFlag
from schemas.errors import Interrupted


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
    assert isinstance(stop.error, Interrupted) and "SIGTERM" in str(stop.error)


def test_handlers_are_put_back_and_nothing_of_it_stays() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with _Signals(StopFlag(), RunProgress(io.StringIO())):
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
