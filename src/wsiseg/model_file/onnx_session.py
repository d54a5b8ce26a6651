"""ONNX Runtime: imported here and nowhere else, started on the device that was asked for, its exceptions one."""

import contextlib
import importlib
import io
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.errors import DeviceError, UsageError
from wsiseg.run.machine import CPU_FACTS, cores, cpu_has

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

GET_CUDA = 'pip uninstall --yes onnxruntime onnxruntime-gpu, then pip install "onnxruntime-gpu[cuda,cudnn]"'
"""What makes CUDA work. Both packages write into one folder, so that with both the one installed last is imported."""

_HINTS = {
    "cuda": GET_CUDA,
    "coreml": "run on a Mac, or with --device cpu",
    "directml": "pip install onnxruntime-directml, on Windows",
    "openvino": "pip install onnxruntime-openvino",
}
_NO_DRIVER = "nvidia-smi must show a GPU, and a CUDA Version no older than that of onnxruntime-gpu"
"""What to look at where CUDA is there and does not work."""

_FATAL_ONLY = 4
_INT8_FLAGS = frozenset(["avx512_vnni", "avx_vnni", "amx_int8", "asimddp"])
_LONGEST_REASON = 300
# What matters of an error of CUDA, amid names of files and functions of C++.
_CAUSE = re.compile(r"(?:CU\w+ failure \d+:|CUDA error |Failed to allocate memory|cuDNN is ).*?(?= ;|$)")
TILES_AT_ONCE, WINDOWS_AT_ONCE, WINDOW_PX = 128, 4, 1152
"""What accelerators are given at once: tiles, or windows of dense maps, and the longest side of these in pixels."""

_TRIAL_PX, _TRIAL_S, _NARROW_PX = TILES_AT_ONCE * 224**2, 0.25, 896
_CPU_MUST_LEAD = 1.25
# Trying all algorithms takes seconds for every new size of images, and dense maps have many; where channels come last
# less time goes into choosing, and a batch takes less.
_CUDA = {"cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1"}
# In TF32 rounded products are rounded again, and a file fails its self-test; channels last it is half as fast.
_CUDA_INT8 = {"cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"}
_ROUNDED = b"DequantizeLinear"  # the nodes of a graph of 8-bit integers


class Started(NamedTuple):
    """A session, the device that it computes on, as `cuda:1`, and why; `speeds` are tiles per second of those tried."""

    session: "InferenceSession"
    device: str
    reason: str = "as --device says"
    speeds: Mapping[str, float] = MappingProxyType({})
    warnings: tuple[str, ...] = ()


Port = tuple[str, str, list[int | str | None]]
"""Name, type and shape of an input or output of a graph; a side that is free has a name in place of a number."""


class RuntimeFailure(Exception):  # noqa: N818  it is told apart from Python's RuntimeError
    """ONNX Runtime could not load or run a model; `str()` says why."""


