"""What SIGTERM does: work that can be continued is saved, and the process exits with 143."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 20.0
"""How long a training goes on to the end of its epoch; schedulers kill after 30 seconds or more."""


TERMINATED = 128 + signal.SIGTERM
"""The exit status of a process that was asked to end, as shells have it: 143."""


class Terminated(SystemExit):
    """The process was asked to end; its exit status is a shell's for that, 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside, so that nothing half-written is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = _handle(stop)
    try:
        yield
    finally:
        if before is not None:
            _handle(before)


class Termination:
    """SIGTERM during a training, which ends where it can be continued; a second one ends it."""

    def __init__(self) -> None:
        self.asked = False
        self._deadline = 0.0

    def take_over(self) -> None:
        """Note the signal from now on, instead of what was done about it."""
        _handle(self._note)

    def stop_if_late(self) -> None:
        """Raise `Terminated` where the grace is over."""
        if self.asked and time.monotonic() > self._deadline:
            raise Terminated

    def stop_if_asked(self) -> None:
        """Raise `Terminated` where the signal came."""
        if self.asked:
            raise Terminated

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop_if_asked()
        self.asked, self._deadline = True, time.monotonic() + GRACE_SECONDS


def _handle(handler: Callable[[int, FrameType | None], None] | int) -> "signal._HANDLER":
    """Set what SIGTERM does, and return what it did; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None
