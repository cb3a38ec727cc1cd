"""The signals that end the `hubextrap` command, whatever it is doing; nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

GRACE = 1.2
"""Seconds from a signal to the end of the process, at most."""
ENDED_BY: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Signals:
    """Which signal has come; what it raises may have become another error on the way, or been swallowed."""

    received: int | None = None
    waits_for_others = False
    """Whether the command passes signals on and waits for what it runs."""
    told = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background jobs have it
            signal.signal(signal.SIGINT, self._end)

    def bound(self) -> None:
        """From now on the process is gone ``GRACE`` seconds after a signal, wherever its threads are held up.

        A main thread that resolves a name or waits for compiled code runs no handler, so a thread is told of
        signals by a pipe. Whatever is finished is on the disk by then: a kill loses no more.
        """
        import threading

        told, telling = os.pipe()
        os.set_blocking(telling, False)
        signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget_wakeup)  # a child's signals are not ours
        with suppress(RuntimeError):  # where no thread can be started, the command says so when it needs one
            threading.Thread(target=self._watch, args=(told,), name="hubextrap-signals", daemon=True).start()

    def _watch(self, told: int) -> None:
        import time

        while came := os.read(told, 1):
            number = came[0]
            if number not in ENDED_BY or signal.getsignal(number) != self._end:
                continue
            time.sleep(GRACE)
            if not self.waits_for_others:
                self.received = number
                self.end(128 + number)

    def end(self, code: int) -> NoReturn:
        """End the process at once, the signal told of."""
        if not self.told:
            with suppress(OSError):  # nobody listens
                os.write(2, f"{ENDED_BY[self.received or signal.SIGINT]}\n".encode())
        os._exit(code)

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        """End by an exception: what is under way is dropped, what is finished is kept."""
        self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


def _forget_wakeup() -> None:
    with suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)


SIGNALS = Signals()


def wait_for_others() -> None:
    """Say that this command passes signals on to a program that it runs, and waits for it to end."""
    SIGNALS.waits_for_others = True
