import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from making.accelerators import NO_MEMORY, pretend
from making.models import (
    color_filter_graph,
    color_filter_model,
    graph_of,
    model_file,
    with_card,
    with_changed_card,
    write_color_filter_model,
)
from wsiseg.model_file import onnx_session
from wsiseg.model_file.model_card import METADATA_KEY, ModelCard, read_card, signed
from wsiseg.model_file.model_file import BUNDLED, ModelFile, model_path
from wsiseg.model_file.onnx_bytes import metadata_spans
from wsiseg.model_file.onnx_session import CPU, PROVIDERS, WINDOW_PX, available_providers
from wsiseg.model_file.self_test import Kind, seeded_pixels
from wsiseg.run.errors import DeviceError, ModelFileError, UsageError, WsisegError

MUTANTS = 200


@pytest.fixture(scope="module")
def good() -> bytes:
    return color_filter_model()


@pytest.fixture
def path(tmp_path: Path, good: bytes) -> Path:
    (tmp_path / "model.onnx").write_bytes(good)
    return tmp_path / "model.onnx"


def refusal(tmp_path: Path, file: bytes) -> str:
    """Open a file that must be refused with exit code 5, and give the sentence."""
    (tmp_path / "bad.onnx").write_bytes(file)
    with pytest.raises(ModelFileError) as caught:
        ModelFile.open(tmp_path / "bad.onnx")
    assert caught.value.exit_code == 5
    assert "bad.onnx" in str(caught.value)
    return str(caught.value)


def test_probability_is_the_share_of_dark_pixels_and_the_map_pools_a_tile(path: Path) -> None:
    tiles = np.full((2, 224, 224, 3), 255, np.uint8)
    tiles[1, :112] = (90, 40, 120)
    with ModelFile.open(path) as model:
        assert model.answer(tiles).probabilities == pytest.approx([0, 0.5])
        cells = model.answer_map(tiles).probabilities
        wide = model.answer_map(np.zeros((1, 64, 320, 3), np.uint8)).probabilities
    assert cells.shape == (2, 7, 7)
    assert cells[:, 3, 3] == pytest.approx([0, 0.5])
    assert (wide.shape, wide.min()) == ((1, 2, 10), pytest.approx(1))


def test_card_and_checksum(path: Path, good: bytes) -> None:
    with ModelFile.open(path) as model:
        assert (model.card.name, model.card.mpp, model.card.tile_px, model.card.map) == (
            "colour filter",
            0.5,
            224,
            "dense",
        )
        assert model.sha256 == hashlib.sha256(good).hexdigest()
        assert model.provenance["sha256"] == model.sha256
        assert model.provider == "CPUExecutionProvider"
        zeroed = good.replace(model.card.sha256.encode(), b"0" * 64)
        assert hashlib.sha256(zeroed).hexdigest() == model.card.sha256


def test_many_threads_get_their_own_answers(path: Path) -> None:
    tiles = np.zeros((16, 224, 224, 3), np.uint8)
    for index, tile in enumerate(tiles):
        tile[: index * 14] = 255
    with ModelFile.open(path) as model, ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda tile: float(model.answer(tile[None]).probabilities[0]), list(tiles) * 4))
    assert alone == pytest.approx([1 - index / 16 for index in range(16)] * 4)


def test_no_images_give_no_answers(path: Path) -> None:
    with ModelFile.open(path) as model:
        assert model.answer(np.zeros((0, 224, 224, 3), np.uint8)).probabilities.shape == (0,)
        assert model.answer_map(np.zeros((0, 224, 256, 3), np.uint8)).probabilities.shape == (0, 7, 8)


def test_images_of_another_kind_are_refused(path: Path) -> None:
    with ModelFile.open(path) as model:
        for shape in ((224, 224, 3), (1, 224, 224, 4), (1, 3, 224, 224)):
            with pytest.raises(UsageError, match="uint8"):
                model.answer(np.zeros(shape, np.uint8))
        with pytest.raises(UsageError, match="float32"):
            model.answer(np.zeros((1, 224, 224, 3), np.float32))
        with pytest.raises(UsageError, match="multiples of 32"):
            model.answer_map(np.zeros((1, 224, 230, 3), np.uint8))
    with pytest.raises(UsageError, match="closed"):
        model.answer(np.zeros((1, 224, 224, 3), np.uint8))


