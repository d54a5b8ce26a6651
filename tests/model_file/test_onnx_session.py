import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from making.accelerators import NO_MEMORY
from making.models import color_filter_model
from wsiseg.exporting.quantization import quantised
from wsiseg.model_file import onnx_session
from wsiseg.model_file.onnx_session import CPU, GET_CUDA, PROVIDERS, RuntimeFailure, has_fast_int8, run, start
from wsiseg.run.errors import DeviceError, UsageError, is_out_of_memory


def between(low: float, high: float) -> tuple[np.float32, np.float32]:
    return np.float32(low), np.float32(high)


def test_8_bit_sums_do_not_overflow_on_any_cpu() -> None:
    """On x64 CPUs without VNNI the sum of two products, 2 * 255 * 127, does not fit the 16 bits that it is given."""
    weights = np.ones((8, 64, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["sums"], name="layer"),
        helper.make_node("Neg", ["sums"], ["negative"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, 4, 4])
        for name, count in (("image", 64), ("negative", 8))
    ]
    graph = helper.make_graph(nodes, "test", ports[:1], ports[1:], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    whole = quantised(model, ["layer"], {"image": between(0, 1), "sums": between(0, 64)})
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in whole.graph.node}
    found = run(start(whole.SerializeToString()).session, ["negative"], {"image": np.ones((1, 64, 4, 4), np.float32)})
    np.testing.assert_allclose(found[0], -64, rtol=0.02)


