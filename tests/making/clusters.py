"""A Dask cluster whose workers are processes that can be killed, and others added."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from making.waiting import wait_until


class WorkerProcesses:
    """A scheduler and its workers, none of which comes back by itself."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.file, self._stack, self.workers = folder / "scheduler.json", stack, list["subprocess.Popen[bytes]"]()
        scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_until(self._is_told, scheduler)

    def _is_told(self) -> bool:
        with suppress(FileNotFoundError, ValueError):  # it is being written
            return bool(self.address)
        return False

    @property
    def address(self) -> str:
        """Where the scheduler listens."""
        return str(json.loads(self.file.read_text())["address"])

    def add(self) -> None:
        """Add a worker."""
        self.workers.append(self._start("worker", "--no-nanny", "--nthreads", "1", "--no-dashboard"))

    def _start(self, kind: str, *more: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self.file), *more]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=self.file.parent)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process


@contextmanager
def cluster_of(workers: int, folder: Path) -> Iterator[WorkerProcesses]:
    """Run a scheduler with so many workers while the block lasts."""
    with ExitStack() as stack:
        cluster = WorkerProcesses(folder, stack)
        for _ in range(workers):
            cluster.add()
        yield cluster
