"""TensorRT on a real NVIDIA GPU: ``python -m pytest -m gpu``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import benching, bundle, compiling, pipeline, targets
from vggdeploy.benchmarks import BenchOptions
from vggdeploy.contracts import Silent
from vggdeploy.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Options = Callable[..., pipeline.BuildOptions]

pytestmark = pytest.mark.gpu
TARGETS = ["trt-fp32", "trt-fp16", "trt-int8"]
AT_LEAST_DB = {"trt-fp32": 60, "trt-fp16": 30, "trt-int8": 15}
"""FP32 sums in another order and by other algorithms (Winograd); FP16 has 11 bits through sixteen
layers; INT8 as the suite of every target has it."""


@pytest.fixture(scope="module", params=TARGETS)
def built(
    request: pytest.FixtureRequest, slim: Options, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the slim network, built for this GPU."""
    out = tmp_path_factory.mktemp("gpu") / request.param
    pipeline.build(slim(target=request.param, max_batch=8, out=out))
    return out


def test_native_scores_are_near_to_the_references(built: Path) -> None:
    result = verify(built, native=True)
    assert result["execution"] == "native"
    assert result["parity"]["top1_agreement"] == 1
    assert result["parity"]["sqnr_db"] > AT_LEAST_DB[result["target"]]


@pytest.mark.parametrize("batch", [1, 8])
def test_bench_measures_the_gpu(built: Path, batch: int) -> None:
    result = benching.bench(built, BenchOptions(batch, 0.5), Silent())
    assert result["latency_s"]["p50"] > 0
    assert result["throughput_ips"] > 0
    facts = targets.get(result["target"]).device_facts("CPU")
    assert facts["multiprocessors"] > 0
    # No kernel is faster than the table's rates; Winograd saves at most 2.25 times in FP32.
    assert 0 < result["budget"]["utilisation"] < 2.3


def test_portable_bundle_is_compiled_here_and_agrees_with_its_emulation(
    slim: Options, tmp_path: Path
) -> None:
    out = tmp_path / "portable"
    pipeline.build(slim(target="trt-int8", portable=True, out=out))
    compiled = compiling.compile_bundle(out, out=tmp_path / "compiled")
    assert compiled["device"]["name"]
    opened = bundle.open_bundle(tmp_path / "compiled")
    assert opened.budget()["engine_layers"]
    found = verify(tmp_path / "compiled", native=True)
    assert found["parity"]["top1_agreement"] == 1
    emulated = emulate(out)
    # The engine's own roundings are small beside those to 8 bits.
    assert found["parity"]["sqnr_db"] == pytest.approx(emulated["parity"]["sqnr_db"], abs=3)


def emulate(path: Path) -> dict[str, Any]:
    """`verify` as on a machine without this GPU."""
    from vggdeploy.contracts import Availability
    from vggdeploy.targets.tensorrt import TensorRT

    with pytest.MonkeyPatch.context() as patch:
        none = Availability(False, "the GPU is hidden", "show it")
        patch.setattr(TensorRT, "runs_on", lambda self, device: none)
        result = verify(path)
    assert result["execution"] == "emulated"
    return result
