"""The adapter to TensorRT, held against the interface of each version that it is written for."""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trt_fakes import FLOAT, HALF, QUANTIZED, Fake, Severity

from vggdeploy.contracts import TrtOptions
from vggdeploy.errors import ConfigError, MissingError, ModelError
from vggdeploy.targets import nvidia, trt_api, trt_layers, trt_log
from vggdeploy.targets.trt_api import Api

GRAPH = Path("model.onnx")
FULL = ("8.6.1", "10.3.0", "11.0.0")
EVERY = (*FULL, "rtx")


def api(fake: Fake) -> Api:
    return Api("rtx" if "ComputeCapability" in vars(fake.module) else "tensorrt", fake.module)


def build(fake: Fake, timing: bytes | None = None, **options: Any) -> trt_api.BuiltEngine:
    return api(fake).build(GRAPH, TrtOptions(**options), timing)


# --- networks and their types


@pytest.mark.parametrize(
    ("version", "flags"), [("8.6.1", 0b1), ("10.3.0", 0b11), ("11.0.0", 0b1), ("rtx", 0b1)]
)
def test_networks_are_typed_where_they_can_be(version: str, flags: int) -> None:
    """Bits are those of each version's own enumeration: STRONGLY_TYPED is 1 in 10 and 0 in 11."""
    fake = Fake(version)
    assert build(fake).typed is (version != "8.6.1")
    assert fake.created == flags


@pytest.mark.parametrize("version", EVERY)
@pytest.mark.parametrize(
    ("layers", "allowed"),
    [(FLOAT, set()), (HALF, {"FP16"}), (QUANTIZED, {"FP16", "INT8"})],
    ids=["float", "half", "quantized"],
)
def test_flags_allow_what_the_graph_has_where_it_is_not_typed(
    version: str, layers: tuple[Any, ...], allowed: set[str]
) -> None:
    fake = Fake(version, layers=layers)
    build(fake)
    assert fake.flags == (allowed if version == "8.6.1" else set())  # and no TF32


@pytest.mark.parametrize("version", EVERY)
def test_settings_reach_the_builder(version: str) -> None:
    fake = Fake(version)
    built = build(
        fake, min_batch=2, opt_batch=4, max_batch=8, workspace_bytes=1 << 20, optimization_level=5
    )
    assert fake.profiles == [("image", (2, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))]
    assert built.batches == (2, 4, 8)
    assert fake.workspace == 1 << 20
    assert fake.config.builder_optimization_level == 5
    assert fake.config.profiling_verbosity.name == "DETAILED"
    assert built.plan == b"plan"


def test_what_is_not_set_is_left_to_tensorrt() -> None:
    fake = Fake("10.3.0")
    build(fake)
    assert fake.workspace is None
    assert not hasattr(fake.config, "builder_optimization_level")
    assert "SPARSE_WEIGHTS" not in fake.flags
    build(fake, sparse=True)
    assert "SPARSE_WEIGHTS" in fake.flags


def test_a_tensorrt_without_sparse_kernels_is_said() -> None:
    fake = Fake("10.3.0")
    kept = [flag for flag in fake.shape["flags"] if flag != "SPARSE_WEIGHTS"]
    fake.module.BuilderFlag = enum.Enum("BuilderFlag", kept)
    with pytest.raises(ConfigError, match=r"no kernels for sparse weights: got --sparsity 2:4"):
        build(fake, sparse=True)
    build(fake)


class Engine:
    def create_execution_context(self, config: Any = None) -> Any:
        return ("context", config)


class Configured(Engine):
    def create_runtime_config(self) -> Any:
        return SimpleNamespace()


