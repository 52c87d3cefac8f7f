"""A TensorRT runner whose layers are timed: what the profiler reports, held against the inspector's
words, and nothing of it where it was not asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from double import Api, Context

from vggdeploy.contracts import LayerTime
from vggdeploy.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from host import Host

EXPECTED = [
    LayerTime("c0 + c0.relu", ("c0", "c0.relu"), "CaskConvolution", "Int8", 0.5e-3),
    LayerTime("reformat", (), "", "", 0.125e-3),
    LayerTime("f0", ("f0",), "kgen", "Half", 0.25e-3),
]


@pytest.mark.parametrize("own_graphs", [False, True], ids=["tensorrt", "rtx"])
def test_layers_of_the_last_query(
    opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray, own_graphs: bool
) -> None:
    with opened(Api(own_graphs=own_graphs), profile=True) as runner:
        for index in range(3):
            found = runner.scores(images[index : index + 1])
            np.testing.assert_allclose(found, expected[index : index + 1], rtol=1e-5, atol=1e-5)
            assert runner.layer_times() == EXPECTED
        assert runner.details["cuda_graph"] == "none: layers are timed"


def test_layers_are_executed_one_by_one_and_in_no_graph(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened(profile=True) as runner:
        host.set("trace", 1)
        runner.infer(images[:1])
        called = [line.split()[0] for line in host.trace()]
    assert "cuLaunchHostFunc" in called
    assert "cuGraphLaunch" not in called


@pytest.mark.parametrize("profile", [False, True])
def test_what_was_not_timed_cannot_be_told(
    opened: Callable[..., Any], images: np.ndarray, profile: bool
) -> None:
    runner = opened(profile=profile)
    with pytest.raises(RunnerError, match="not timed"):
        runner.layer_times()
    with runner:
        if not profile:
            runner.infer(images[:1])
        with pytest.raises(RunnerError, match="not timed"):
            runner.layer_times()


def test_a_context_that_does_not_report_is_an_error(
    opened: Callable[..., Any], images: np.ndarray
) -> None:
    class Silent(Context):
        def report_to_profiler(self) -> bool:
            return False

    api = Api()
    api.context_kind = Silent
    with opened(api, profile=True) as runner:
        runner.infer(images[:1])
        with pytest.raises(RunnerError, match="does not tell"):
            runner.layer_times()
