"""What every target promises, in one suite; and what is OpenVINO's own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import bundle, execution, parity, pipeline, targets
from vggdeploy.contracts import CompileOptions, RunOptions
from vggdeploy.errors import ConfigError, MissingError, ModelError, RunnerError
from vggdeploy.manifest import GRAPH
from vggdeploy.targets import openvino_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vggdeploy.bundle import Bundle

AT_LEAST_DB = {"fp32": 90, "bf16": 25, "fp16": 25, "int8": 15, "int8-w4": 15}
"""How near a target's scores are to the reference's. fp32 differs by the order of its sums; a bf16
significand has 8 bits, through sixteen layers; int8 loses most where a CPU without VNNI saturates,
and 4-bit weights are 20 dB from the float ones in each of three layers. A wrong layout or a lost layer has no decibels at all."""


@pytest.fixture(scope="module", params=targets.REGISTRY)
def built(
    request: pytest.FixtureRequest,
    slim: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A bundle of the slim network for each target that can be had here."""
    name = request.param
    here = targets.get(name).availability()
    if not here.ok:
        pytest.skip(f"{here.reason}: {here.fix}")
    out = tmp_path_factory.mktemp("targets") / name
    pipeline.build(slim(target=name, out=out))
    return bundle.open_bundle(out)


@pytest.fixture
def opened(built: Bundle) -> Callable[..., Any]:
    """A runner that is not yet entered; skips where the device cannot run it."""

    def make(**options: Any) -> Any:
        try:
            return targets.get(built.target).open(built, RunOptions(**options))
        except MissingError as error:
            pytest.skip(str(error))

    return make


@pytest.fixture
def images(built: Bundle) -> np.ndarray:
    return built.preprocess.arithmetic(built.probes().images[:6])


def scores(runner: Any, batch: np.ndarray) -> np.ndarray:
    return runner.scores(np.ascontiguousarray(batch)).copy()


def test_engine_files_are_those_of_the_manifest(built: Bundle) -> None:
    assert built.engine
    assert all(path.is_file() and path.parent == built.path for path in built.engine)
    assert built.manifest["precision"] == targets.REGISTRY[built.target].precision


