"""Foreign graphs: taken in when they can be used, refused with the reason when not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import graphs, limits
from vggdeploy.errors import ModelError

onnx = pytest.importorskip("onnx")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")
reference = pytest.importorskip("onnx.reference")

from vggdeploy.export import adopt  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Save = Callable[..., Path]

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def save(small_graph: Callable[..., Any], tmp_path: Path) -> Save:
    """Writes the small graph, changed by `edit`, and gives the file."""

    def write(edit: Callable[[Any], None] = lambda model: None, opset: int = 17) -> Path:
        model = small_graph(opset)
        edit(model)
        (tmp_path / "in").mkdir(exist_ok=True)
        onnx.save(model, tmp_path / "in" / "foreign.onnx")
        return tmp_path / "in" / "foreign.onnx"

    return write


def run(path: Path) -> np.ndarray:
    return reference.ReferenceEvaluator(onnx.load(path)).run(None, {"image": IMAGES})[0]


def test_same_scores_from_the_adopted_graph(save: Save, out: Path) -> None:
    path = save()
    np.testing.assert_array_equal(run(adopt(path, out)), run(path))
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
    assert {file.name for file in out.iterdir()} == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_opsets_with_per_channel_quantization_are_taken(save: Save, out: Path, opset: int) -> None:
    assert graphs.read(adopt(save(opset=opset), out)).graph.opset_imports[""] == opset


def test_weights_in_a_file_beside_it_are_taken(save: Save, out: Path) -> None:
    path = save()
    expected = run(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    np.testing.assert_array_equal(run(adopt(path, out)), expected)


def test_what_does_nothing_is_removed(save: Save, out: Path) -> None:
    def edit(model: Any) -> None:
        flatten = next(n for n in model.graph.node if n.op_type == "Reshape")
        flatten.input[0] = "p1.same"
        at = list(model.graph.node).index(flatten)
        for node in (
            helper.make_node("AveragePool", ["p1.dropped"], ["p1.same"], kernel_shape=[1, 1]),
            helper.make_node("Dropout", ["p1.identity"], ["p1.dropped"]),
            helper.make_node("Identity", ["p1"], ["p1.identity"]),
        ):
            model.graph.node.insert(at, node)
        model.doc_string = "from /home/someone"

    path = save(edit)
    adopted = adopt(path, out)
    found = {node.op_type for node in graphs.read(adopted).graph}
    assert found == {"Conv", "Relu", "MaxPool", "Reshape", "Gemm"}
    assert b"/home/someone" not in adopted.read_bytes()
    np.testing.assert_array_equal(run(adopted), run(path))


def test_real_average_pool_stays(save: Save, out: Path) -> None:
    def edit(model: Any) -> None:
        pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
        pool.op_type = "AveragePool"

    assert "AveragePool" in {n.op_type for n in graphs.read(adopt(save(edit), out)).graph}


def _first_relu(**changes: Any) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        relu = next(n for n in model.graph.node if n.op_type == "Relu")
        for key, value in changes.items():
            setattr(relu, key, value)
        if "domain" in changes:
            model.opset_import.append(helper.make_opsetid(changes["domain"], 1))

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_first_relu(op_type="FancyRelu", domain="com.acme"), r"com\.acme\.FancyRelu"),
        (
            _first_relu(op_type="NoSuchThing", name="node7"),
            r"unsupported operator at node 'node7': got NoSuchThing",
        ),
    ],
)
def test_unknown_operator_is_named(save: Save, out: Path, edit: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        adopt(save(edit), out)
    assert not list(out.iterdir())


def test_opset_9_is_refused(save: Save, out: Path) -> None:
    with pytest.raises(ModelError, match=r"opset.*got 9, expected 11 to .*version_converter"):
        adopt(save(lambda model: setattr(model.opset_import[0], "version", 9)), out)


def test_opset_of_the_future_is_refused(save: Save, out: Path) -> None:
    with pytest.raises(ModelError, match=r"opset.*got 999"):
        adopt(save(lambda model: setattr(model.opset_import[0], "version", 999)), out)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_file_is_refused(save: Save, out: Path, share: float) -> None:
    path = save()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"foreign\.onnx"):
        adopt(path, out)


@pytest.mark.parametrize("content", [b"not a model at all", bytes(range(256)), b"{}"])
def test_what_is_no_onnx_is_refused(tmp_path: Path, out: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.onnx"):
        adopt(tmp_path / "x.onnx", out)


def test_missing_file_is_named(tmp_path: Path, out: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx does not exist"):
        adopt(tmp_path / "none.onnx", out)


def external(path: Path, location: str) -> Path:
    """Moves the weights of `path` into a data file, whose name in the graph becomes `location`."""
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_missing_data_file_is_named(save: Save, out: Path) -> None:
    path = external(save(), "w.bin")
    (path.parent / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"c0\.weight.*w\.bin"):
        adopt(path, out)


def test_short_data_file_is_named(save: Save, out: Path) -> None:
    path = external(save(), "w.bin")
    data = path.parent / "w.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"missing or cut short.*w\.bin"):
        adopt(path, out)


@pytest.mark.parametrize("up", ["../w.bin", "sub/../../w.bin"])
def test_data_outside_of_the_folder_is_refused(save: Save, out: Path, up: str) -> None:
    path = external(save(), up)
    (path.parent / "w.bin").rename(path.parent.parent / "w.bin")
    with pytest.raises(ModelError, match="outside of its folder"):
        adopt(path, out)


def test_absolute_data_path_is_refused(save: Save, out: Path, tmp_path: Path) -> None:
    path = external(save(), str(tmp_path / "w.bin"))
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="outside of its folder"):
        adopt(path, out)


def test_data_behind_a_link_is_refused(save: Save, out: Path, tmp_path: Path) -> None:
    path = external(save(), "w.bin")
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    (path.parent / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="outside of its folder"):
        adopt(path, out)


def test_data_behind_a_linked_folder_is_refused(save: Save, out: Path, tmp_path: Path) -> None:
    path = external(save(), "up/w.bin")
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    (path.parent / "up").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ModelError, match="outside of its folder"):
        adopt(path, out)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("length", "4"), ("length", "9999")])
def test_data_of_another_place_than_declared_is_refused(
    save: Save, out: Path, key: str, value: str
) -> None:
    path = external(save(), "w.bin")
    model = onnx.load(path, load_external_data=False)
    entries = model.graph.initializer[0].external_data
    (entry,) = [entry for entry in entries if entry.key == key] or [entries.add(key=key)]
    entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"does not lie where it says|cut short|cannot be read"):
        adopt(path, out)


def _declare(model: Any, dims: list[int]) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "dims", [[1 << 60], [1 << 32, 1 << 32], [1 << 30, 1], [-8, -27], [1 << 20], []]
)
def test_a_tensor_that_declares_more_than_it_has_is_refused(
    save: Save, out: Path, dims: list[int], beside: bool
) -> None:
    path = external(save(), "w.bin") if beside else save()
    model = onnx.load(path, load_external_data=False)
    _declare(model, dims)
    path.write_bytes(model.SerializeToString())
    words = "declares what cannot be|does not have what it declares|does not lie where it says"
    with pytest.raises(ModelError, match=f"c0\\.weight.*({words})"):
        adopt(path, out)


@pytest.mark.parametrize("count", [0, 1, 8 * 27 - 1])
def test_a_tensor_of_too_few_numbers_is_refused(save: Save, out: Path, count: int) -> None:
    path = save()
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * (count // 2))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="does not have what it declares"):
        adopt(path, out)


def _inside(kind: str, tensor: Any) -> Callable[[Any], None]:
    """Puts a tensor somewhere where graphs may have one besides their initializers."""
    constant = helper.make_node("Constant", [], ["secret"], value=tensor)

    def edit(model: Any) -> None:
        if kind == "node":
            model.graph.node.insert(0, constant)
        elif kind == "tensors":
            node = helper.make_node("Constant", [], ["secret"])
            node.attribute.append(onnx.AttributeProto(name="x", type=9, tensors=[tensor]))
            model.graph.node.insert(0, node)
        elif kind == "function":
            opsets = [helper.make_opsetid("", 17)]
            made = helper.make_function("own", "F", [], ["secret"], [constant], opsets)
            model.functions.append(made)
            model.opset_import.append(helper.make_opsetid("own", 1))
            model.graph.node.insert(0, helper.make_node("F", [], ["secret"], domain="own"))
        else:
            port = helper.make_tensor_value_info("out", 1, [4])
            body = helper.make_graph([helper.make_node("Identity", ["secret"], ["out"])], "b", [],
                                     [port], [tensor])  # fmt: skip
            yes = helper.make_tensor("yes", 9, [], [True])
            model.graph.initializer.append(yes)
            node = helper.make_node("If", ["yes"], ["o"], then_branch=body, else_branch=body)
            model.graph.node.insert(0, node)

    return edit


@pytest.mark.parametrize("kind", ["node", "tensors", "function", "subgraph"])
@pytest.mark.parametrize("dims", [[4], [1 << 60]])
def test_no_tensor_anywhere_is_out_of_sight(
    save: Save, out: Path, kind: str, dims: list[int]
) -> None:
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=dims, data_location=1)
    tensor.external_data.add(key="location", value="../secret")
    path = save()
    (path.parent.parent / "secret").write_bytes(bytes(16))
    model = onnx.load(path)
    _inside(kind, tensor)(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"'secret' (lies outside of its folder|declares what)"):
        adopt(path, out)


def test_a_graph_of_too_many_parts_is_refused(
    save: Save, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save()
    monkeypatch.setattr(limits, "ONNX_PARTS", 5)
    with pytest.raises(ModelError, match="too large: got more nodes and tensors, expected 5"):
        adopt(path, out)


def test_a_file_that_is_too_large_is_not_read(save: Save, out: Path) -> None:
    path = save()
    with path.open("r+b") as file:
        file.truncate(1 << 31)
    with pytest.raises(ModelError, match="too large: got 2,147,483,648 bytes"):
        adopt(path, out)


def _add_port(kind: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        info = helper.make_tensor_value_info(
            "c0" if kind == "output" else "second", onnx.TensorProto.FLOAT, ["N", 8, 32, 32]
        )
        getattr(model.graph, kind).append(info)

    return edit


@pytest.mark.parametrize("kind", ["input", "output"])
def test_two_ports_are_refused(save: Save, out: Path, kind: str) -> None:
    with pytest.raises(ModelError, match=f"2 {kind}s"):
        adopt(save(_add_port(kind)), out)


def test_graph_without_weights_is_refused(tmp_path: Path, out: Path) -> None:
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["scores"]),
        ],
        "empty",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", kind, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="no convolution or matrix product with constant weights"):
        adopt(tmp_path / "x.onnx", out)


@pytest.mark.parametrize("version", [9, 3])
def test_weights_as_graph_inputs_are_taken(save: Save, out: Path, version: int) -> None:
    """Old exporters list every initializer among the inputs, as IR version 3 wants it."""

    def edit(model: Any) -> None:
        model.ir_version = version
        for tensor in model.graph.initializer:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)

    source = save(edit)
    adopted = graphs.read(adopt(source, out))
    assert [value.name for value in adopted.graph.inputs] == ["image"]
    np.testing.assert_array_equal(run(out / "model.onnx"), run(source))


@pytest.mark.parametrize(
    "dims", [["N", 3, "H", "W"], ["N", 3, 32], ["N", 5, 32, 32]], ids=["free", "rank 3", "5 planes"]
)
def test_input_that_is_no_image_is_refused(save: Save, out: Path, dims: list[Any]) -> None:
    def edit(model: Any) -> None:
        del model.graph.input[:]
        info = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, dims)
        model.graph.input.append(info)

    with pytest.raises(ModelError, match="image"):
        adopt(save(edit), out)


def test_batchnorm_is_folded_into_its_convolution(save: Save, out: Path) -> None:
    rng = np.random.default_rng(5)

    def edit(model: Any) -> None:
        graph = model.graph
        for name, low in (("scale", 0.5), ("shift", -1), ("mean", -1), ("variance", 0.5)):
            values = rng.uniform(low, 2, 16).astype(np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(values, f"bn.{name}"))
        place = next(i for i, node in enumerate(graph.node) if node.output[0] == "c2")
        graph.node[place].output[0] = "c2.conv"
        inputs = ["c2.conv", "bn.scale", "bn.shift", "bn.mean", "bn.variance"]
        graph.node.insert(
            place + 1, onnx.helper.make_node("BatchNormalization", inputs, ["c2"], epsilon=1e-3)
        )

    source = save(edit)
    adopted = adopt(source, out)
    kinds = [node.op_type for node in onnx.load(adopted, load_external_data=False).graph.node]
    assert "BatchNormalization" not in kinds
    # float32 rounds once more where the product of weight and factor is stored: 2^-24 a weight,
    # and a few dozen of these a score.
    np.testing.assert_allclose(run(adopted), run(source), rtol=1e-4, atol=1e-5)
