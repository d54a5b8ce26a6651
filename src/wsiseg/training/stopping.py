"""Ctrl-C and SIGTERM while weights move: the step is finished and saved first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM, tell when one came, and let it through at the end; a second one comes through.

    Outside the main thread signals stay as they are.

    Yields:
        Tells whether a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before: dict[int, Any] = {}
    came: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            release()
            signal.raise_signal(number)

    def release() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        before[number] = signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        release()
    if came:
        signal.raise_signal(came[0])
