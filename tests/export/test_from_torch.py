"""Export: the ONNX graph computes what torch does, and holds nothing else."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import graphs, reference, targets, topology
from vggdeploy.contracts import RunOptions

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
torch = pytest.importorskip("torch")

from vggdeploy.export import export  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = {
    # arch, side of the image, biases of zeros
    "plain": ("vgg11", 224, False),
    "batchnorm": ("vgg11_bn", 224, False),
    "zero-bias": ("vgg11", 224, True),
    "double": ("vgg11", 448, False),
    "uneven": ("vgg11", 96, False),
}


@pytest.fixture(scope="module")
def exported(
    random_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """(weights, graph) of each case, exported once."""
    done: dict[str, tuple[Any, Path]] = {}

    def make(case: str) -> tuple[Any, Path]:
        if case not in done:
            arch, side, zero = CASES[case]
            folder = tmp_path_factory.mktemp(case)
            network = topology.vgg(arch, num_classes=10, input_size=(side, side), width_divisor=32)
            path = random_weights(network, folder / "w.safetensors", zero_bias=zero)
            weights = reference.locate(str(path), input_size=(side, side))
            out = folder / "graph"
            out.mkdir()
            done[case] = weights, export(reference.load(weights), weights.network, out)
        return done[case]

    return make


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in graphs.read(path).graph)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_torchs(exported: Callable[..., Any], case: str, batch: int) -> None:
    pytest.importorskip("openvino")
    weights, path = exported(case)
    images = np.random.default_rng(batch).random((batch, *weights.network.input), np.float32)
    expected = reference.outputs(reference.load(weights), images)
    with targets.get("ov-fp32").open_graph(path, (), RunOptions(batch=batch)) as runner:
        found = runner.scores(images).copy()
    # Both sum in float32, in another order: eleven layers, each some 2^-24 times the root of the
    # number of terms (under 500), are well under 1e-4 of the largest score.
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(expected).max() > 0.1
    if batch > 1:
        assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("case", ["plain", "batchnorm", "zero-bias"])
def test_graph_is_the_network_and_nothing_else(exported: Callable[..., Any], case: str) -> None:
    _, path = exported(case)
    assert kinds(path) == {
        "Conv": 8, "Relu": 10, "MaxPool": 5, "Reshape": 1, "Gemm": 3
    }  # fmt: skip


def test_real_pooling_stays(exported: Callable[..., Any]) -> None:
    """At 448 pixels fourteen positions become seven."""
    _, path = exported("double")
    (pool,) = (n for n in graphs.read(path).graph if n.op_type == "AveragePool")
    assert tuple(graphs.attribute(pool, "kernel_shape", ())) == (2, 2)


@pytest.mark.parametrize("case", CASES)
def test_batch_is_free_and_the_rest_is_fixed(exported: Callable[..., Any], case: str) -> None:
    weights, path = exported(case)
    found = graphs.signature(graphs.read(path))
    assert (found.input.name, found.output.name) == ("image", "logits")
    assert found.input.shape == (None, *weights.network.input)
    assert found.output.shape == (None, 10)


@pytest.mark.parametrize("case", CASES)
def test_checker_passes_with_weights_beside_the_graph(
    exported: Callable[..., Any], case: str
) -> None:
    _, path = exported(case)
    onnx.checker.check_model(str(path), full_check=True)
    assert {file.name for file in path.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert path.stat().st_size < 100_000


def test_parameters_keep_torchs_names(exported: Callable[..., Any]) -> None:
    weights, path = exported("plain")
    tensors = graphs.read(path).graph.initializers
    for name, value in reference.load(weights).state_dict().items():
        np.testing.assert_array_equal(tensors[name].const_value.numpy(), value.numpy())


def test_file_says_nothing_of_where_it_was_made(exported: Callable[..., Any]) -> None:
    weights, path = exported("plain")
    content = path.read_bytes()
    for word in (os.fsencode(Path.cwd()), os.fsencode(weights.path.parent), b".py", b"pkg.torch",
                 b"torch.fx", b"File "):  # fmt: skip
        assert word not in content
    model = onnx.load(path, load_external_data=False)
    assert model.producer_name == "vggdeploy"
    assert not model.producer_version
    assert not model.metadata_props
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert not model.functions


def test_same_weights_same_bytes(exported: Callable[..., Any], tmp_path: Path) -> None:
    weights, path = exported("plain")
    again = export(reference.load(weights), weights.network, tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        assert (again.parent / name).read_bytes() == (path.parent / name).read_bytes()