def runtime(module: str = "onnxruntime") -> Any:  # noqa: ANN401  ONNX Runtime is hardly typed
    """Import ONNX Runtime, or one of its modules, with its telemetry off.

    Since version 1.29 a thread of its own reports to its vendor, and an id and what could not be sent are kept in the
    user's cache. `disable_telemetry_events` comes too late for that: only this variable, set before the import, keeps
    all of it from happening. The function is for Windows, where the system collects the events.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)  # what matters is raised, or told by whoever asked
    return importlib.import_module(module)


def start(
    model: bytes,
    device: str = "cpu",
    threads: int | None = None,
    tile_px: int | None = None,
    *,
    is_dense: bool = False,
    is_optimized: bool = True,
) -> Started:
    """Start ONNX Runtime on a model, the bytes of an ONNX file.

    `device` is a key of `PROVIDERS`, with a number as `cuda:1` where there are several of them, or `auto` for the one
    that is fastest with made tiles of side `tile_px`, or the CPU for a model that takes none; accelerators are tried
    with windows of dense maps where the model `is_dense`. So many `threads` compute; all cores where it is not given.
    On a named device a graph that is not `is_optimized` is computed as it stands.

    Raises:
        UsageError: No device has this name.
        DeviceError: The device is not available, or ONNX Runtime would silently use another.
        RuntimeFailure: ONNX Runtime refuses the model.
    """
    kind = device.partition(":")[0]
    if device != "auto" and kind not in PROVIDERS:
        raise UsageError(f"unknown device {device!r}", f"choose one of auto, {', '.join(PROVIDERS)}")
    available = available_providers()
    if device == "auto":
        if tile_px is None:
            return Started(_session(model, "cpu", threads), "cpu", "it takes stored features, which is quick")
        here = [name for name, provider in PROVIDERS.items() if provider in available and name != "cpu"]
        return _fastest(model, here, threads, tile_px, is_dense=is_dense)
    if PROVIDERS[kind] not in available:
        raise DeviceError(f"{device}: this installation of ONNX Runtime does not have it", _HINTS[kind])
    try:
        session = _session(model, device, threads, is_optimized=is_optimized)
    except RuntimeFailure as error:
        # Raises again where the model is to blame.
        _session(model, "cpu", threads)
        raise _unusable(device, f": {error}") from error
    used = session.get_providers()[0]
    if used != PROVIDERS[kind]:
        raise _unusable(device, f" and would take {used}")
    return Started(session, device)


def _unusable(device: str, why: str) -> DeviceError:
    missing = missing_cuda() if device.startswith("cuda") else ""
    hint = _HINTS[device.partition(":")[0]] if missing or not device.startswith("cuda") else _NO_DRIVER
    return DeviceError(f"{device}: ONNX Runtime cannot use it{missing}{why}", hint)


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
    inputs, outputs = _guarded(lambda: [[(one.name, one.type, one.shape) for one in side()] for side in sides])
    return inputs, outputs


def has_fast_int8(facts: Path = CPU_FACTS) -> bool | None:
    """Return whether this CPU, as Linux describes it, multiplies 8-bit integers; None where that cannot be told."""
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return cpu_has(_INT8_FLAGS, facts)


def _fastest(
    model: bytes, accelerators: Sequence[str], threads: int | None, tile_px: int, *, is_dense: bool
) -> Started:
    """Try a model on every accelerator and on the CPU; keep the fastest.

    What a device can do for a model follows from no table: few CPUs have kernels for float16, some accelerators none
    for 8-bit integers, and a small one may be slower than many cores. Where they are nearly equal the accelerator is
    taken, as that leaves the CPU to reading, and so that the same device is taken again.
    """
    sessions = {}
    for name in accelerators:
        with contextlib.suppress(RuntimeFailure):
            sessions[name] = _session(model, name, threads)
    sessions = {name: one for name, one in sessions.items() if one.get_providers()[0] == PROVIDERS[name]}
    lost = [name for name in accelerators if name not in sessions]
    warnings = [f"{', '.join(lost)} cannot be used here: see wsiseg doctor"] if lost else []
    sessions["cpu"] = _session(model, "cpu", threads)
    if len(sessions) == 1:
        return Started(sessions["cpu"], "cpu", "nothing faster works here", warnings=tuple(warnings))
    speeds = dict.fromkeys(sessions, 0.0)
    for name, session in sessions.items():
        try:
            speeds[name] = round(speed(session, tile_px, is_dense=is_dense), 1)
        except RuntimeFailure as error:  # the device lacks memory, a library or an operator
            warnings.append(f"{name} is not used: {error}")
    name = max(speeds, key=lambda one: speeds[one] / _CPU_MUST_LEAD if one == "cpu" else speeds[one] or -1)
    said = ", ".join(f"{one} {tiles:g}" for one, tiles in speeds.items())
    return Started(sessions[name], name, f"the fastest with this file, in tiles/s: {said}", speeds, tuple(warnings))


def speed(session: "InferenceSession", tile_px: int, *, is_dense: bool = False) -> float:
    """Measure how many made tiles a model computes in a second, in about a second.

    Where it `is_dense` an accelerator computes windows of two sizes in turn, as it must choose its algorithms anew for
    every size; what they show counts as tiles.

    Raises:
        RuntimeFailure: It cannot compute them.
    """
    provider = session.get_providers()[0]
    output, most, sides = "probability", max(1, min(TILES_AT_ONCE, _TRIAL_PX // tile_px**2)), [(tile_px, tile_px)]
    if is_dense and provider != CPU:
        output, most, sides = "probability_map", WINDOWS_AT_ONCE, [(WINDOW_PX, WINDOW_PX), (WINDOW_PX, _NARROW_PX)]
    random = np.random.default_rng(0)
    made: list[NDArray[np.uint8]] = [random.integers(0, 256, (most, *side, 3), np.uint8) for side in sides]

    def seconds(images: NDArray[np.uint8]) -> float:
        began = time.perf_counter()
        run(session, [output], {"image": images})
        return max(time.perf_counter() - began, 1e-9)

    if provider != PROVIDERS["cuda"]:  # which chooses anew for every number of images too
        seconds(made[0][:1])
        most = max(1, min(most, int(_TRIAL_S / seconds(made[0][:1]))))
    first, *others = [images[:most] for images in made]
    seconds(first)
    asked = [*others, *others, first, first] if others else [first]
    return sum(images[..., 0].size for images in asked) / tile_px**2 / sum(map(seconds, asked))


def _session(model: bytes, device: str, threads: int | None, *, is_optimized: bool = True) -> "InferenceSession":
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    if not is_optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # Threads that spin while they wait take the cores from the threads that read slides.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if has_fast_int8() is not True:
        # Without it 8-bit products saturate on x64 CPUs without VNNI, and files give other answers than elsewhere;
        # with it those that have VNNI are half as fast.
        options.add_session_config_entry("session.x64quantprecision", "1")
    kind, _, number = device.partition(":")
    which, how = {"device_id": number} if number else {}, dict[str, str]()
    if kind == "cuda":
        missing_cuda()
        how = _CUDA_INT8 if _ROUNDED in model else _CUDA

    def started(**how: str) -> "InferenceSession":
        chosen = [] if kind == "cpu" else [(PROVIDERS[kind], which | how)]
        # Its own fallback prints to standard output and hides which device computes.
        found: InferenceSession = _guarded(
            lambda: onnxruntime.InferenceSession(model, options, providers=[*chosen, CPU], enable_fallback=0)
        )
        return found

    try:
        return started(**how)
    except RuntimeFailure:
        if not how:
            raise
        return started()  # ONNX Runtime 1.20 was built without channels last


def missing_cuda() -> str:
    """Load CUDA and cuDNN, also where they are packages of Python; return `: ` and what could not be loaded, if any."""
    said = io.StringIO()  # it prints to standard output
    with contextlib.redirect_stdout(said), contextlib.suppress(AttributeError):  # new in ONNX Runtime 1.21
        runtime().preload_dlls()
    return "".join(f": {line}" for line in said.getvalue().splitlines()[:1])


def _guarded(call: Callable[[], Any]) -> Any:  # noqa: ANN401  what ONNX Runtime returns has no types
    try:
        return call()
    except Exception as error:
        # Its own exceptions share no base, only the module they come from.
        is_its_own = type(error).__module__.startswith("onnxruntime.")
        if not is_its_own and not isinstance(error, (MemoryError, RuntimeError, ValueError)):
            raise
        said = " ".join(str(error).split())
        cause = _CAUSE.search(said)
        reason = (cause[0] if cause else said)[:_LONGEST_REASON] or type(error).__name__
        if "PosixThread" in reason:  # it could not start its threads: no fault of the model
            raise MemoryError(reason) from error
        raise RuntimeFailure(reason) from error
