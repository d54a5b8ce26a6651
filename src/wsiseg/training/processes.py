"""Several processes that train one network together, as `torchrun` starts them; one process is the same thing alone.

And what stops them: Ctrl-C and SIGTERM.
"""

import inspect
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import nn

from wsiseg.config.train import Precision
from wsiseg.run.errors import DeviceError, WsisegError

T = TypeVar("T")
_AMPERE = 8  # CUDA capability from which GPUs have bfloat16 and TF32
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Longer than any process waits for another that saves or draws; `torchrun` ends them all when one dies.
_LONGEST_WAIT = timedelta(days=1)
_LONGEST_REASON = 200
_GLOO = "gloo/transport"  # in what it raises where the other end of a connection is gone


@dataclass(frozen=True)
class Processes:
    """The processes of a training run: how many there are, and which of them this one is, from 0."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that are this process's."""
        return items[self.rank :: self.count]

    def gathered(self, own: Sequence[T]) -> list[T]:
        """Put together what each process made of its share, in the order of the whole."""
        if self.count == 1:
            return list(own)
        parts: list[list[T]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(parts, list(own))
        return interleaved(parts)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def any(self, flag: bool) -> bool:  # noqa: FBT001  the one thing it is about
        """Tell whether the flag is set in any process."""
        return any(self.gathered([flag]))

    def joined(self, network: nn.Module) -> nn.Module:
        """Make the gradients of a network the mean over all processes."""
        if self.count == 1:
            return network
        # Batch-norm statistics stay each process's own during an epoch; `agree` makes them the first one's.
        parallel: Any = nn.parallel.DistributedDataParallel
        known = inspect.signature(parallel).parameters
        # Later versions of PyTorch call it by another name and warn of the old one.
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        joined: nn.Module = parallel(network, **{name: False})
        return joined

    def agree(self, network: nn.Module) -> None:
        """Send every process the buffers of the first, such as batch-norm statistics."""
        if self.count > 1:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """Put shares together in turns; a share may be shorter, as after an interruption the first process has more."""
    rounds = max(map(len, parts), default=0)
    return [part[turn] for turn in range(rounds) for part in parts if turn < len(part)]


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, over nccl for what is on GPUs, and over gloo."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
    try:
        with leaving_word_to_others():
            yield Processes(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def leaving_word_to_others() -> Iterator[None]:
    """Say in a sentence that another process cannot be reached; mostly it ended, with one of its own that says why.

    Raises:
        WsisegError: It cannot.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and _GLOO not in str(error):
            raise
        why = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:_LONGEST_REASON]  # without a place in gloo's source
        text = f"another process of this training cannot be reached: {why}"
        raise WsisegError(text, "if it ended, see its own message") from error


def device_name(name: str, rank: int, gpus: int) -> str:
    """Return the device of a process: of `auto` and `cuda` a GPU of its own, where the machine has some.

    `rank` says which of the processes on this machine it is, as LOCAL_RANK does.
    """
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    return f"cuda:{rank}" if name == "cuda" and gpus else name


def device_of(name: str) -> torch.device:
    """Find a device by its name; `auto` is a GPU where there is one, and each process on a machine has its own.

    Raises:
        DeviceError: It is not there.
    """
    try:
        device = torch.device(device_name(name, int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
        torch.zeros(1, device=device).item()  # which the device `meta` has not
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device {name}: {str(error).splitlines()[0]}", "use --device cpu") from error
    return device


def precision_on(device: torch.device, precision: Precision) -> Precision:
    """Return what `auto` stands for on a device; TF32 is switched on where it is bfloat16."""
    if precision != "auto":
        return precision
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < _AMPERE:
        return "float32"
    torch.set_float32_matmul_precision("high")
    return "bfloat16"


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
