"""TensorRT's profiler: asked by name in every version, and joined to what the inspector says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from trt_fakes import VERSIONS, Fake

from vggdeploy.contracts import LayerTime
from vggdeploy.errors import ConfigError, RunnerError
from vggdeploy.targets import trt_profiler
from vggdeploy.targets.trt_api import Api


class Context:
    """Reports when asked, as of version 8.2."""

    def __init__(self, answer: bool = True) -> None:
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.answer = answer

    def report_to_profiler(self) -> bool:
        if self.answer:
            self.profiler.report_layer_time("conv", 2.0)
            self.profiler.report_layer_time("copy", 0.5)
        return self.answer


@pytest.mark.parametrize("version", VERSIONS)
def test_reports_are_asked_for_and_in_seconds(version: str) -> None:
    fake = Fake(version)
    context = Context()
    profiler = Api("tensorrt", fake.module).profiler(context)
    assert context.profiler.bound
    assert context.enqueue_emits_profile is False
    assert profiler.seconds() == [("conv", 2.0e-3), ("copy", 0.5e-3)]
    # Those of the last execution alone.
    assert profiler.seconds() == [("conv", 2.0e-3), ("copy", 0.5e-3)]


def test_a_context_that_reports_by_itself() -> None:
    context = SimpleNamespace(profiler=None)
    profiler = Api("tensorrt", Fake("8.6.1").module).profiler(context)
    assert not hasattr(context, "enqueue_emits_profile")
    for milliseconds in (1.0, 3.0):
        profiler.forget()
        context.profiler.report_layer_time("conv", milliseconds)
    assert profiler.seconds() == [("conv", 3.0e-3)]


def test_a_report_that_fails() -> None:
    profiler = Api("tensorrt", Fake("10.3.0").module).profiler(Context(answer=False))
    with pytest.raises(RunnerError, match="does not tell what its layers took"):
        profiler.seconds()


def test_a_version_without_a_profiler() -> None:
    fake = Fake("10.3.0")
    del fake.module.IProfiler
    with pytest.raises(ConfigError, match=r"TensorRT 10\.3\.0 times no layers"):
        Api("tensorrt", fake.module).profiler(Context())


def test_times_are_joined_to_the_inspectors_layers() -> None:
    api = Api("tensorrt", Fake("10.3.0").module)
    layers = api.layers(Fake("10.3.0").engine())
    found = trt_profiler.joined([("c0 + r0", 1.0), ("not inspected", 2.0)], layers)
    assert found == [
        LayerTime("c0 + r0", ("c0", "r0"), "CaskConvolution", "Int8", 1.0),
        LayerTime("not inspected", (), "", "", 2.0),
    ]


def test_a_precision_in_front_of_the_layout() -> None:
    layer = {
        "name": "a",
        "type": "x",
        "nodes": [],
        "inputs": [{"type": None, "format": "Half NCHW"}],
    }
    assert trt_profiler.joined([("a", 1.0)], [layer])[0].precision == "Half"


def test_the_real_package_takes_the_profiler() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    context = Context()
    profiler = Api("rtx", module).profiler(context)
    assert isinstance(context.profiler, module.IProfiler)
    assert profiler.seconds() == [("conv", 2.0e-3), ("copy", 0.5e-3)]
