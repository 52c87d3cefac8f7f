"""Builds from end to end with the interface of TensorRT 8.6, 10 and 11: what reaches the builder, the
manifest and the cache. The engine itself is made up."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest
from trt_fakes import QUANTIZED, Fake

from vggdeploy import bundle, calibration_file, graphs, pipeline, targets
from vggdeploy.cache import default_root
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError, MissingError
from vggdeploy.manifest import CALIBRATION, GRAPH, TRT_CACHE
from vggdeploy.targets import nvidia, trt_api

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Options = Callable[..., pipeline.BuildOptions]


@pytest.fixture
def tensorrt(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Fake | None], Fake | None]:
    """Makes a fake the TensorRT of this machine; none for None. The cache is the test's own."""
    real = importlib.util.find_spec

    def use(fake: Fake | None) -> Fake | None:
        def find(name: str, package: str | None = None) -> Any:
            if name in trt_api.MODULES.values():
                there = fake is not None and name == "tensorrt"
                return importlib.machinery.ModuleSpec(name, None) if there else None
            return real(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)
        monkeypatch.setitem(sys.modules, "tensorrt", fake.module if fake else None)
        return fake

    return use


def weight_types(path: Path) -> set[str]:
    return {
        value.const_value.dtype.name
        for value in graphs.read(path / GRAPH).graph.initializers.values()
        if value.const_value is not None
    }


@pytest.mark.parametrize(
    ("version", "wide", "flags"),
    [
        ("8.6.1", "FLOAT", {"INT8", "FP16"}),
        ("10.3.0", "FLOAT16", set()),
        ("11.0.0", "FLOAT16", set()),
    ],
)
def test_int8_is_typed_in_the_graph_or_by_flags(
    version: str, wide: str, flags: set[str], tensorrt: Any, tiny: Options, tmp_path: Path
) -> None:
    fake = tensorrt(Fake(version, layers=QUANTIZED))
    result = pipeline.build(
        tiny(target="trt-int8", weight_rounding="nearest", out=tmp_path / "bundle")
    )
    assert fake.flags == flags
    found = weight_types(tmp_path / "bundle")
    assert {"INT8", wide} <= found
    assert {"FLOAT", "FLOAT16"} & found == {wide}
    facts = bundle.open_bundle(tmp_path / "bundle").manifest["build"]["engine"]
    assert (facts["flavour"], facts["version"]) == ("tensorrt", version)
    assert facts["typed"] is (version != "8.6.1")
    assert result["target"] == "trt-int8"
    assert (tmp_path / "bundle" / "model.engine").read_bytes() == b"plan"


@pytest.mark.parametrize(("version", "digits"), [("8.6.1", b"8601"), ("10.3.0", b"100300")])
def test_dla_gets_the_float_graph_and_the_calibration_cache(
    version: str, digits: bytes, tensorrt: Any, tiny: Options, tmp_path: Path
) -> None:
    """The cache is written for the TensorRT that builds, whatever --trt-version says."""
    fake = tensorrt(Fake(version))
    out = tmp_path / "bundle"
    result = pipeline.build(tiny(target="trt-int8", dla=1, max_batch=1, out=out))
    cache = (out / TRT_CACHE).read_bytes()
    assert cache.startswith(b"TRT-" + digits + b"-EntropyCalibration2\n")
    assert fake.calibrated_with == cache
    assert result["trt_cache"] == str(out / TRT_CACHE)
    assert fake.config.DLA_core == 1
    assert not {"quantize", "round"} & {stage["name"] for stage in result["stages"]}
    assert weight_types(out) & {"FLOAT", "FLOAT16", "INT8"} == {"FLOAT"}
    found = calibration_file.read(out / CALIBRATION)
    assert f"{next(iter(found.content.tensors))}: ".encode() in cache
    facts = bundle.open_bundle(out).manifest["build"]["engine"]
    assert facts["dla_core"] == 1
    assert facts["typed"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "trt-fp32", "max_batch": 1}, "DLA computes in 16 and 8 bits"),
        ({}, r"one batch size: got batches 1, 1, 32.*--max-batch the same number"),
        ({"max_batch": 1, "max_drop": 0.1}, "--max-drop does not go with --dla"),
    ],
)
def test_what_dla_does_not_take(
    changes: dict[str, Any], said: str, tensorrt: Any, tiny: Options, tmp_path: Path
) -> None:
    tensorrt(Fake("10.3.0"))
    with pytest.raises(ConfigError, match=said):
        pipeline.build(tiny(**{"target": "trt-int8", "dla": 0, "out": tmp_path / "b", **changes}))


