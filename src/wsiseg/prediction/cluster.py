"""Slides shared among processes: one lock a slide in a folder, and one task a slide on a Dask cluster.

A lock is a file that holds host, process and start time of who has it. That of a dead process of this machine is taken
over at once. Its owner touches it now and then, so that of a process of another machine is taken over when nothing
touched it for two minutes. Should its owner live all the same, a slide is mapped twice, and outputs stay whole.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wsiseg.model_file.onnx_session import runtime
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import cannot_be_written

if TYPE_CHECKING:
    from distributed import Client, Future
    from filelock import SoftFileLease

Item = TypeVar("Item")
Result = TypeVar("Result")
_UNTOUCHED_S = 120.0
_MOST_DEATHS = 3
_CONNECT_S = 30
_PACKAGES = ("wsiseg", "numpy", "zarr", "openslide-python")


class SlideLocks:
    """The locks that this process waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Path, SoftFileLease] = {}
        self._told: set[Path] = set()

    def take(self, path: Path) -> "SoftFileLease | None":
        """Take a lock, or return None while another process has it.

        Raises:
            OutputError: The folder cannot be written.
        """
        from filelock import SoftFileLease, Timeout  # noqa: PLC0415  only where files are written

        # The same object must look again, as it remembers for how long nothing touched the file.
        lock = self._waiting.pop(path, None) or SoftFileLease(
            path, timeout=0, lease_duration=_UNTOUCHED_S, thread_local=False
        )
        try:
            lock.acquire()
        except Timeout:
            self._waiting[path] = lock
            return None
        except OSError as error:
            raise cannot_be_written(path, error) from error
        return lock

    def tell(self, note: Callable[[str], None]) -> None:
        """Say once for each lock who is waited for."""
        for path in self._waiting.keys() - self._told:
            note(f"waiting for {_holder(path)}; if it is gone, delete {path}")
        self._told |= set(self._waiting)


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:  # it was released meanwhile
        text = ""
    facts = dict(re.findall(r"^(pid|host)=(.+)$", text, re.MULTILINE))
    return f"process {facts['pid']} on {facts['host']}" if len(facts) == 2 else "another process"  # noqa: PLR2004  both


def on_cluster(address: str, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Do a piece of work for every item on a cluster; yield the results as they come.

    A task whose worker dies is done again by another, up to three times.

    Args:
        address: Address of a Dask scheduler, or `local:N` for N processes on this machine.
        work: A function of a module that the workers have too.
        items: What it is called with, one a task.

    Raises:
        UsageError: Dask is not installed, the address is wrong, or workers run other versions than this process.
        WsisegError: A task killed its workers again and again.
    """
    try:
        from distributed import KilledWorker, as_completed  # noqa: PLC0415  an extra
    except ImportError as error:
        raise UsageError("--dask needs Dask, which is not installed", "pip install 'wsiseg[dask]'") from error
    with ExitStack() as stack:
        client = _client(address, stack)
        _compare_versions(client)
        futures: list[Future[Result]] = client.map(work, items, pure=False, retries=0)
        try:
            for future in as_completed(futures):  # type: ignore[no-untyped-call]  # it has no types
                yield future.result()
        except KilledWorker as error:
            text = f"a slide ended its worker {_MOST_DEATHS} times: {error}"
            raise WsisegError(text, "give it more memory") from error


def _client(address: str, stack: ExitStack) -> "Client":
    import dask  # noqa: PLC0415  an extra
    from distributed import Client, LocalCluster  # noqa: PLC0415  an extra

    stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": _MOST_DEATHS}))
    kind, _, count = address.partition(":")
    if kind == "local":
        if not count.isdigit() or int(count) < 1:
            raise UsageError(f"--dask {address}: not a number of processes", "give local:N, as local:4")
        settings = {"n_workers": int(count), "threads_per_worker": 1, "dashboard_address": None}
        address = stack.enter_context(LocalCluster(**settings))  # type: ignore[no-untyped-call]  # it has no types
    try:
        client: Client = stack.enter_context(Client(address, timeout=_CONNECT_S))  # type: ignore[no-untyped-call]  # too
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {address}: no scheduler answers: {error}", "check address and firewall") from error
    return client


def _versions() -> dict[str, str]:
    from importlib.metadata import version  # noqa: PLC0415  also runs on the workers

    # ONNX Runtime has packages of several names.
    return {**{name: version(name) for name in _PACKAGES}, "onnxruntime": runtime().__version__}


def _compare_versions(client: "Client") -> None:
    """Refuse workers that have another version of something that results depend on."""
    mine = _versions()
    for worker, theirs in client.run(_versions).items():
        other = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if theirs[name] != mine[name]]
        if other:
            raise UsageError(f"worker {worker} has {', '.join(other)}", "install the same versions everywhere")
