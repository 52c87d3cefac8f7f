"""PyCUDA over the CUDA driver of host memory. It stands in for a real driver in the whole process,
so these tests want to be asked for: ``make test-cuda`` does."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from double import Api
from host import Host, build, compiler

from vggdeploy.contracts import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ASKED = "VGGDEPLOY_CUDA_HOST"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The library, built and loaded; no test of this folder does without."""
    if not os.environ.get(ASKED):
        pytest.skip("would take the place of a CUDA driver in this process: run 'make test-cuda'")
    if compiler() is None:
        pytest.skip("no C compiler to build the CUDA driver of host memory with")
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("PyCUDA is not installed: run 'make test-cuda'")
    return Host(build(tmp_path_factory.mktemp("cuda_host")))


@pytest.fixture(autouse=True)
def host(library: Host) -> Iterator[Host]:
    """The library as if fresh; whatever a test does, all that was allocated must be gone after."""
    library.heal()
    assert not library.live()
    yield library
    left = library.live()
    library.heal()
    assert not left, f"leaked: {left}"


@pytest.fixture(scope="session")
def plan(small_graph: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the double takes for an engine: the small graph, image [N, 3, 32, 32] to scores."""
    pytest.importorskip("openvino")
    path = tmp_path_factory.mktemp("plan") / "model.engine"
    path.write_bytes(small_graph().SerializeToString())
    return path


@pytest.fixture
def opened(plan: Path) -> Callable[..., Any]:
    """A runner that is not yet entered, on a double of TensorRT's interface."""
    from vggdeploy.targets.trt_runner import TensorRTRunner

    def make(api: Api | None = None, path: Path = plan, **options: Any) -> TensorRTRunner:
        options = {"device": "GPU", **options}
        return TensorRTRunner(api or Api(), path, RunOptions(**options), name="small")

    return make


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(12, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="session")
def expected(plan: Path, images: np.ndarray) -> np.ndarray:
    """The graph's scores of the images one by one, without any of what is under test."""
    import openvino as ov

    core = ov.Core()
    # As the double: some processors would compute in half precision by themselves.
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(plan.read_bytes()), "CPU", config)
    return np.concatenate([model([image[None]])[0] for image in images])
