"""SIGTERM and SIGINT: remembered for the next step boundary, with a deadline in case none comes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Listens for SIGTERM and SIGINT on a thread of its own.

    The thread is woken by the interpreter's wake-up socket, which works even while the main thread
    is inside one long operation. `deadline_s` after the first signal, or at the second one, it
    calls `close_log` and ends the process with the status that it returns.
    """

    def __init__(self, close_log: Callable[[int], int], deadline_s: float = 8.0) -> None:
        self.received: int | None = None
        """Number of the signal that asked the run to stop, or None."""
        self._close_log = close_log
        self._deadline_s = deadline_s
        self._finished = threading.Event()
        self._wakeup, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer  # keeps the descriptor open
        signal.set_wakeup_fd(writer.fileno())
        self._previous = {number: signal.signal(number, _ignore) for number in SIGNALS}
        threading.Thread(target=self._listen, daemon=True).start()
        os.register_at_fork(
            before=_hold_signals,
            after_in_parent=_let_signals_through,
            after_in_child=self._leave_to_parent,
        )

    def close(self) -> None:
        """The run has ended by itself: no deadline any more, signals as they were before."""
        self._finished.set()
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _leave_to_parent(self) -> None:
        """In a process forked by the run, for instance one that loads data: the run ends it.

        It neither wakes the run by a signal of its own nor gets those for the run's whole group, as
        torchrun sends them.
        """
        if not self._finished.is_set():
            signal.set_wakeup_fd(-1)
            os.setpgrp()
        _let_signals_through()

    def _listen(self) -> None:
        number = self._next_signal(None)
        self.received = number
        self._next_signal(self._deadline_s)
        if not self._finished.is_set():
            os._exit(self._close_log(number))

    def _next_signal(self, timeout_s: float | None) -> int:
        """Wait for one of SIGNALS; 0 when `timeout_s` has passed."""
        self._wakeup.settimeout(timeout_s)
        try:
            while (number := self._wakeup.recv(1)[0]) not in SIGNALS:
                pass
        except TimeoutError:
            return 0
        return number


def _ignore(number: int, frame: object) -> None:
    """Python-level handler: the wake-up socket has told the thread already."""


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_signals_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