def test_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    for name, sentence in (("missing.onnx", "no such model file"), (".", "holds no model file")):
        with pytest.raises(UsageError, match=sentence):
            ModelFile.open(tmp_path / name)


def test_devices(path: Path) -> None:
    missing = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider"}
    for device, provider in missing.items():
        if provider not in available_providers():
            with pytest.raises(DeviceError, match=device) as caught:
                ModelFile.open(path, device=device)
            assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match="abacus"):
        ModelFile.open(path, device="abacus")
    with ModelFile.open(path, device="auto", threads=1) as model:
        assert model.provider in available_providers()


def test_auto_leaves_a_device_that_gives_other_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does that rounds more than the file was made for."""
    real = onnx_session._session

    class Rounding:
        def __init__(self, session: Any) -> None:
            self.get_inputs, self.get_outputs, self._run = session.get_inputs, session.get_outputs, session.run

        def get_providers(self) -> list[str]:
            return [PROVIDERS["cuda"]]

        def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
            if inputs["image"].shape[1] > WINDOW_PX // 2:  # the trial, which it shall win
                return [np.zeros(1, np.float32)]
            return [values + np.float32(0.03) for values in self._run(outputs, inputs)]

    def session(model: bytes, device: str, *given: Any, **more: Any) -> Any:
        opened = real(model, "cpu", *given, **more)
        return opened if device == "cpu" else Rounding(opened)

    monkeypatch.setattr(onnx_session, "available_providers", lambda: [PROVIDERS["cuda"], PROVIDERS["cpu"]])
    monkeypatch.setattr(onnx_session, "_session", session)
    with pytest.raises(ModelFileError, match=r"off by 0\.03, allowed is 0\.001; try --device cpu"):
        ModelFile.open(path, "cuda")
    with ModelFile.open(path, "auto", 1) as model:
        said = f"cuda is not used: {path}: fails its self-test: off by 0.03, allowed is 0.001"
        assert (model.device, model.reason, model.warnings[0]) == ("cpu", said, said)
        assert model.answer(np.zeros((1, 224, 224, 3), np.uint8)).probabilities == pytest.approx(1)


@pytest.mark.parametrize(
    ("said", "told"),
    [(NO_MEMORY, "Failed to allocate memory"), ("cuDNN is not available. Install cuDNN", "cuDNN is not available")],
)
def test_auto_leaves_a_device_that_cannot_compute(
    path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    def fail(_images: Any) -> None:
        raise RuntimeError(said)

    pretend(monkeypatch, before=fail)
    with pytest.raises(WsisegError, match=r"try --device cpu|more memory"):
        ModelFile.open(path, "cuda")
    with ModelFile.open(path, "auto", 1) as model:  # the trial fails
        assert model.device == "cpu"
        assert model.warnings[0].startswith(f"cuda is not used: {told}")
    monkeypatch.setattr(onnx_session, "speed", lambda session, *_, **__: 9.0 if session.named != [CPU] else 2.0)
    with ModelFile.open(path, "auto", 1) as model:  # the self-test fails
        assert model.device == "cpu"
        assert model.warnings[0] == model.reason
        assert model.reason.startswith(f"cuda is not used: {path}: cannot compute images of 1x224x224x3: {told}")


def test_what_takes_too_much_memory_for_a_trial_is_a_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(images: Any) -> None:
        if len(images) > 1:
            raise RuntimeError(NO_MEMORY)

    pretend(monkeypatch, before=fail)
    with ModelFile.open(path, "cuda", 1) as model, pytest.raises(DeviceError, match="cannot compute made tiles"):
        model.tiles_per_s()


def test_of_a_folder_the_file_is_taken_that_is_faster_here(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"a.onnx": 100.0, "b.onnx": 120.0}
    monkeypatch.setattr(ModelFile, "tiles_per_s", lambda model: speeds[model.path.name])
    with pytest.raises(UsageError, match="holds no model file"):
        ModelFile.open(tmp_path)
    for name in speeds:
        (tmp_path / name).write_bytes(good)
    for faster, taken in ((120.0, "a.onnx"), (130.0, "b.onnx")):  # where they are nearly equal, always the same one
        speeds["b.onnx"] = faster
        with ModelFile.open(tmp_path) as model:
            assert model.path.name == taken
            assert f"a.onnx 100.0, b.onnx {faster}" in model.reason
            assert model.answer(np.zeros((1, 224, 224, 3), np.uint8)).probabilities == pytest.approx(1)
    (tmp_path / "b.onnx").write_bytes(with_changed_card(good, mpp=0.25))
    with pytest.raises(UsageError, match="of different models"):
        ModelFile.open(tmp_path)


FORGED: list[tuple[dict[str, Any], str]] = [
    ({"mpp": -1}, "mpp"),
    ({"mpp": ...}, "mpp"),
    ({"threshold": 2}, "threshold"),
    ({"tile_px": 230}, "tiles of a multiple of 32"),
    ({"positive_class": "cat"}, "not one of its classes"),
    ({"output_stride": 7}, "output_stride"),
    ({"output_stride": None, "map": "tile"}, "cells of its output_stride"),
    ({"output_stride": 16}, "cells"),
    ({"self_test": ...}, "self_test"),
    ({"self_test": {"seed": 0, "tolerance": 0.01, "images": []}}, "self_test"),
    ({"self_test": {"seed": 0, "tolerance": 5, "images": []}}, "tolerance"),
]


@pytest.mark.parametrize(("fields", "words"), FORGED)
def test_forged_cards_are_refused_even_when_signed(
    tmp_path: Path, good: bytes, fields: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, with_changed_card(good, **fields))


def test_metadata_of_another_schema_is_refused(tmp_path: Path, good: bytes) -> None:
    newer = good.replace(b"wsiseg.model/1", b"wsiseg.model/2")
    assert "schema 2, which this version" in refusal(tmp_path, newer)
    other = good.replace(b"wsiseg.model/1", b"another.model/")
    assert "not that of a wsiseg model" in refusal(tmp_path, other)


def test_forged_answers_are_refused_even_when_signed(tmp_path: Path, good: bytes) -> None:
    test = read_card(good).self_test.model_dump(mode="json")
    test["images"][3]["probability"] = 0.5
    assert "fails its self-test" in refusal(tmp_path, with_changed_card(good, self_test=test))
    test = read_card(good).self_test.model_dump(mode="json")
    test["images"][4]["map"][5][2] += 0.01
    assert "fails its self-test" in refusal(tmp_path, with_changed_card(good, self_test=test))


def test_any_change_is_noticed(tmp_path: Path, good: bytes) -> None:
    weights = good.replace(np.float32(140).tobytes(), np.float32(141).tobytes())
    metadata = good.replace(b'"mpp":0.5', b'"mpp":0.6')
    answers = good.replace(b'"seed":0', b'"seed":1')
    for changed in (weights, metadata, answers):
        assert changed != good
        assert "changed after it was written" in refusal(tmp_path, changed)
    assert "cut or damaged" in refusal(tmp_path, good[:-5])
    assert "not an ONNX model" in refusal(tmp_path, b"")
    assert "without wsiseg's metadata" in refusal(tmp_path, color_filter_graph().SerializeToString())


def test_model_of_other_shapes_is_refused(tmp_path: Path, good: bytes) -> None:
    model = onnx.load_from_string(good)
    card = {prop.key: prop.value for prop in model.metadata_props}[METADATA_KEY].replace(
        read_card(good).sha256, "0" * 64
    )
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert "bad.onnx" in refusal(tmp_path, with_card(model, card))
    model = color_filter_graph()
    model.graph.input[0].name = "picture"
    model.graph.node[0].input[0] = "picture"
    assert "inputs and outputs" in refusal(tmp_path, with_card(model, card))
    model = color_filter_graph()
    del model.graph.output[1]
    assert "inputs and outputs" in refusal(tmp_path, with_card(model, card))
    model = color_filter_graph()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 100
    assert "bad.onnx" in refusal(tmp_path, with_card(model, card))


def _external() -> onnx.ModelProto:
    model = color_filter_graph()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "dark")
    onnx.external_data_helper.set_external_data(tensor, "../../secret")
    return model


def _external_attribute() -> onnx.ModelProto:
    model = color_filter_graph()
    tensor = numpy_helper.from_array(np.array(1, np.float32), "inner")
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    return model


def _custom_operator() -> onnx.ModelProto:
    model = color_filter_graph()
    model.graph.node.append(helper.make_node("Anything", [], ["unused"], domain="com.example"))
    return model


def _custom_opset() -> onnx.ModelProto:
    model = color_filter_graph()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


def _loop() -> onnx.ModelProto:
    model = color_filter_graph()
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["unused"], body=body))
    return model


def _function() -> onnx.ModelProto:
    model = color_filter_graph()
    model.functions.append(helper.make_function("", "Mine", [], [], [], model.opset_import))
    return model


def _old_opset() -> onnx.ModelProto:
    model = color_filter_graph()
    model.opset_import[0].version = 12
    return model


def _new_opset() -> onnx.ModelProto:
    model = color_filter_graph()
    model.opset_import[0].version = 99
    return model


def _sparse() -> onnx.ModelProto:
    model = color_filter_graph()
    model.graph.sparse_initializer.add()
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_external, "other files"),
        (_external_attribute, "other files"),
        (_custom_operator, "com.example"),
        (_custom_opset, "com.example"),
        (_loop, "loops or branches"),
        (_function, "functions of its own"),
        (_old_opset, "operator set 12"),
        (_new_opset, "operator set 99"),
        (_sparse, "sparse"),
    ],
)
def test_models_that_do_not_stand_alone_are_refused(
    tmp_path: Path,
    make: Callable[[], onnx.ModelProto],
    words: str,
) -> None:
    model = make()
    helper.set_model_props(model, {METADATA_KEY: '{"schema":"wsiseg.model/1","sha256":"' + "0" * 64 + '"}'})
    assert words in refusal(tmp_path, model.SerializeToString())


def test_more_than_two_gigabytes_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ModelFileError, match="larger than 2 GB"):
        ModelFile.open(tmp_path / "large.onnx")


def test_a_graph_that_cannot_be_computed_is_refused(tmp_path: Path, good: bytes) -> None:
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["probability"], axes=[1], keepdims=0),
        helper.make_node("Reshape", ["probability", "cube"], ["probability_map"]),
    ]
    tensors = [
        numpy_helper.from_array(np.array([-1, 11]), "shape"),  # which does not divide the pixels
        numpy_helper.from_array(np.array([-1, 1, 1]), "cube"),
    ]
    card = ModelCard.model_validate({**read_card(good).model_dump(by_alias=True), "sha256": "0" * 64})
    assert "cannot compute" in refusal(tmp_path, with_card(graph_of(nodes, tensors), card.to_json()))


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    try:
        metadata_spans(data)
    except ValueError:
        return
    onnx.load_from_string(data)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5))
def test_metadata_is_found_as_onnx_finds_it(properties: dict[str, str]) -> None:
    model = color_filter_graph()
    helper.set_model_props(model, properties)
    file = model.SerializeToString()
    found = {key: file[span.start : span.stop].decode() for key, span in metadata_spans(file).items()}
    assert found == properties


def test_seeded_images_are_the_same_everywhere() -> None:
    kinds: tuple[Kind, ...] = ("glass", "uniform", "noise", "texture", "tissue")
    digests = [hashlib.sha256(seeded_pixels(kind, 40, 56, 7).tobytes()).hexdigest()[:8] for kind in kinds]
    assert digests == ["629d05d0", "2dada2da", "a95aed4b", "34794c21", "135ef1c0"]


_OPEN_ALL = """
import sys, time
from pathlib import Path
from wsiseg.run.errors import ModelFileError
from wsiseg.model_file.model_file import ModelFile
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        with ModelFile.open(path, threads=1):
            print(path.name, "opened", time.process_time() - began)
    except ModelFileError as error:
        assert error.exit_code == 5 and path.name in str(error) and len(str(error)) < 1000
        print(path.name, "refused", time.process_time() - began)
