import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from wsiseg.exporting.quantization import Range, quantised, tensors
from wsiseg.model_file.onnx_session import has_fast_int8, run, start


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
    whole = quantised(model, ["layer"], {"image": Range(0, 1), "sums": Range(0, 64)})
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
    assert "sum" not in tensors(model, ["first", "second"])
    image = random.uniform(-1, 1, (8, 4, 4, 4)).astype(np.float32)
    ranges = {name: Range(-4, 4) for name in ("image", "one", "two")} | {"clamped": Range(0, 4)}
    whole = quantised(model, ["first", "second"], ranges)
    kinds = [node.op_type for node in whole.graph.node]
    assert "Relu" not in kinds
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