def test_scores_are_near_to_the_references(
    built: Bundle, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened() as runner:
        found = np.concatenate([scores(runner, image[None]) for image in images])
    expected = built.probes().reference[: len(images)]
    assert parity.sqnr_db(expected, found).min() > AT_LEAST_DB[built.manifest["precision"]]
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_batches_of_two_give_the_same(opened: Callable[..., Any], images: np.ndarray) -> None:
    with opened() as runner:
        single = np.concatenate([scores(runner, image[None]) for image in images[:2]])
    with opened(batch=2) as runner:
        assert runner.input.shape == (2, *images.shape[1:])
        assert runner.outputs[0].shape == (2, 1000)
        pair = scores(runner, images[:2])
    # Another batch may take another kernel, which sums in another order; where that moves a value
    # over the edge of an 8-bit step, a little more.
    assert parity.sqnr_db(single, pair).min() > 30
    assert (single.argmax(1) == pair.argmax(1)).all()


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_infer_many_is_infer_in_the_same_order(
    opened: Callable[..., Any], images: np.ndarray, goal: str
) -> None:
    with opened(goal=goal) as runner:
        name = runner.outputs[0].name
        one = [scores(runner, image[None]) for image in images]
        many = [out[name].copy() for out in runner.infer_many(image[None] for image in images)]
    assert len(many) == len(one)
    for left, right in zip(one, many, strict=True):
        np.testing.assert_array_equal(left, right)
    assert len({array.tobytes() for array in one}) == len(images)


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_every_query_that_was_started_ends_once_with_its_own_scores(
    opened: Callable[..., Any], images: np.ndarray, goal: str
) -> None:
    found: dict[int, np.ndarray] = {}

    def keep(turn: int) -> Callable[[Any], None]:
        def done(out: Any) -> None:
            assert turn not in found
            found[turn] = out[runner.outputs[0].name].copy()

        return done

    with opened(goal=goal) as runner:
        one = [scores(runner, image[None]) for image in images]
        for turn in range(3 * len(images)):
            runner.start(images[turn % len(images)][None], keep(turn))
        runner.drain()
    assert sorted(found) == list(range(3 * len(images)))
    for turn, array in found.items():
        np.testing.assert_array_equal(array, one[turn % len(images)])


def test_what_happens_at_a_query_s_end_comes_out_of_drain(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    def broken(out: Any) -> None:
        raise OSError("the disk is gone")

    with opened(goal="throughput") as runner:
        with pytest.raises(OSError, match="the disk is gone"):
            runner.start(images[:1], broken)
            runner.drain()
        runner.drain()
        assert np.isfinite(scores(runner, images[:1])).all()


def test_infer_many_of_nothing_is_nothing(opened: Callable[..., Any]) -> None:
    with opened(goal="throughput") as runner:
        assert list(runner.infer_many([])) == []


def test_infer_many_can_be_left_early(opened: Callable[..., Any], images: np.ndarray) -> None:
    with opened(goal="throughput") as runner:
        results = runner.infer_many(image[None] for image in images)
        next(results)
        results.close()
        assert np.isfinite(scores(runner, images[:1])).all()


def test_an_error_in_the_images_comes_through(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield images[:1]
        raise OSError("the disk is gone")

    with opened(goal="throughput") as runner:
        with pytest.raises(OSError, match="the disk is gone"):
            list(runner.infer_many(broken()))
        assert np.isfinite(scores(runner, images[:1])).all()


def test_buffers_hold_until_the_next_call(opened: Callable[..., Any], images: np.ndarray) -> None:
    with opened() as runner:
        held = runner.scores(images[:1])
        before = held.copy()
        np.testing.assert_array_equal(held, before)
        other = runner.scores(images[1:2]).copy()
        assert not np.array_equal(before, other)
        if not runner.reuses_buffers:
            np.testing.assert_array_equal(held, before)


def test_scores_are_float32_of_the_shape_that_was_said(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened() as runner:
        outputs = runner.infer(images[:1])
        assert list(outputs) == [spec.name for spec in runner.outputs]
        assert all(spec.accepts(outputs[spec.name]) for spec in runner.outputs)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:, :, 1:],
        lambda x: x[0],
        lambda x: np.concatenate([x, x]),
        lambda x: x.transpose(0, 2, 3, 1),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.uint8),
    ],
    ids=["height", "rank", "batch", "layout", "float64", "uint8"],
)
def test_what_does_not_fit_is_refused_with_got_and_expected(
    opened: Callable[..., Any], images: np.ndarray, spoil: Callable[[Any], Any]
) -> None:
    batch = spoil(images[:1])
    with opened() as runner:
        for attempt in (lambda: runner.infer(batch), lambda: list(runner.infer_many([batch]))):
            with pytest.raises(RunnerError) as caught:
                attempt()
            assert str(list(batch.shape)) in str(caught.value.got)
            assert str(batch.dtype) in str(caught.value.got)
            assert str(caught.value.expected) == "float32 [1, 3, 224, 224]"


