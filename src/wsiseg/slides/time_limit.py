"""Calls that may hang, as reading does when a disk or a network share stops answering.

Nothing can end a thread that waits for such a disk. So a call is made in a thread of its own kind, which is left behind
when it takes too long; it does not keep the process from ending. Threads are used again: one that starts another takes
signals in place of the main thread, which then sleeps on, so that Ctrl-C would have to wait.
"""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from wsiseg.run.errors import StalledError

T = TypeVar("T")
_Steps = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class TimeLimit:
    """Makes calls that may take so long and no longer, several threads at a time too; `name` is of what they read."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._idle: defaultdict[int, deque[_Steps]] = defaultdict(deque)  # by process: a fork has none of the threads
        self.is_stalled = False  # or a call took too long or was left behind: further ones are refused at once

    def call(self, step: Callable[[], T]) -> T:
        """Call a function and return its result.

        Raises:
            StalledError: It takes too long, or an earlier call did.
        """
        if self.is_stalled:
            raise self._stalled()
        coming: Future[T] = Future()
        idle = self._idle[os.getpid()]
        try:
            steps = idle.pop()
        except IndexError:
            steps = SimpleQueue()
            threading.Thread(target=_work, args=(steps,), name="caller", daemon=True).start()
        steps.put((coming, step))
        try:
            return coming.result(self._seconds)
        except TimeoutError as error:
            if coming.done():  # just now, or the error is the function's own
                return coming.result()
            raise self._stalled() from error
        finally:
            if coming.done():
                idle.append(steps)
            else:  # after Ctrl-C too: the call goes on, and what it reads must not be closed under it
                self.is_stalled = True

    def close(self) -> None:
        """End the threads that wait for calls."""
        idle = self._idle[os.getpid()]
        while idle:
            idle.pop().put(None)

    def _stalled(self) -> StalledError:
        advice = "check the disk or network that it lies on, or allow more with read-timeout in the --config file"
        return StalledError(f"{self._name}: reading hangs for {self._seconds:g} s", advice)


def _work(steps: _Steps) -> None:
    while (begun := steps.get()) is not None:
        coming, step = begun
        try:
            coming.set_result(step())
        except BaseException as error:  # noqa: BLE001  whoever waits for the result raises it
            coming.set_exception(error)
        del begun, coming, step  # an idle thread keeps no picture in memory