def test_graphs_are_left_to_a_flavour_that_captures_by_itself() -> None:
    module = SimpleNamespace(__version__="1.7.1")
    plain = trt_api.Api("tensorrt", module)
    assert plain.execution_context(Engine()) == (("context", None), False)
    module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    # An engine without such a configuration has contexts as ever.
    assert trt_api.Api("rtx", module).execution_context(Engine()) == (("context", None), False)
    (_, config), own = trt_api.Api("rtx", module).execution_context(Configured())
    assert (config.cuda_graph_strategy, own) == ("whole", True)


def test_a_fixed_batch_needs_no_profile() -> None:
    fake = Fake("10.3.0", batch=4)
    assert build(fake).batches == (4, 4, 4)
    assert fake.profiles == []
    with pytest.raises(ConfigError, match=r"batches of 4 alone: got batches 1, 1, 2.*--max-batch"):
        build(fake, max_batch=2)


# --- compute capabilities


def test_several_compute_capabilities_go_into_one_engine() -> None:
    fake = Fake("rtx")
    assert api(fake).compute_capabilities == ("7.5", "8.6", "12.0")
    build(fake, compute_capabilities=("12.0", "7.5"))
    assert fake.config.num_compute_capabilities == 2
    assert fake.capabilities == ["SM120", "SM75"]


def test_a_compute_capability_that_is_not_built_for_is_named() -> None:
    expected = (
        r"does not compile for this compute capability: got 9\.0, expected one of 7\.5, 8\.6, 12\.0"
    )
    with pytest.raises(ConfigError, match=expected):
        build(Fake("rtx"), compute_capabilities=("9.0",))


@pytest.mark.parametrize("version", FULL)
def test_compute_capabilities_are_for_rtx(version: str) -> None:
    with pytest.raises(ConfigError, match=r"for the GPU at hand: got --compute-capability 8\.6"):
        build(Fake(version), compute_capabilities=("8.6",))


# --- timing caches


@pytest.mark.parametrize("version", FULL)
def test_times_of_kernels_are_kept(version: str) -> None:
    fake = Fake(version)
    assert build(fake).timing_cache == b"+timed"
    built = build(fake, b"before")
    assert built.timing_cache == b"before+timed"
    assert built.timing_mismatch == ""


def test_nothing_is_timed_ahead_of_time() -> None:
    assert build(Fake("rtx"), b"before").timing_cache is None


@pytest.mark.parametrize("version", FULL)
def test_a_timing_cache_that_does_not_fit_is_said(version: str) -> None:
    refused = build(Fake(version, timing="refused"), b"before")
    assert refused.timing_mismatch == "TensorRT refuses it"
    assert refused.timing_cache == b"+timed"
    skipped = build(Fake(version, timing="Skipping the timing cache of another device"), b"before")
    assert skipped.timing_mismatch == "Skipping the timing cache of another device"


