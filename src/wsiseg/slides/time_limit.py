"""Calls that may hang, as reading does when a disk or a network share stops answering.

Nothing can end a thread that waits for such a disk. So a call is made in a thread of its own kind, which is left behind
when it takes too long; it does not keep the process from ending.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from wsiseg.run.errors import StalledError

T = TypeVar("T")
_Step = tuple[Future[Any], Callable[[], Any]]


class TimeLimit:
    """Makes calls that may take so long and no longer. May be used by several threads at the same time.

    Attributes:
        is_stalled: True once a call took too long or was left behind; further ones are then refused at once.

    Args:
        name: What is read, as a person knows it.
        seconds: The longest that a call may take.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._idle: deque[_Caller] = deque()
        self._process = os.getpid()
        self.is_stalled = False

    def call(self, step: Callable[[], T]) -> T:
        """Call a function and return its result.

        Raises:
            StalledError: It takes too long, or an earlier call did.
        """
        if self.is_stalled:
            raise self._stalled()
        caller = self._caller()
        coming = caller.begin(step)
        try:
            found = coming.result(self._seconds)
        except TimeoutError as error:
            if coming.done():  # it is the function's own
                self._idle.append(caller)
                raise
            self.is_stalled = True
            raise self._stalled() from error
        except BaseException:
            if coming.done():
                self._idle.append(caller)
            else:  # Ctrl-C: the call goes on, and what it reads must not be closed under it
                self.is_stalled = True
            raise
        self._idle.append(caller)
        return found

    def close(self) -> None:
        """End the threads that wait for calls."""
        while self._idle:
            self._idle.pop().end()

    def _caller(self) -> "_Caller":
        if self._process != os.getpid():  # a fork, which threads do not survive
            self._process = os.getpid()
            self._idle.clear()
        try:
            return self._idle.pop()
        except IndexError:
            return _Caller()

    def _stalled(self) -> StalledError:
        advice = "check the disk or network that it lies on, or allow more with read-timeout in the file of --config"
        return StalledError(f"{self._name}: reading hangs for {self._seconds:g} s", advice)


class _Caller:
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self._steps: SimpleQueue[_Step | None] = SimpleQueue()
        threading.Thread(target=self._work, name="caller", daemon=True).start()

    def begin(self, step: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        self._steps.put((future, step))
        return future

    def end(self) -> None:
        self._steps.put(None)

    def _work(self) -> None:
        while (begun := self._steps.get()) is not None:
            future, step = begun
            try:
                future.set_result(step())
            except BaseException as error:  # noqa: BLE001  whoever waits for the result raises it
                future.set_exception(error)
            del begun, future, step  # an idle thread keeps no picture in memory