def test_times_of_kernels_are_kept_for_the_next_build(
    tensorrt: Any, tiny: Options, tmp_path: Path
) -> None:
    tensorrt(Fake("10.3.0"))
    for turn, batch in enumerate((4, 8), start=1):
        out = tmp_path / str(batch)
        pipeline.build(tiny(target="trt-fp16", max_batch=batch, out=out))
        (kept,) = (default_root() / "timing").iterdir()
        assert kept.read_bytes() == b"+timed" * turn
        said = bundle.open_bundle(out).manifest["build"]["engine"]["timing_cache"]
        assert said["sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
        assert said["size"] == kept.stat().st_size
        assert said["mismatch"] is None


def test_a_timing_cache_of_another_gpu_is_said(
    tensorrt: Any, tiny: Options, tmp_path: Path
) -> None:
    tensorrt(Fake("10.3.0"))
    pipeline.build(tiny(target="trt-fp16", max_batch=4, out=tmp_path / "first"))
    tensorrt(Fake("10.3.0", timing="Skipping the timing cache of another device"))
    result = pipeline.build(tiny(target="trt-fp16", max_batch=8, out=tmp_path / "second"))
    assert any(
        "was of another GPU or version" in line and "Skipping the timing cache" in line
        for line in result["cautions"]
    )


def test_another_version_or_gpu_builds_anew(
    tensorrt: Any, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled() -> bool:
        result = pipeline.build(tiny(target="trt-fp16", out=tmp_path / "b", force=True))
        stages = {stage["name"]: stage for stage in result["stages"]}
        return not stages["compile"]["cached"]

    tensorrt(Fake("10.3.0"))
    assert compiled()
    assert not compiled()
    tensorrt(Fake("11.0.0"))
    assert compiled()
    monkeypatch.setattr(nvidia, "gpus", lambda: (nvidia.Gpu("NVIDIA T4", "7.5"),))
    assert compiled()
    assert not compiled()


def test_without_tensorrt_nothing_is_begun(
    tensorrt: Any, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt(None)
    monkeypatch.setattr("vggdeploy.calibrating.Job.stage", None)
    with pytest.raises(MissingError, match=r"trt-int8 does not work here.*pip install") as caught:
        pipeline.build(tiny(target="trt-int8", out=tmp_path / "bundle"))
    assert caught.value.exit_code == 3
    assert not targets.get("trt-int8").availability().ok


def test_what_is_missing_to_run_is_told_in_turn(
    tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets.get("trt-int8")
    tensorrt(None)
    assert "pip install" in target.runs_on("CPU").fix
    tensorrt(Fake("10.3.0"))
    monkeypatch.setattr(nvidia, "gpus", tuple)
    assert "no NVIDIA GPU" in target.runs_on("CPU").reason
    monkeypatch.setattr(nvidia, "gpus", lambda: (nvidia.Gpu("NVIDIA T4", "7.5"),))
    pycuda = importlib.util.find_spec("pycuda") is not None
    assert target.runs_on("CPU").ok is pycuda
    if not pycuda:
        assert "pycuda" in target.runs_on("CPU").reason
    assert target.probes(RunOptions()) == ()
