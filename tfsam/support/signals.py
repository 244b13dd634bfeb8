"""Signals that stop a process: SIGTERM and SIGINT.

After the first signal, a process that has nothing to lose stops at once, and
training stops at the end of the step, with a checkpoint. A second signal stops
the process immediately, and so does the end of a grace period, because
schedulers kill a process after about ten seconds. A thread measures the time:
Python handles no signal while an operation of TensorFlow runs.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 8.0  # Seconds.


class Stopped(KeyboardInterrupt):
    """A signal requested the process to stop.

    Args:
        signum: Number of the signal.

    Attributes:
        code: The exit code that shells expect, 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


class Stop:
    """A request to stop the process, made by a signal.

    Attributes:
        asked: Number of the signal, or None before there is one.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._deferring = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers signals until `check` or the end of the block."""
        self.hold()
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def hold(self) -> None:
        """Defers signals until `check` or `release`.

        Workers of a cluster defer them, because the others would wait for a
        worker that stopped by itself.
        """
        self._deferring = True

    def release(self) -> None:
        """Ends `hold`, and raises `Stopped` if a signal was deferred."""
        self._deferring = False
        self.check()

    def check(self) -> None:
        """Raises `Stopped` if there was a signal."""
        if self.asked is not None:
            raise Stopped(self.asked)

    def ask(self, signum: int, frame: FrameType | None = None) -> None:
        """Handles a signal.

        Args:
            signum: Number of the signal.
            frame: The frame that Python passes to handlers; it is not used.
        """
        self.asked = signum
        if not self._deferring:
            self.check()


@contextlib.contextmanager
def handled() -> Iterator[Stop]:
    """Handles the signals with a `Stop`, except for ignored signals.

    Yields:
        The `Stop`. Outside the main thread, which handles all signals, it never
        receives one.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    # Python's handler in C immediately writes the signal's number there.
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {
        signum: signal.signal(signum, stop.ask)
        for signum in SIGNALS
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()
        watcher.join()
        reader.close()


@contextlib.contextmanager
def defaulted() -> Iterator[None]:
    """Lets the system end the process at a signal that is not ignored.

    It is meant for a call during which Python code cannot run and nothing can
    be lost. Afterwards Python's handlers are restored, even if a library has
    set its own. TensorFlow does so for SIGTERM when workers connect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _watch(reader: socket.socket) -> None:
    """Ends the process at the second signal, or after the grace period."""
    code = 0
    while True:
        try:
            received = reader.recv(1)
        except TimeoutError:
            break
        if not received:
            return
        if received[0] in SIGNALS:
            if code:
                break
            code = 128 + received[0]
            reader.settimeout(GRACE)
    os.write(2, b"tfsam: stopped immediately; run the same command to resume\n")
    os._exit(code)