"""
# The command line itself, time after time in one process: to start Python anew for each file would take minutes.
_COMMAND = """
import io, json, sys, time
from contextlib import redirect_stderr
from pathlib import Path
from wsiseg.cli import main
for path in sorted(Path(sys.argv[1]).iterdir()):
    sys.argv[1:] = ["doctor", "--model", str(path)]
    began, said, code = time.process_time(), io.StringIO(), None
    with redirect_stderr(said):
        try:
            main()
        except SystemExit as left:
            code = left.code
    print(json.dumps([path.name, code, said.getvalue(), time.process_time() - began]))
"""


def opened(folder: Path) -> dict[str, tuple[str, float]]:
    """Open every file of a folder in another process, which a crash would end."""
    rows = [line.split() for line in in_another_process(_OPEN_ALL, folder)]
    return {name: (fate, float(seconds)) for name, fate, seconds in rows}


def in_another_process(code: str, folder: Path) -> list[str]:
    """Give the lines that a program says of a folder."""
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def mutants(file: bytes, seed: int) -> list[bytes]:
    """Flip bytes, cut, overwrite, swap and remove parts."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(MUTANTS):
        data = bytearray(file)
        place, other = (int(value) for value in random.integers(0, len(file) - 64, 2))
        match index % 5:
            case 0:
                data[place] ^= 1 << int(random.integers(8))
            case 1:
                del data[place:]
            case 2:
                data[place : place + 32] = random.bytes(32)
            case 3:
                data[place : place + 16], data[other : other + 16] = data[other : other + 16], data[place : place + 16]
            case _:
                del data[place : place + int(random.integers(1, 64))]
        if bytes(data) != file:
            made.append(bytes(data))
    return made


