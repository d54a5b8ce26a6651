"""Calls that may hang, as reading does when a disk or a network share stops answering.

Nothing can end a thread that waits for such a disk. So every call is made in a thread of its own, which is left behind
when it takes too long; it does not keep the process from ending.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from wsiseg.run.errors import StalledError

T = TypeVar("T")


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
        self.is_stalled = False

    def call(self, step: Callable[[], T]) -> T:
        """Call a function and return its result.

        Raises:
            StalledError: It takes too long, or an earlier call did.
        """
        if self.is_stalled:
            raise self._stalled()
        coming: Future[T] = Future()
        threading.Thread(target=_work, args=(coming, step), name="caller", daemon=True).start()
        try:
            return coming.result(self._seconds)
        except TimeoutError as error:
            if coming.done():  # it is the function's own
                raise
            raise self._stalled() from error
        finally:
            if not coming.done():  # after Ctrl-C too: the call goes on, and what it reads must not be closed under it
                self.is_stalled = True

    def _stalled(self) -> StalledError:
        advice = "check the disk or network that it lies on, or allow more with read-timeout in the file of --config"
        return StalledError(f"{self._name}: reading hangs for {self._seconds:g} s", advice)


def _work(coming: "Future[T]", step: Callable[[], T]) -> None:
    try:
        coming.set_result(step())
    except BaseException as error:  # noqa: BLE001  whoever waits for the result raises it
        coming.set_exception(error)
