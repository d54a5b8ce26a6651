"""ONNX Runtime: imported here and nowhere else, started on the device that was asked for, its exceptions one."""

import importlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wsiseg.run.errors import DeviceError, UsageError
from wsiseg.run.machine import cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""What ONNX Runtime calls each device."""

_HINTS = {
    "cuda": "pip install onnxruntime-gpu, with the CUDA and cuDNN that it asks for",
    "coreml": "run on a Mac, or with --device cpu",
    "directml": "pip install onnxruntime-directml, on Windows",
    "openvino": "pip install onnxruntime-openvino",
}
_FATAL_ONLY = 4
_CPU_FACTS = Path("/proc/cpuinfo")
_INT8_FLAGS = frozenset(["avx512_vnni", "avx_vnni", "amx_int8", "asimddp"])
_LONGEST_REASON = 300


class Started(NamedTuple):
    """A session and what a person should know about how it was started."""

    session: "InferenceSession"
    warnings: tuple[str, ...]


class Port(NamedTuple):
    """An input or output of a graph; a side that is free has a name in place of a number."""

    name: str
    type: str
    shape: list[int | str | None]


class RuntimeFailure(Exception):  # noqa: N818  it is told apart from Python's RuntimeError
    """ONNX Runtime could not load or run a model; `str()` says why."""


def runtime(module: str = "onnxruntime") -> Any:  # noqa: ANN401  ONNX Runtime is hardly typed
    """Import ONNX Runtime, or one of its modules, with its telemetry off.

    Since version 1.29 a thread of its own reports to its vendor, and an id and what could not be sent are kept in the
    user's cache. `disable_telemetry_events` comes too late for that: only this variable, set before the import, keeps
    all of it from happening. The function is for Windows, where the system collects the events.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    importlib.import_module("onnxruntime").disable_telemetry_events()
    return importlib.import_module(module)


def start(model: bytes, device: str = "cpu", threads: int | None = None) -> Started:
    """Start ONNX Runtime on a model.

    Args:
        model: The bytes of an ONNX file.
        device: A key of `PROVIDERS`, or `auto` for the first of them that works, the CPU last.
        threads: Threads that compute; all cores where it is not given.

    Raises:
        UsageError: No device has this name.
        DeviceError: The device is not available, or ONNX Runtime would silently use another.
        RuntimeFailure: ONNX Runtime refuses the model.
    """
    if device != "auto" and device not in PROVIDERS:
        raise UsageError(f"no device is called {device!r}", f"choose one of auto, {', '.join(PROVIDERS)}")
    available = available_providers()
    if device == "auto":
        return _first_that_works(model, [name for name in PROVIDERS.values() if name in available], threads)
    if PROVIDERS[device] not in available:
        raise DeviceError(f"{device}: this installation of ONNX Runtime does not have it", _HINTS[device])
    try:
        session = _session(model, PROVIDERS[device], threads)
    except RuntimeFailure as error:
        # Raises again where the model is to blame.
        _session(model, CPU, threads)
        raise DeviceError(f"{device}: ONNX Runtime cannot use it: {error}", _HINTS[device]) from error
    used = session.get_providers()[0]
    if used != PROVIDERS[device]:
        raise DeviceError(f"{device}: ONNX Runtime cannot use it and would fall back to {used}", _HINTS[device])
    return Started(session, ())


def available_providers() -> list[str]:
    """List what this installation of ONNX Runtime can compute with."""
    found: list[str] = runtime().get_available_providers()
    return found


def run(session: "InferenceSession", outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
    """Compute outputs.

    Raises:
        RuntimeFailure: ONNX Runtime cannot compute them.
    """
    found: list[Any] = _guarded(lambda: session.run(outputs, inputs))
    return found


def ports(session: "InferenceSession") -> tuple[list[Port], list[Port]]:
    """Return the inputs and the outputs of a graph.

    Raises:
        RuntimeFailure: Their names are no text.
    """
    sides = session.get_inputs, session.get_outputs
    inputs, outputs = _guarded(lambda: [[Port(one.name, one.type, one.shape) for one in side()] for side in sides])
    return inputs, outputs


def has_fast_int8(facts: Path = _CPU_FACTS) -> bool | None:
    """Return whether this CPU has instructions for products of 8-bit integers; None where that cannot be told.

    Args:
        facts: What Linux says of the CPU, where the system is Linux.
    """
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    try:
        flags = facts.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return not _INT8_FLAGS.isdisjoint(flags)


def _first_that_works(model: bytes, providers: list[str], threads: int | None) -> Started:
    accelerators = [provider for provider in providers if provider != CPU]
    for provider in accelerators:
        try:
            session = _session(model, provider, threads)
        except RuntimeFailure:
            continue
        if session.get_providers()[0] == provider:
            return Started(session, ())
    lost = (f"{', '.join(accelerators)} cannot be used here; computing on the CPU",) if accelerators else ()
    return Started(_session(model, CPU, threads), lost)


def _session(model: bytes, provider: str, threads: int | None) -> "InferenceSession":
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # Threads that spin while they wait take the cores from the threads that read slides.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if has_fast_int8() is not True:
        # Without it 8-bit products saturate on x64 CPUs without VNNI, and files give other answers than elsewhere;
        # with it those that have VNNI are half as fast.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Its own fallback prints to standard output and hides which device computes.
    session: InferenceSession = _guarded(
        lambda: onnxruntime.InferenceSession(
            model,
            options,
            providers=list(dict.fromkeys([provider, CPU])),
            enable_fallback=0,
        ),
    )
    return session


def _guarded(call: Callable[[], Any]) -> Any:  # noqa: ANN401  what ONNX Runtime returns has no types
    try:
        return call()
    except Exception as error:
        # Its own exceptions share no base, only the module they come from.
        is_its_own = type(error).__module__.startswith("onnxruntime.")
        if not is_its_own and not isinstance(error, (MemoryError, RuntimeError, ValueError)):
            raise
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise RuntimeFailure(reason) from error