def forgeries(file: bytes) -> list[bytes]:
    """Remove and forge metadata, and change shapes; what can be signed again is."""
    test = read_card(file).self_test.model_dump(mode="json")
    test["images"][3]["probability"] = abs(test["images"][3]["probability"] - 0.5)
    cards = [*(fields for fields, _ in FORGED), {"self_test": test}, {"classes": []}, {"sha256": ...}, {"schema": "x"}]
    without = onnx.load_from_string(file)
    del without.metadata_props[:]
    return [
        without.SerializeToString(),
        file.replace(b'"mpp":0.', b'"mpp":1.'),
        file.replace(b'"threshold":0.', b'"threshold":1.'),
        file.replace(read_card(file).sha256.encode(), b"0" * 64),
        *(
            with_changed_card(file, is_signed=fields.keys().isdisjoint({"sha256", "schema"}), **fields)
            for fields in cards
        ),
        *(with_other_shape(file, *change) for change in OTHER_SHAPES),
    ]


OTHER_SHAPES = [
    ("input", 0, 0, 1), ("input", 0, 0, 7), ("input", 0, 1, 100), ("input", 0, 2, 224), ("input", 0, 3, 4),
    ("input", 0, 3, None), ("output", 0, 0, 3), ("output", 0, 0, None), ("output", 1, 0, 2), ("output", 1, 2, None),
]  # fmt: skip