def test_a_clamped_sum_is_rounded_once() -> None:
    """Rounded before its clamp as well, it would lose half of its steps to values that the clamp throws away."""
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=(4, 4, 1, 1)).astype(np.float32), name) for name in "ab"]
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["one"], name="first"),
        helper.make_node("Add", ["one", "image"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["clamped"]),
        helper.make_node("Conv", ["clamped", "b"], ["two"], name="second"),
        helper.make_node("Identity", ["two"], ["answer"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 4, 4]) for name in ("image", "answer")]
    graph = helper.make_graph(nodes, "test", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    image = random.uniform(-1, 1, (8, 4, 4, 4)).astype(np.float32)
    ranges = {name: between(-4, 4) for name in ("image", "one", "two")} | {"clamped": between(0, 4)}
    whole = quantised(model, ["first", "second"], ranges)
    kinds = [node.op_type for node in whole.graph.node]
    assert kinds.count("QuantizeLinear") == len(ranges)
    exact, found = (
        run(start(some.SerializeToString()).session, ["answer"], {"image": image})[0] for some in (model, whole)
    )
    assert np.abs(found - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.skipif(sys.platform == "darwin", reason="there the machine's name tells")
def test_instructions_for_8_bit_products_are_known_by_their_names(tmp_path: Path) -> None:
    facts = tmp_path / "cpuinfo"
    assert has_fast_int8(facts) is None
    for flags, is_fast in (
        ("flags : fma avx2 avx512f avx512bw", False),
        ("flags : avx2 avx512_vnni sha_ni", True),
        ("flags : avx2 avx_vnni", True),
        ("Features : fp asimd", False),
        ("Features : fp asimd asimddp", True),
    ):
        facts.write_text(f"processor : 0\n{flags}\n")
        assert has_fast_int8(facts) is is_fast


@dataclass
class MadeClock:
    """A clock that goes on where something says so, not while a busy machine does something else."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class MadeSession:
    """A session of a made device that takes so many seconds for a tile, and for a new size, or fails."""

    provider: str
    seconds: float | None
    clock: MadeClock
    new_size: float = 0.0
    shape: tuple[int, ...] = ()

    def get_providers(self) -> list[str]:
        return [self.provider]

    def run(self, _: list[str], inputs: dict[str, Any]) -> list[Any]:
        if self.seconds is None:
            raise RuntimeError("out of memory")
        count, height, width, _ = shape = inputs["image"].shape
        self.clock.now += self.seconds * count * height * width / 224**2 + self.new_size * (shape != self.shape)
        self.shape = shape
        return [np.zeros(len(inputs["image"]), np.float32)]


def made_devices(monkeypatch: pytest.MonkeyPatch, new_size: float = 0.0, **seconds: float | None) -> list[str]:
    """Let there be devices of these speeds; return the names of those that sessions are started on, as they come.

    All but the CPU take `new_size` seconds for images of another size than the last.
    """
    asked, clock = list[str](), MadeClock()

    def session(_model: bytes, device: str, _threads: int | None, **_: bool) -> MadeSession:
        asked.append(device)
        kind = device.partition(":")[0]
        works = seconds[kind] is None or seconds[kind] >= 0  # type: ignore[operator]  # mypy does not see that it is a number
        return MadeSession(PROVIDERS[kind if works else "cpu"], seconds[kind], clock, new_size * (kind != "cpu"))

    monkeypatch.setattr(onnx_session, "available_providers", lambda: [PROVIDERS[name] for name in seconds])
    monkeypatch.setattr(onnx_session, "_session", session)
    monkeypatch.setattr(onnx_session, "time", clock)
    return asked


@pytest.mark.parametrize(
    ("cuda", "cpu", "taken"),
    [(1e-4, 1e-2, "cuda"), (4e-3, 1e-4, "cpu"), (1e-3, 0.9e-3, "cuda"), (None, 1e-2, "cpu")],
    ids=["fast", "slow", "nearly as fast", "out of memory"],
)
def test_auto_takes_the_device_that_is_fastest_with_the_file(
    monkeypatch: pytest.MonkeyPatch, cuda: float | None, cpu: float, taken: str
) -> None:
    made_devices(monkeypatch, cuda=cuda, cpu=cpu)
    started = start(b"", "auto", tile_px=224)
    assert (started.device, started.session.get_providers()) == (taken, [PROVIDERS[taken]])
    assert set(started.speeds) == {"cuda", "cpu"}
    assert started.speeds["cpu"] == pytest.approx(1 / cpu, rel=1e-3)
    assert started.reason.startswith("the fastest with this file, in tiles/s: cuda ")
    assert started.warnings == (() if cuda else ("cuda is not used: out of memory",))


def test_what_no_device_computes_is_left_to_the_cpu_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    made_devices(monkeypatch, cuda=None, cpu=None)
    assert start(b"", "auto", tile_px=224).device == "cpu"


def test_what_takes_features_is_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made_devices(monkeypatch, cuda=1e-4, cpu=1e-2)
    assert start(b"", "auto").device == "cpu"
    assert asked == ["cpu"]


@pytest.mark.parametrize(("new_size", "taken"), [(0.0, "cuda"), (0.05, "cuda"), (0.5, "cpu")])
def test_where_maps_are_dense_it_counts_that_their_windows_have_many_sizes(
    monkeypatch: pytest.MonkeyPatch, new_size: float, taken: str
) -> None:
    made_devices(monkeypatch, new_size, cuda=1e-4, cpu=2e-3)
    assert start(b"", "auto", tile_px=224).device == "cuda"  # tiles have one size
    started = start(b"", "auto", tile_px=224, is_dense=True)
    assert started.device == taken
    tiles = 4 * (1152 * 1152 + 1152 * 896) * 2 / 224**2
    assert started.speeds["cuda"] == pytest.approx(tiles / (tiles * 1e-4 + 2 * new_size), rel=1e-3)


def made_cuda(monkeypatch: pytest.MonkeyPatch, *lacking: str) -> list[Any]:
    """Let there be CUDA that is built without some options, and of no use; return what it is asked for, as it comes."""
    asked: list[Any] = []
    real = onnx_session.runtime().InferenceSession

    def session(model: bytes, options: Any, providers: list[Any], **more: Any) -> Any:
        if providers[0] != CPU:
            asked.append(providers[0])
            if set(lacking) & set(providers[0][1]):
                raise RuntimeError("This build does not support NHWC layout")
        return real(model, options, providers=[CPU], **more)

    monkeypatch.setattr(onnx_session.runtime(), "InferenceSession", session)
    monkeypatch.setattr(onnx_session, "available_providers", lambda: list(PROVIDERS.values()))
    return asked


def test_cuda_is_asked_for_what_suits_the_numbers_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made_cuda(monkeypatch)
    weights = np.ones((2, 3, 1, 1), np.float32)
    node = helper.make_node("Conv", ["image", "weights"], ["sums"], name="layer")
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, 4, 4])
        for name, count in (("image", 3), ("sums", 2))
    ]
    graph = helper.make_graph([node], "test", ports[:1], ports[1:], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rounded = quantised(model, ["layer"], {"image": between(0, 1), "sums": between(0, 3)})
    for one in (model, rounded):
        with pytest.raises(DeviceError, match="would take CPUExecutionProvider"):
            start(one.SerializeToString(), "cuda:1")
    assert asked == [
        (PROVIDERS["cuda"], {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1"}),
        (PROVIDERS["cuda"], {"device_id": "1", "cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"}),
    ]


def test_cuda_that_lacks_an_option_is_asked_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of ONNX Runtime 1.20, which was built without channels last."""
    asked = made_cuda(monkeypatch, "prefer_nhwc")
    with pytest.raises(DeviceError, match="would take CPUExecutionProvider"):
        start(color_filter_model(), "cuda:1")
    assert [options for _, options in asked] == [
        {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1"},
        {"device_id": "1"},
    ]


@pytest.mark.parametrize(
    ("missing", "advice"), [(": Failed to load libcudart.so", GET_CUDA), ("", "nvidia-smi must show a GPU")]
)
def test_where_nothing_of_cuda_is_missing_one_is_told_to_look_at_the_driver(
    monkeypatch: pytest.MonkeyPatch, missing: str, advice: str
) -> None:
    made_cuda(monkeypatch)
    monkeypatch.setattr(onnx_session, "missing_cuda", lambda: missing)
    with pytest.raises(DeviceError) as caught:
        start(color_filter_model(), "cuda")
    assert caught.value.message == f"cuda: ONNX Runtime cannot use it{missing} and would take CPUExecutionProvider"
    assert caught.value.hint.startswith(advice)


NO_KERNEL = "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
NO_CUBLAS = (
    "[ONNXRuntimeError] : 11 : EP_FAIL : Status Message: /onnxruntime_src/cuda_call.cc:129 CudaCall(ERRTYPE) [with "
    "ERRTYPE = cudnnStatus_t] CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=node-17 ; file=conv.cc"
)


@pytest.mark.parametrize(
    ("said", "told", "is_memory"),
    [
        (NO_MEMORY, "Failed to allocate memory for requested buffer of size 268435456", True),
        (NO_CUBLAS, "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        (f"Non-zero status code returned while running Slice node. Status Message: {NO_KERNEL}", NO_KERNEL, False),
        ("the model is damaged", "the model is damaged", False),
    ],
    ids=["memory", "memory of cuBLAS", "old GPU", "other"],
)
def test_of_what_cuda_says_the_cause_is_told(said: str, told: str, *, is_memory: bool) -> None:
    def fail() -> None:
        raise RuntimeError(said)

    with pytest.raises(RuntimeFailure) as caught:
        onnx_session._guarded(fail)
    assert (str(caught.value), is_out_of_memory(caught.value)) == (told, is_memory)


def test_a_device_that_falls_back_to_the_cpu_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made_devices(monkeypatch, cuda=-1.0, cpu=1e-2)
    started = start(b"", "auto", tile_px=224)
    assert (started.device, dict(started.speeds)) == ("cpu", {})
    assert started.warnings == ("cuda cannot be used here: see wsiseg doctor",)
    with pytest.raises(DeviceError, match="would take CPUExecutionProvider"):
        start(b"", "cuda")


def test_where_only_the_cpu_is_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made_devices(monkeypatch, cpu=1e9)  # it would take years
    assert start(b"", "auto", tile_px=224).device == "cpu"


def test_devices_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made_devices(monkeypatch, cuda=1e-4, cpu=1e-2)
    assert start(b"", "cuda:1").device == "cuda:1"
    assert asked == ["cuda:1"]
    with pytest.raises(UsageError, match="unknown device"):
        start(b"", "gpu:1")
