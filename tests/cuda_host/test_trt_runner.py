"""The TensorRT runner: what `contracts.Runner` promises, in which order the device is asked, and
that results are right though everything on the device is deferred."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from double import Api, Context, Info

from vggdeploy.errors import ConfigError, ModelError, RunnerError
from vggdeploy.manifest import GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from host import Host


def scores(runner: Any, batch: np.ndarray) -> np.ndarray:
    return runner.scores(batch)


@pytest.mark.parametrize("own_graphs", [False, True], ids=["tensorrt", "rtx"])
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_scores_are_the_graphs(
    opened: Callable[..., Any],
    images: np.ndarray,
    expected: np.ndarray,
    goal: str,
    own_graphs: bool,
) -> None:
    with opened(Api(own_graphs=own_graphs), goal=goal) as runner:
        one = [scores(runner, image[None]) for image in images]
        many = [out["scores"] for out in runner.infer_many(image[None] for image in images)]
    np.testing.assert_allclose(np.concatenate(one), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(many), np.concatenate(one))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batches_within_the_profile(
    opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray, batch: int
) -> None:
    with opened(batch=batch) as runner:
        assert runner.input.shape == (batch, 3, 32, 32)
        assert runner.outputs[0].shape == (batch, 10)
        found = scores(runner, images[:batch])
    np.testing.assert_allclose(found, expected[:batch], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 5, 1024])
def test_a_batch_outside_of_the_profile_names_it_and_the_flag(
    opened: Callable[..., Any], batch: int
) -> None:
    with pytest.raises(ConfigError) as caught, opened(batch=batch):
        pass
    assert caught.value.got == f"--batch {batch}"
    assert caught.value.expected == "1 to 4, tuned for 2"
    assert "--max-batch" in str(caught.value)


def test_an_engine_of_one_batch_takes_that_alone(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    fixed = {"image": Info("image", True, (2, 3, 32, 32)), "scores": Info("scores", False, (2, 10))}
    with pytest.raises(ConfigError, match=r"got --batch 1, expected 2 "):
        opened(Api(said=fixed)).__enter__()
    with opened(Api(said=fixed), batch=2) as runner:
        assert scores(runner, images[:2]).shape == (2, 10)


def test_half_precision_outside_is_taken_and_given_as_single(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    class Half(Context):
        def _run(self) -> None:
            values = np.frombuffer(self.buffer("image", 3 * 32 * 32), np.float16)
            target = np.frombuffer(self.buffer("scores", 10), np.float16)
            target[...] = values[:10]

        def buffer(self, name: str, count: int) -> Any:
            import ctypes

            return (ctypes.c_uint16 * count).from_address(self.addresses[name])

    api = Api(
        said={
            "image": Info("image", True, (-1, 3, 32, 32), "float16"),
            "scores": Info("scores", False, (-1, 10), "float16"),
        }
    )
    api.context_kind = Half
    with opened(api) as runner:
        found = scores(runner, images[:1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], images[0].ravel()[:10].astype(np.float16))


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_pixels_are_taken_as_they_are(
    opened: Callable[..., Any],
    small_graph: Callable[..., Any],
    tmp_path: Path,
    goal: str,
) -> None:
    """A byte a value on both sides, and the scores of the graph for what the host would have made
    of them."""
    import onnx

    from vggdeploy import graphs, pixels, targets
    from vggdeploy.contracts import RunOptions, TensorSpec
    from vggdeploy.preprocess import Preprocess

    onnx.save(small_graph(), tmp_path / "plain.onnx")
    recipe, model = Preprocess((32, 32), channels="bgr"), graphs.read(tmp_path / "plain.onnx")
    pixels.take(model, recipe, "float32")
    graphs.write(model, tmp_path / "pixels.onnx", external=False)
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with targets.get("ov-fp32").open_graph(
        tmp_path / "plain.onnx", (), RunOptions(batch=8)
    ) as plain:
        wanted = plain.scores(recipe.arithmetic(images)).copy()
    with opened(path=tmp_path / "pixels.onnx", batch=2, goal=goal) as runner:
        assert runner.input == TensorSpec("image", (2, 32, 32, 3), "uint8")
        assert runner._lanes[0].slot.tensors["image"].host.array.nbytes == 2 * 32 * 32 * 3
        with pytest.raises(RunnerError, match=r"got float32 .* expected uint8 \[2, 32, 32, 3\]"):
            runner.infer(recipe.arithmetic(images[:2]))
        pairs = [images[at : at + 2] for at in (0, 2, 4, 6)]
        one = np.concatenate([scores(runner, pair) for pair in pairs])
        many = np.concatenate([out["scores"] for out in runner.infer_many(iter(pairs))])
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(many, one)


def test_results_outlive_the_runner(opened: Callable[..., Any], images: np.ndarray) -> None:
    with opened(goal="throughput") as runner:
        assert not runner.reuses_buffers
        first = scores(runner, images[:1])
        many = [out["scores"] for out in runner.infer_many([images[1:2], images[2:3]])]
        before = [array.copy() for array in (first, *many)]
        scores(runner, images[3:4])
        pinned = [lane.slot.tensors["scores"].host.array for lane in runner._lanes]
        assert not any(np.shares_memory(first, array) for array in pinned)
        del pinned
    for array, copy in zip((first, *many), before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.owndata


def test_a_batch_may_be_reused_at_once(
    opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    """The queue copies its input, though it is executed later."""
    buffer = np.empty((1, 3, 32, 32), np.float32)

    def reused() -> Iterator[np.ndarray]:
        for image in images:
            buffer[...] = image
            yield buffer

    with opened(goal="throughput") as runner:
        found = [out["scores"] for out in runner.infer_many(reused())]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-5)


def test_arrays_that_are_not_contiguous(
    opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    turned = np.ascontiguousarray(images[:2].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with opened(batch=2) as runner:
        np.testing.assert_allclose(scores(runner, turned), expected[:2], rtol=1e-5, atol=1e-5)


def test_a_latency_query_is_copy_engine_copy_with_events_around_the_engine(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened() as runner:
        host.set("trace", 1)
        scores(runner, images[:1])
        called = [line.split()[0] for line in host.trace()]
    assert called == [
        "cuMemcpyHtoDAsync",
        "cuEventRecord",
        "cuGraphLaunch",
        "cuEventRecord",
        "cuMemcpyDtoHAsync",
        "cuStreamSynchronize",
    ]


def test_a_second_query_is_queued_before_the_first_is_waited_for(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened(goal="throughput") as runner:
        assert runner.depth == 2
        host.set("trace", 1)
        list(runner.infer_many(image[None] for image in images[:3]))
        called = [tuple(line.split()) for line in host.trace()]
    first, second = dict.fromkeys(stream for _, stream in called)
    marks = [call for call in called if call[0] in ("cuMemcpyHtoDAsync", "cuStreamSynchronize")]
    assert marks == [
        ("cuMemcpyHtoDAsync", first),
        ("cuMemcpyHtoDAsync", second),
        ("cuStreamSynchronize", first),
        ("cuMemcpyHtoDAsync", first),
        ("cuStreamSynchronize", second),
        ("cuStreamSynchronize", first),
    ]


def test_device_time_is_apart_from_the_walls(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    import time

    class Slow(Context):
        def _run(self) -> None:
            time.sleep(0.02)

    api = Api()
    api.context_kind = Slow
    with opened(api) as runner:
        assert runner.details["device_seconds"] is None
        walls = []
        for _ in range(2):
            start = time.perf_counter()
            scores(runner, images[:1])
            walls.append(time.perf_counter() - start)
            assert 0.02 <= runner.details["device_seconds"] <= walls[-1]
    assert 0.02 <= runner.details["device_seconds_p50"] <= max(walls)


def test_details_tell_device_and_graph(opened: Callable[..., Any]) -> None:
    with opened(goal="throughput") as runner:
        assert runner.details == {
            "device": "Host memory 0",
            "compute_capability": "8.6",
            "driver": "13.0",
            "flavour": "tensorrt",
            "version": "10.3.0",
            "requests": 2,
            "cuda_graph": "captured",
            "device_seconds": None,
        }
    with opened(Api(own_graphs=True)) as runner:
        assert runner.details["cuda_graph"] == "TensorRT's own"


def test_without_graphs_the_engine_is_queued_itself(
    host: Host, opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    host.set("capture", 0)
    with opened() as runner:
        assert (
            runner.details["cuda_graph"]
            == "none: cuStreamBeginCapture failed: operation not supported"
        )
        host.set("trace", 1)
        found = scores(runner, images[:1])
        called = [line.split()[0] for line in host.trace()]
    assert "cuLaunchHostFunc" in called
    assert "cuGraphLaunch" not in called
    np.testing.assert_allclose(found, expected[:1], rtol=1e-5, atol=1e-5)


def test_an_engine_that_cannot_be_captured_is_executed(
    opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    class Never(Context):
        def execute_async_v3(self, stream: int) -> bool:
            self.fresh = True
            return super().execute_async_v3(stream)

    api = Api()
    api.context_kind = Never
    with opened(api, goal="throughput") as runner:
        assert runner.details["cuda_graph"].startswith("none: ")
        found = [out["scores"] for out in runner.infer_many(image[None] for image in images)]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-5)


def test_infer_many_of_nothing_is_nothing(opened: Callable[..., Any]) -> None:
    with opened(goal="throughput") as runner:
        assert list(runner.infer_many([])) == []


def test_infer_many_can_be_left_early(
    host: Host, opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    with opened(goal="throughput") as runner:
        results = runner.infer_many(image[None] for image in images)
        next(results)
        host.set("trace", 1)
        results.close()
        # It waits for what is in flight, and nothing more is begun.
        assert [line.split()[0] for line in host.trace()] == ["cuStreamSynchronize"]
        assert "current" not in host.live()
        found = scores(runner, images[5:6])
    np.testing.assert_allclose(found, expected[5:6], rtol=1e-5, atol=1e-5)


def test_a_queue_that_outlives_its_runner_is_refused(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened(goal="throughput") as runner:
        fed = iter(image[None] for image in images[:2])
        results = runner.infer_many(fed)
        next(results)
    with pytest.raises(RunnerError, match="is not open"):
        next(results)


def test_an_error_in_the_images_comes_through(
    opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield images[:1]
        raise OSError("the disk is gone")

    with opened(goal="throughput") as runner:
        with pytest.raises(OSError, match="the disk is gone"):
            list(runner.infer_many(broken()))
        found = scores(runner, images[:1])
    np.testing.assert_allclose(found, expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x[:, :, 1:], lambda x: x[0], lambda x: x.astype(np.float64)],
    ids=["height", "rank", "type"],
)
def test_what_does_not_fit_is_refused(
    opened: Callable[..., Any], images: np.ndarray, spoil: Callable[[Any], Any]
) -> None:
    with opened() as runner, pytest.raises(RunnerError, match=r"expected float32 \[1, 3, 32, 32\]"):
        runner.infer(spoil(images[:1]))


def test_use_before_and_after_with_is_refused(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    runner = opened()
    with pytest.raises(RunnerError, match="is not open"):
        runner.infer(images[:1])
    for _ in range(2):
        with runner:
            assert np.isfinite(scores(runner, images[:1])).all()
        with pytest.raises(RunnerError, match="is not open"):
            runner.infer(images[:1])


def test_the_engine_goes_with_the_runner(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    api = Api()
    runner = opened(api, goal="throughput")
    with runner:
        scores(runner, images[:1])
        assert len(api.engines) == 1
        # Per slot: a stream, two events, input and output on both sides, a graph; and what the
        # double's context allocates.
        assert host.live() == {
            "contexts": 1,
            "device": 6,
            "pinned": 4,
            "streams": 2,
            "events": 4,
            "execs": 2,
        }
    gc.collect()
    assert not api.engines
    assert not host.live()


def test_two_runners_side_by_side(
    host: Host, opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray
) -> None:
    with opened() as one, opened(batch=2) as two:
        assert host.live()["contexts"] == 2
        np.testing.assert_allclose(scores(one, images[:1]), expected[:1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores(two, images[:2]), expected[:2], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores(one, images[2:3]), expected[2:3], rtol=1e-5, atol=1e-5)


def test_many_queries_leak_nothing(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened(goal="throughput") as runner:
        scores(runner, images[:1])
        before = host.live()
        for _ in runner.infer_many(images[i % 12][None] for i in range(500)):
            pass
        for index in range(500):
            runner.infer(images[index % 12][None])
        assert host.live() == before


def test_a_bundles_own_graph_runs_on_the_buffers(
    host: Host, opened: Callable[..., Any], tiny_bundle: Path
) -> None:
    """Q/DQ and all, against the target that the bundle was built for."""
    from vggdeploy import bundle, parity, sources
    from vggdeploy.contracts import RunOptions

    built = bundle.open_bundle(tiny_bundle)
    batch = built.preprocess.arithmetic(built.probes().images[:4])
    with sources.float_target().open_graph(built.path / GRAPH, (), RunOptions(batch=4)) as plain:
        wanted = plain.scores(batch).copy()

    with opened(path=built.path / GRAPH, batch=4) as runner:
        found = scores(runner, batch)
    # The double's CPU kernels are 8-bit ones, which round otherwise than floats do.
    assert parity.sqnr_db(wanted, found).min() > 15


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ({"image": Info("image", False, (-1, 3, 32, 32))}, "0 inputs of 2 tensors"),
        ({"scores": Info("scores", True, (-1, 10))}, "2 inputs of 2 tensors"),
        ({"scores": Info("scores", False, (-1, -1))}, "size of 'scores' is not known"),
        (
            {"scores": Info("scores", False, (-1, 10), "int32")},
            "'scores' cannot be used: got int32",
        ),
        (
            {"scores": Info("scores", False, (-1, 10), "uint8")},
            "'scores' cannot be used: got uint8",
        ),
        (
            {"image": Info("image", True, (-1, 3, 32, 32), "int8")},
            "'image' cannot be used: got int8",
        ),
    ],
)
def test_engines_that_are_no_classifiers(
    opened: Callable[..., Any], said: dict[str, Info], means: str
) -> None:
    with pytest.raises(ModelError, match=means):
        opened(Api(said=said)).__enter__()
