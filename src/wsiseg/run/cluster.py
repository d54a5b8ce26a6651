"""Work spread over a Dask cluster: each task one item or a few, done again by another worker where one dies.

What runs on the workers must be the same as here, so versions are compared before anything begins.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.machine import CORES, cores
from wsiseg.run.memory import keep_what_is_used_again

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")
READING = ("wsiseg", "numpy", "zarr", "openslide-python")
"""Packages that what is read of slides depends on."""

_MOST_DEATHS = 3
_CONNECT_S = 30
_TASKS = 4  # of a worker at least, before one has several items
_ALONE = Lock()


def on_cluster(
    address: str,
    step: Callable[[Sequence[T]], Iterable[R]],
    items: Sequence[T],
    packages: Sequence[str],
    together: int = 1,
) -> Iterator[R]:
    """Do a step for items on a Dask cluster; those whose worker dies are done again by another, up to three times.

    A process has one task at a time, however many threads a worker has: in training there is one source of chance a
    process.

    Args:
        address: That of a scheduler, or `local:N` for N processes on this machine.
        step: What a worker does with some items; both are pickled.
        items: What is to be done.
        packages: Modules whose versions must be the same on all workers.
        together: Up to so many items are given to a worker at once, where there are many for each.

    Yields:
        What came of each item, in any order.

    Raises:
        UsageError: Dask is not installed, the address is wrong, or workers have other versions than this process.
        WsisegError: A task killed its workers again and again.
    """
    try:
        from distributed import KilledWorker, as_completed  # noqa: PLC0415  an extra
    except ImportError as error:
        raise UsageError("--dask needs Dask, which is not installed", "pip install 'wsiseg[dask]'") from error
    with ExitStack() as stack:
        client = _client(address, stack)
        _compare_versions(client, packages)
        workers = len(client.ncores())  # type: ignore[no-untyped-call]  # it has no types
        size = max(1, min(together, len(items) // (_TASKS * max(1, workers))))
        parts = [items[begin : begin + size] for begin in range(0, len(items), size)]
        futures: list[Future[list[R]]] = client.map(partial(_alone, step), parts, pure=False, retries=0)
        try:
            # Results come while others are used: asked for one by one, each is a way to the scheduler and back.
            for _, found in as_completed(futures, with_results=True):  # type: ignore[no-untyped-call]  # it has no types
                yield from found
        except KilledWorker as error:
            text = f"a task ended its worker {_MOST_DEATHS} times: {error}"
            raise WsisegError(text, "give it more memory") from error


def _alone(step: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R]:
    with _ALONE:
        keep_what_is_used_again()
        return list(step(items))


def _client(address: str, stack: ExitStack) -> "Client":
    import dask  # noqa: PLC0415  an extra
    from distributed import Client, LocalCluster  # noqa: PLC0415  an extra

    settings = {
        "distributed.scheduler.allowed-failures": _MOST_DEATHS,
        "distributed.worker.profile.enabled": False,  # a hundred looks at each thread a second
    }
    stack.enter_context(dask.config.set(settings))
    kind, _, count = address.partition(":")
    if kind == "local":
        if not count.isdigit() or int(count) < 1:
            raise UsageError(f"--dask {address}: not a number of processes", "give local:N, as local:4")
        share = {CORES: str(max(1, cores() // int(count)))}
        workers = {"n_workers": int(count), "threads_per_worker": 1, "env": share}
        # Without a port of its own a second cluster on the machine finds that of Dask's page in use, page or not.
        page = {"dashboard_address": None, "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
        address = stack.enter_context(LocalCluster(**workers, **page))  # type: ignore[no-untyped-call]  # it has no types
    try:
        client: Client = stack.enter_context(Client(address, timeout=_CONNECT_S))  # type: ignore[no-untyped-call]  # too
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {address}: no scheduler answers: {error}", "check address and firewall") from error
    return client


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: _version(name) for name in packages}


def _version(name: str) -> str:
    with suppress(PackageNotFoundError):
        return version(name)
    called = packages_distributions().get(name, [name])  # slow; ONNX Runtime has packages of several names
    with suppress(PackageNotFoundError):
        return version(called[0])
    return "none"


def _compare_versions(client: "Client", packages: Sequence[str]) -> None:
    """Refuse workers that have another version of something that results depend on."""
    mine = _versions(packages)
    for worker, theirs in client.run(_versions, packages).items():
        other = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if theirs[name] != mine[name]]
        if other:
            raise UsageError(f"worker {worker} has {', '.join(other)}", "install the same versions everywhere")