def test_use_before_and_after_with_is_refused(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    runner = opened()
    for _ in range(2):
        with pytest.raises(RunnerError, match="is not open"):
            runner.infer(images[:1])
        with pytest.raises(RunnerError, match="is not open"):
            list(runner.infer_many([images[:1]]))
        with runner:
            pass


def test_opening_twice_is_refused_and_again_is_not(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    runner = opened()
    with runner, pytest.raises(RunnerError, match="open already"):
        runner.__enter__()
    with runner:
        assert np.isfinite(scores(runner, images[:1])).all()


def test_an_error_inside_closes_it(opened: Callable[..., Any], images: np.ndarray) -> None:
    runner = opened()
    with pytest.raises(KeyError), runner:
        raise KeyError
    with pytest.raises(RunnerError, match="is not open"):
        runner.infer(images[:1])


def test_probes_have_work_and_run(built: Bundle) -> None:
    try:
        probes = targets.get(built.target).probes(RunOptions(batch=4))
    except MissingError as error:
        pytest.skip(str(error))
    if not any(probe.macs for probe in probes) and built.target.startswith("trt-"):
        pytest.skip("a GPU's peak is from a table")
    assert any(probe.macs for probe in probes)
    assert any(probe.bytes for probe in probes)
    # MACs and bytes are those of the probe's own input, whatever batch is measured.
    assert all(probe.runner.input.shape[0] != 4 for probe in probes)
    assert all(probe.precision for probe in probes if probe.macs)
    for probe in probes[:1]:
        with probe.runner as runner:
            shape = [side or 1 for side in runner.input.shape]
            assert np.isfinite(runner.scores(np.ones(shape, np.float32))).all()


def test_unknown_target_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        targets.get("trt-int5")
    assert all(name in str(caught.value) for name in targets.REGISTRY)


def test_device_that_is_not_there_is_named(slim_bundle: Path) -> None:
    with pytest.raises(MissingError, match=r"no device NPU\.7.*CPU"):
        targets.get("ov-int8").open(bundle.open_bundle(slim_bundle), RunOptions(device="NPU.7"))
    with pytest.raises(MissingError, match=r"no device cpu, but .*CPU"):
        execution.choose(bundle.open_bundle(slim_bundle), "cpu")


def test_a_graph_without_an_input_is_no_network(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    ov = openvino_module.load()
    one = ov.opset13.constant(np.ones(1, np.float32))
    ov.save_model(ov.Model([one], [], "nothing"), tmp_path / "model.xml")
    with pytest.raises(ModelError, match="is no network: got 0 inputs and 1 outputs"):
        targets.get("ov-fp32").open_graph(tmp_path / "model.xml", (), RunOptions())


def test_int8_engine_runs_in_8_bits_with_no_quantize_between(slim_bundle: Path) -> None:
    runner = targets.get("ov-int8").open(bundle.open_bundle(slim_bundle), RunOptions())
    with runner:
        layers = runner.executed_layers()
    counts = Counter(layer["type"] for layer in layers)
    assert counts["Convolution"] == 13
    assert counts["Pooling"] == 5
    assert counts["FullyConnected"] == 3
    assert not [layer for layer in layers if "uantize" in layer["type"]]
    for layer in layers:
        if layer["type"] in ("Convolution", "FullyConnected"):  # of these, the weights' type
            assert layer["precision"] in ("u8", "i8"), layer
    pools = [layer["precision"] for layer in layers if layer["type"] == "Pooling"]
    assert pools[:4] == ["u8"] * 4  # the last one stands in front of a product, which reads floats
    # What quantizes the image may stand alone, in front of the first convolution; after that
    # every quantize is part of the layer that it follows.
    types = [layer["type"] for layer in layers]
    assert "Subgraph" not in types[types.index("Convolution") :]
    assert "Eltwise" not in types[types.index("Convolution") :]


@pytest.fixture(scope="module")
def w4_bundle(slim: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("w4") / "slim"
    pipeline.build(slim(target="ov-int8-w4", out=out, cpu_isa="avx2"))
    return bundle.open_bundle(out)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_w4_engine_runs_convolutions_in_8_bits_and_products_from_4(
    w4_bundle: Bundle, batch: int, goal: str
) -> None:
    with targets.get("ov-int8-w4").open(w4_bundle, RunOptions(batch=batch, goal=goal)) as runner:
        layers = runner.executed_layers()
    kinds = [layer["type"] for layer in layers]
    for layer in layers:
        if layer["type"] == "Convolution":
            assert layer["precision"] in ("u8", "i8"), layer
        elif layer["type"] == "FullyConnected":
            # The weights' type; f32 where the plugin has unfolded them.
            assert layer["precision"] in ("i4", "u4"), layer
    assert (kinds.count("Convolution"), kinds.count("FullyConnected")) == (13, 3)
    assert not [kind for kind in kinds if "uantize" in kind]
    assert "Subgraph" not in kinds[kinds.index("Convolution") :]
    assert "Eltwise" not in kinds[kinds.index("Convolution") :]


def test_w4_graph_is_what_the_engine_was_compiled_from(w4_bundle: Bundle, tmp_path: Path) -> None:
    target = targets.get("ov-int8-w4")
    files = target.compile(w4_bundle.path / GRAPH, CompileOptions(), tmp_path)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in w4_bundle.engine]


def test_w4_convolutions_are_for_the_cpu_and_products_are_not(w4_bundle: Bundle) -> None:
    target = targets.get("ov-int8-w4")
    vnni, avx2 = (target.dialect_for(isa) for isa in ("vnni", "avx2"))
    assert vnni is not None
    assert avx2 is not None
    assert (vnni.weight.qmax, avx2.weight.qmax) == (127, 64)
    assert (vnni.image_weight.qmax, avx2.image_weight.qmax) == (64, 64)
    assert vnni.matrix == avx2.matrix
    assert w4_bundle.manifest["build"]["cpu_isa"] == "avx2"


@pytest.mark.parametrize(("built_for", "cautioned"), [("vnni", True), ("avx2", False)])
@pytest.mark.parametrize("name", ["ov-int8", "ov-int8-w4"])
def test_a_cpu_that_saturates_is_cautioned_about(
    name: str, built_for: str, cautioned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vggdeploy.machine.saturates", lambda: True)
    opened = bundle.Bundle(tmp_path, {"build": {"cpu_isa": built_for}})
    cautions = targets.get(name).cautions(opened, RunOptions())
    assert bool([said for said in cautions if "--cpu-isa avx2" in said]) is cautioned


def test_dynamic_quantization_is_asked_of_the_cpu_alone() -> None:
    pytest.importorskip("openvino")
    from vggdeploy.targets.openvino import OpenVINO

    def settings(target: str, device: str) -> dict[str, Any]:
        found = targets.get(target)
        assert isinstance(found, OpenVINO)
        return found.configuration(RunOptions(device=device))

    for target, group in (("ov-int8", 128), ("ov-int8-w4", 64)):
        assert settings(target, "CPU")["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == group
        assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in settings(target, "GPU.0")
    # What runs a quantized graph as it is defined adds no rounding of its own.
    assert settings("ov-fp32", "CPU")["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in settings("ov-fp32", "GPU.0")


@pytest.mark.parametrize("name", ["ov-int8", "ov-int8-w4"])
def test_integer_engine_is_the_size_of_its_weights(
    name: str, slim_bundle: Path, w4_bundle: Bundle
) -> None:
    opened = bundle.open_bundle(slim_bundle) if name == "ov-int8" else w4_bundle
    weights = sum(layer["weight_bytes"] for layer in opened.budget()["layers"])
    # The slim network has 0.2 MB of description to 2.6 MB of 8-bit weights, or 1.5 MB with 4 bits.
    assert weights < opened.engine_bytes < weights + 300_000


def test_w4_engine_has_4_bits_where_int8_has_8(slim_bundle: Path, w4_bundle: Bundle) -> None:
    eight, four = bundle.open_bundle(slim_bundle), w4_bundle
    products = sum(
        layer["params"] for layer in eight.budget()["layers"] if layer["kind"] == "linear"
    )
    saved = eight.engine_bytes - four.engine_bytes
    # Of each weight half a byte, less a float16 scale for every 64 of the largest layer's inputs.
    assert saved == pytest.approx((0.5 - 2 / 64) * products, rel=0.03)
