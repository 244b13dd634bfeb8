"""SIGTERM and SIGINT: a process leaves soon, with its work saved.

The first signal asks. Where nothing is lost, the process leaves there and then;
in training it leaves at the end of the step, with a checkpoint. A second signal
ends it at once, and so does the end of a grace: schedulers kill after ten
seconds, and a thread keeps the time, for no signal reaches Python while an
operation of TensorFlow runs.
"""

import contextlib
import os
import signal
import socket
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 8.0  # Seconds.


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop.

    Args:
        signum: its number.

    Attributes:
        code: the exit code that shells expect, 128 + signum.
    """

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


class Stop:
    """Knows whether a signal has asked the process to stop.

    Attributes:
        asked: the signal's number, or None.
    """

    def __init__(self):
        self.asked = None
        self._deferring = False

    @contextlib.contextmanager
    def deferred(self):
        """Within, a signal waits for `check`; afterwards, none does."""
        self.hold()
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def hold(self):
        """Lets signals wait for `check` from now on, until `release`.

        A worker of several holds them: one that left by itself would leave the
        others waiting for it.
        """
        self._deferring = True

    def release(self):
        """Ends `hold`, and raises `Stopped` if a signal has waited."""
        self._deferring = False
        self.check()

    def check(self):
        """Raises `Stopped` if a signal has asked for it."""
        if self.asked is not None:
            raise Stopped(self.asked)

    def ask(self, signum, frame=None):
        """The signals' handler.

        Args:
            signum: the signal's number.
            frame: what Python gives to handlers.
        """
        self.asked = signum
        if not self._deferring:
            self.check()


@contextlib.contextmanager
def handled():
    """Within, signals ask a `Stop`. A signal that is ignored stays so.

    Yields:
        The `Stop`. Outside of the main thread, to which signals belong, it is
        never asked.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    # Python's own handler in C writes the signal's number there, at once.
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
def defaulted():
    """Within, a signal that is not ignored ends the process, by the system.

    It is for a call that lets no Python run, and has nothing to lose. Python's
    handlers are back afterwards, even where a library has set its own: as
    TensorFlow for SIGTERM, when workers meet, which Python does not see.
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


def _watch(reader):
    """Ends the process at the second signal, or when the grace is over."""
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
    os.write(2, b"tfsam: stopped at once; the same command goes on\n")
    os._exit(code)
