"""An accelerator that this machine lacks: sessions of the CPU that say they compute on another device."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from numpy.typing import NDArray

from wsiseg.model_file import onnx_session
from wsiseg.model_file.onnx_session import CPU, PROVIDERS
from wsiseg.prediction import predict
from wsiseg.run import reader_processes
from wsiseg.run.record import SlideRecord

Before = Callable[[NDArray[Any]], None]
NO_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'/layer1/"
    "layer1.0/conv1/Conv' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, onnxruntime::"
    "WaitNotificationFn) Failed to allocate memory for requested buffer of size 268435456"
)
"""What ONNX Runtime says where the memory of a GPU does not suffice."""

_real_process = predict._in_process


def pretend(
    monkeypatch: pytest.MonkeyPatch, device: str = "cuda", *, readers: int = 0, before: Before = lambda _images: None
) -> None:
    """Let there be a device, here and in processes that share slides, and so many processes that read for it.

    It calls `before` with the images that it is asked about.
    """
    real = onnx_session.runtime().InferenceSession

    class Made(real):  # type: ignore[misc,valid-type]  # ONNX Runtime is not typed
        def __init__(self, model: bytes, options: Any, providers: list[Any], **more: Any) -> None:
            super().__init__(model, options, providers=[CPU], **more)
            self.named = [one if isinstance(one, str) else one[0] for one in providers]

        def get_providers(self) -> list[str]:
            return self.named

        def run(self, outputs: list[str], inputs: dict[str, Any]) -> Any:
            if self.named != [CPU]:
                before(inputs["image"])
            return super().run(outputs, inputs)

    monkeypatch.setattr(onnx_session.runtime(), "InferenceSession", Made)
    monkeypatch.setattr(onnx_session, "available_providers", lambda: [PROVIDERS[device], CPU])
    monkeypatch.setattr(predict, "_in_process", _in_made_process)
    monkeypatch.setattr(reader_processes, "cores", lambda: readers + reader_processes._FOR_THE_REST if readers else 1)


def _in_made_process(*given: Any, **settings: Any) -> Iterator[SlideRecord]:
    pretend(pytest.MonkeyPatch())
    return _real_process(*given, **settings)