# --- DLA


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_dla_is_quantized_by_the_calibration_cache(version: str, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.cache"
    cache.write_bytes(b"TRT-100300-EntropyCalibration2\nimage: 3caa54fc\n")
    fake = Fake(version)
    built = build(fake, dla_core=1, calibration_cache=cache)
    assert not built.typed
    assert fake.created == 0b1  # EXPLICIT_BATCH alone: a typed network cannot be calibrated
    assert fake.config.default_device_type.name == "DLA"
    assert fake.config.DLA_core == 1
    assert fake.flags == {"GPU_FALLBACK", "FP16", "INT8"}
    assert fake.calibrated_with == cache.read_bytes()
    assert fake.runtime.DLA_core == 1  # in which the engine was looked at


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_dla_in_half_precision_needs_no_cache(version: str) -> None:
    fake = Fake(version, layers=HALF)
    build(fake, dla_core=0)
    assert fake.flags == {"GPU_FALLBACK", "FP16"}
    assert fake.calibrated_with is None


@pytest.mark.parametrize("version", ["11.0.0", "rtx"])
def test_dla_is_refused_where_there_are_no_calibrators(version: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot build for DLA.*--dla 0.*8 or 10"):
        build(Fake(version), dla_core=0)


# --- what goes wrong in a build


@pytest.mark.parametrize("version", EVERY)
def test_all_of_the_parsers_errors_are_told_in_one_line(version: str) -> None:
    errors = ((3, "fft", "DFT", "no importer\nfor it"), (7, "", "", "wrong rank"))
    with pytest.raises(ModelError) as caught:
        build(Fake(version, errors=errors))
    message = str(caught.value)
    first = "node 3" if version == "8.6.1" else "DFT 'fft'"
    assert f"{first}: no importer for it; node 7: wrong rank" in message
    assert "model.onnx" in message
    assert "\n" not in message


@pytest.mark.parametrize("version", EVERY)
def test_a_builder_that_gives_no_plan_says_why(version: str) -> None:
    with pytest.raises(
        ModelError, match=r"does not build model\.onnx: got FP32 GEMM is not"
    ) as got:
        build(Fake(version, refuses="FP32 GEMM is not\nsupported"))
    assert "chatter" not in str(got.value)


def test_of_many_errors_the_first_are_told_each_once() -> None:
    log = trt_log.log(Fake("10.3.0").module)
    for number in (*range(8), 0, 1):
        log.log(Severity.ERROR, f"error {number} In check at /src/a.cpp:{number}")
    assert log.said() == "; ".join([*(f"error {n}" for n in range(6)), "and 2 more"])


def test_no_driver_is_told_from_a_bug() -> None:
    with pytest.raises(MissingError, match=r"cannot start.*error: 35.*GPU and its driver"):
        build(Fake("10.3.0", starts=False))


# --- engines


@pytest.mark.parametrize("version", EVERY)
def test_layers_are_read_from_the_inspector(version: str) -> None:
    layers = build(Fake(version)).layers
    assert layers is not None
    assert [layer["name"] for layer in layers] == ["c0 + r0", "Reformatting CopyNode"]
    assert layers[0]["nodes"] == ["c0", "r0"]
    assert layers[0]["tactic"] == "sm80_xmma"
    assert layers[0]["inputs"][0]["type"] == "Int8"


def test_an_engine_that_cannot_be_loaded_here_is_told_by_the_builders_log() -> None:
    built = build(Fake("rtx", loads="CUDA error 100"))
    assert built.layers is not None
    assert [layer["name"] for layer in built.layers] == ["first_0", "c0_1"]
    assert built.layers[0]["inputs"] == built.layers[0]["nodes"] == []
    assert built.layers[1]["type"] == "correlation"
    assert built.layers[1]["tactic"] == "stub"
    assert built.layers[1]["nodes"] == ["c0", "r0"]
    types = [[t["type"] for t in built.layers[1][side]] for side in ("inputs", "outputs")]
    assert types == [["Int8"], ["Float", "Int32"]]
    assert built.layers[1]["inputs"][0]["shape"] == [-1, 4, 8, 8]
    assert built.layers[1]["inputs"][0]["format"] == "(NHWC) Channel major format"


def test_an_engine_of_which_nothing_is_told_has_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_fakes.LISTING", "")
    assert build(Fake("11.0.0", loads="CUDA error 100")).layers is None


@pytest.mark.parametrize("version", EVERY)
def test_an_engines_ports_and_batches(version: str) -> None:
    found = api(Fake(version))
    engine = found.deserialize(b"plan")
    assert found.io(engine) == [
        trt_api.TensorInfo("image", True, (-1, 3, 8, 8), "float32"),
        trt_api.TensorInfo("scores", False, (-1, 10), "float32"),
    ]
    assert found.profile(engine, "image") == (1, 4, 16)


def test_no_driver_and_another_version_are_two_errors() -> None:
    missing = api(Fake("11.0.0", loads="Error Code 6: no CUDA-capable device is detected"))
    with pytest.raises(MissingError, match=r"no CUDA-capable device.*nvidia-smi"):
        missing.deserialize(b"plan")
    # Where the driver is missing as well, that is said too.
    said = "Version tag does not match (In check at /_src/runtime.cpp:48); CUDA driver is missing"
    other = api(Fake("11.0.0", loads=said))
    with pytest.raises(ModelError, match=r"Version tag.*expected an engine of TensorRT 11\.0\.0"):
        other.deserialize(b"plan")
    with pytest.raises(ModelError) as caught:
        other.deserialize(b"plan")
    assert "_src" not in str(caught.value)


def test_layers_are_assigned_to_the_budget() -> None:
    nodes = {"features.0": "c0", "features.4": "p0", "features.5": "c1"}
    layers = [
        {"name": "fused", "nodes": ["c0", "r0", "p0"]},
        {"name": "c1.weight + c1 + r1", "nodes": []},
        {"name": "c11", "nodes": []},
    ]
    found = trt_layers.assign(layers, nodes)
    assert [layer["budget"] for layer in found] == [
        ["features.0", "features.4"],
        ["features.5"],
        [],
    ]


# --- which one is there


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes as if these packages were installed; a None cannot be imported."""
    real = importlib.util.find_spec

    def install(**modules: Any) -> None:
        def find(name: str, package: str | None = None) -> Any:
            if name in trt_api.MODULES.values():
                return importlib.machinery.ModuleSpec(name, None) if name in modules else None
            return real(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)
        for name in trt_api.MODULES.values():
            monkeypatch.setitem(sys.modules, name, modules.get(name))

    return install


def test_the_full_tensorrt_comes_first(installed: Any) -> None:
    installed(tensorrt=Fake("10.3.0").module, tensorrt_rtx=Fake("rtx").module)
    assert (trt_api.load().flavour, trt_api.load().version) == ("tensorrt", "10.3.0")
    assert (trt_api.load("rtx").flavour, trt_api.load("rtx").version) == ("rtx", "1.7.1")


def test_what_is_installed_is_chosen(installed: Any) -> None:
    installed(tensorrt_rtx=Fake("rtx").module)
    assert trt_api.load().flavour == "rtx"
    assert [name for name, here in trt_api.flavours().items() if here.ok] == ["rtx"]
    with pytest.raises(MissingError, match=r"pip install tensorrt, or 'vggdeploy"):
        trt_api.load("tensorrt")


def test_absence_says_what_to_install(installed: Any) -> None:
    installed()
    with pytest.raises(MissingError, match=r"pip install tensorrt-rtx-cu13") as caught:
        trt_api.load()
    assert caught.value.exit_code == 3
    with pytest.raises(ConfigError, match=r"unknown flavour of TensorRT: got 'trt'.*tensorrt, rtx"):
        trt_api.load("trt")


def test_a_package_without_its_libraries_is_no_tensorrt(installed: Any) -> None:
    installed(tensorrt=None)
    with pytest.raises(MissingError, match="installed but cannot be loaded"):
        trt_api.load("tensorrt")


# --- the GPUs that the driver knows


class Driver:
    """The functions of the CUDA driver that are asked, for two GPUs."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.fails:
                return 100
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = 2
            elif name == "cuDeviceGet":
                arguments[0]._obj.value = arguments[1]
            elif name == "cuDeviceGetName":
                arguments[0].value = b"GPU %d" % arguments[2].value
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 6}[arguments[1]]
            return 0

        return call


def test_gpus_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: Driver())
    assert nvidia.gpus() == (nvidia.Gpu("GPU 0", "8.6"), nvidia.Gpu("GPU 1", "8.6"))
    assert str(nvidia.gpus()[0]) == "GPU 0 (compute capability 8.6)"


@pytest.mark.parametrize("step", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName"])
def test_a_driver_that_fails_has_no_gpus(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: Driver(step))
    assert nvidia.gpus() == ()


def test_no_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvidia.ctypes, "CDLL", absent)
    assert nvidia.gpus() == ()