def with_other_shape(file: bytes, kind: str, number: int, axis: int, size: int | None) -> bytes:
    """Declare another size, or one axis less, for an input or output, and sign the file again.

    An output without an axis is not signed: ONNX Runtime infers the axis and answers as before, so that with a new
    checksum nothing would be wrong with the file.
    """
    model = onnx.load_from_string(file)
    dimensions = getattr(model.graph, kind)[number].type.tensor_type.shape.dim
    if size is None:
        del dimensions[axis]
    else:
        dimensions[axis].dim_value = size
    if kind == "output" and size is None:
        return bytes(model.SerializeToString())
    card = {prop.key: prop.value for prop in model.metadata_props}[METADATA_KEY]
    return with_card(model, card.replace(read_card(file).sha256, "0" * 64))


@pytest.mark.parametrize("kind", ["made", pytest.param("bundled", marks=pytest.mark.slow)])
def test_two_hundred_mutants_are_refused_by_the_command_line(tmp_path: Path, good: bytes, kind: str) -> None:
    file = good if kind == "made" else model_path("default").read_bytes()
    files = [*forgeries(file), *mutants(file, seed=1), *mutants(file, seed=2)][:MUTANTS]
    for index, data in enumerate(files):
        assert data != file
        (tmp_path / f"{index:03}.onnx").write_bytes(data)
    fates = [json.loads(line) for line in in_another_process(_COMMAND, tmp_path)]
    assert len(fates) == MUTANTS
    for name, code, said, seconds in fates:
        assert (code, seconds < 5) == (5, True), f"{name}: {code} after {seconds:.1f} s: {said}"
        assert said.startswith("wsiseg: ")
        assert name in said
        assert said.count("\n") == 1
        assert len(said) < 1000


