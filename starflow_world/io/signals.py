"""Being told to stop, by Ctrl-C or SIGTERM, without leaving half a file."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


class Stop:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt inside `interruptible`, and there not inside `held`.

    Elsewhere a signal only sets `asked`; after the first no other one interrupts what cleans up.
    """

    def __init__(self) -> None:
        self.asked, self._armed = False, False

    def receive(self, *_: object) -> None:
        """Handle a signal."""
        self.asked = True
        self._raise()

    def _raise(self) -> None:
        if self.asked and self._armed:
            self._armed = False
            raise KeyboardInterrupt

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let signals interrupt the block."""
        self._armed = True
        try:
            self._raise()
            yield
        finally:
            self._armed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block end before a signal interrupts. Signals reach the main thread only, so others hold nothing."""
        if current_thread() is not main_thread():
            yield
            return
        self._armed = False
        yield
        self._armed = True
        self._raise()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield a `Stop` that receives the signals of the process while the block runs, in its main thread."""
    stop = Stop()
    if current_thread() is not main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
