"""How often and how long to try again: growing waits with jitter, what the server asks for, and an end to it all."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from wsiseg.run.errors import DownloadError

T = TypeVar("T")
_REAL_PROGRESS = 1 << 20  # an attempt that brought this many bytes has not failed


@dataclass(frozen=True)
class Patience:
    """How patient a download is; times in seconds.

    Attributes:
        tries: Attempts in a row that may fail.
        first_wait_s: Wait after the first failure; it doubles with each.
        longest_wait_s: The wait never grows beyond this.
        longest_asked_s: A server that asks to come back later than this is given up.
        connect_s: Longest time to make a connection.
        read_s: Longest silence of a server.
        slowest: Bytes a second; a server that stays below over `read_s` is taken for stuck.
    """

    tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_s: float = 300.0
    connect_s: float = 30.0
    read_s: float = 60.0
    slowest: float = 500.0

    def wait_s(self, failures: int) -> float:
        """Return the wait after so many failures in a row, with jitter so that many clients do not return at once."""
        longest = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1)  # noqa: S311  not a secret


class TemporaryError(Exception):
    """An attempt failed in a way that another may not.

    Args:
        reason: Why, for a person.
        asked_s: Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.asked_s = reason, asked_s


class StoppedError(Exception):
    """The run is being stopped; what has arrived is kept."""


def patiently(
    attempt: Callable[[], T],
    name: str,
    patience: Patience,
    stop: threading.Event,
    reached: Callable[[], int] = lambda: 0,
) -> T:
    """Attempt something until it succeeds or `patience` ends.

    Args:
        attempt: Raises TemporaryError where another attempt may succeed.
        name: What is fetched, for messages.
        patience: How often and how long.
        stop: Ends the waiting.
        reached: Bytes that have arrived so far. An attempt that gets a good deal further does not count as a failure.

    Returns:
        What the attempt returned.

    Raises:
        DownloadError: The attempts are used up, or the server asks for too long a wait.
        StoppedError: `stop` was set.
    """
    failures = furthest = 0
    while not stop.is_set():
        try:
            return attempt()
        except TemporaryError as error:
            problem = error
        failures = 1 if reached() >= furthest + _REAL_PROGRESS else failures + 1
        furthest = max(furthest, reached())
        if failures >= patience.tries:
            raise DownloadError(f"{name}: {problem.reason}, {failures} times in a row", "run it again later")
        if problem.asked_s > patience.longest_asked_s:
            raise DownloadError(f"{name}: the server asks to come back in {problem.asked_s:.0f} s", "run it again then")
        stop.wait(max(problem.asked_s, patience.wait_s(failures)))
    raise StoppedError


def asked_s(retry_after: str | None) -> float:
    """Read a `Retry-After` header, which holds seconds or a date (RFC 9110, 10.2.3); 0 where it says nothing."""
    if not retry_after:
        return 0.0
    try:
        if retry_after.strip().isdigit():
            return float(retry_after)
        date = parsedate_to_datetime(retry_after)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