def test_mutants_that_are_signed_again_neither_crash_nor_hang(tmp_path: Path, good: bytes) -> None:
    made = 0
    for index, data in enumerate([*mutants(good, seed=3), *mutants(good, seed=4)]):
        zeroed = data.replace(read_card(good).sha256.encode(), b"0" * 64)
        try:
            (tmp_path / f"{index:03}.onnx").write_bytes(signed(zeroed))
            made += 1
        except ValueError:
            continue  # The bytes are no ONNX file any more, which the test above shows.
    fates = opened(tmp_path)
    assert len(fates) == made > 50
    assert max(seconds for _, seconds in fates.values()) < 5


def test_a_model_is_opened_without_torch_and_onnx(path: Path) -> None:
    code = (
        "import sys; from wsiseg.model_file.model_file import ModelFile; ModelFile.open(sys.argv[1]).close();"
        "assert not {'torch', 'onnx', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=300)


def test_tile_models_have_no_map(tmp_path: Path) -> None:
    graph = color_filter_graph()
    del graph.graph.output[1]
    path = tmp_path / "m.onnx"
    path.write_bytes(model_file(graph, name="x", mpp=0.5, tile_px=224, architecture="none"))
    images = np.zeros((1, 224, 224, 3), np.uint8)
    with ModelFile.open(path) as model:
        assert model.answer(images).probabilities == pytest.approx([1])
        with pytest.raises(UsageError, match="no map"):
            model.answer_map(images)


def test_the_published_schema_is_that_of_the_card() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "model-file.schema.json"
    schema = ModelCard.model_json_schema(by_alias=True)
    assert json.loads(page.read_text(encoding="utf-8")) == schema, "write ModelCard.model_json_schema() there"
    jsonschema.validate(json.loads(ModelCard.model_validate(example_card()).to_json()), schema)


def example_card() -> dict[str, Any]:
    return read_card(color_filter_model()).model_dump(by_alias=True)


def test_writing_and_opening_gives_the_card_back(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "mpp": 0.25,
        "threshold": 0.3,
        "alpha": 0.2,
        "beta": 0.4,
        "figures": {"auc": {"value": 0.8}},
        "licence": "CC0-1.0",
    }
    with ModelFile.open(write_color_filter_model(tmp_path / "m.onnx", **fields)) as model:
        assert model.card.model_dump(include=set(fields)) == fields


def test_the_bundled_model_opens_by_its_name_and_has_its_page_beside_it() -> None:
    path = model_path(BUNDLED)
    assert path.name == "default.onnx"
    with ModelFile.open(path) as model:
        assert (model.card.map, model.card.precision) == ("dense", "int8")
        assert model.sha256 in path.with_suffix(".md").read_text(encoding="utf-8")
