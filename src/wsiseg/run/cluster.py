"""Work spread over a Dask cluster: each item a task, done again by another worker where one dies.

What runs on the workers must be the same as here, so versions are compared before anything begins.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING, TypeVar

from wsiseg.run.errors import UsageError, WsisegError

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")
READING = ("wsiseg", "numpy", "zarr", "openslide")
"""Packages that what is read of slides depends on."""

_MOST_DEATHS = 3
_CONNECT_S = 30


def on_cluster(address: str, step: Callable[[T], R], items: Sequence[T], packages: Sequence[str]) -> Iterator[R]:
    """Do a step for each item on a Dask cluster; one whose worker dies is done again by another, up to three times.

    Args:
        address: That of a scheduler, or `local:N` for N processes on this machine.
        step: What a worker does with an item; both are pickled.
        items: What is to be done.
        packages: Modules whose versions must be the same on all workers.

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
        futures: list[Future[R]] = client.map(step, items, pure=False, retries=0)
        try:
            for future in as_completed(futures):  # type: ignore[no-untyped-call]  # it has no types
                yield future.result()
        except KilledWorker as error:
            text = f"a task ended its worker {_MOST_DEATHS} times: {error}"
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


def _versions(packages: Sequence[str]) -> dict[str, str]:
    called, found = packages_distributions(), {}  # ONNX Runtime has packages of several names
    for name in packages:
        try:
            found[name] = version(called.get(name, [name])[0])
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _compare_versions(client: "Client", packages: Sequence[str]) -> None:
    """Refuse workers that have another version of something that results depend on."""
    mine = _versions(packages)
    for worker, theirs in client.run(_versions, packages).items():
        other = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if theirs[name] != mine[name]]
        if other:
            raise UsageError(f"worker {worker} has {', '.join(other)}", "install the same versions everywhere")
