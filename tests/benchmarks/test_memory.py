"""What a calibration that keeps every activation takes, and what is there for it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.benchmarks import memory
from vggdeploy.benchmarks.memory import Activations
from vggdeploy.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VGG16 = Activations("image", 115_000_000, 12_845_056)
MODEL = 553_000_000


def test_vggs_of_onnxruntimes_entropy() -> None:
    # What was measured with so many images is less than what is planned with, by 1 GB at most.
    for images, measured in ((8, 3.7e9), (32, 6.4e9), (64, 10.8e9)):
        assert memory.affordable(64, VGG16, MODEL, int(measured / 0.8))[0] < images
        assert memory.affordable(64, VGG16, MODEL, int((measured + 1e9) / 0.8))[0] >= images
    assert memory.affordable(64, VGG16, MODEL, int(11.8e9 / 0.8)) == (64, "")
    assert memory.affordable(64, VGG16, MODEL, None) == (64, "")


@given(st.integers(1, 500), st.integers(4 * 10**9, 10**11))
def test_what_is_taken_fits_and_one_more_would_not(wanted: int, free: int) -> None:
    count, why = memory.affordable(wanted, VGG16, MODEL, free)
    each = VGG16.total + 2 * VGG16.largest
    assert 1 <= count <= wanted
    fixed = 500_000_000 + 4 * MODEL
    assert fixed + count * each <= 0.8 * free
    assert (count < wanted) == bool(why)
    if why:
        assert fixed + (count + 1) * each > 0.8 * free
        assert f"{free / 1e9:.1f} GB" in why


def test_no_room_for_one() -> None:
    with pytest.raises(MissingError, match=r"2\.0 GB available, expected 3\.6 GB"):
        memory.affordable(8, VGG16, MODEL, 2_000_000_000)


def test_activations_of_a_graph(small_graph: Callable[..., Any], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = small_graph()
    # Old graphs list their weights as inputs.
    weight = onnx.helper.make_tensor_value_info("f0.weight", onnx.TensorProto.FLOAT, [24, 1024])
    model.graph.input.insert(0, weight)
    onnx.save(model, tmp_path / "small.onnx")
    found = memory.activations(tmp_path / "small.onnx")
    wide, half = 8 * 32 * 32, 16 * 16 * 16
    values = [3 * 32 * 32, *[wide] * 4, 8 * 16 * 16, half, half, 16 * 8 * 8, 1024, 24, 24, 10]
    assert found == Activations("image", 4 * sum(values), 4 * wide)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps a mark for each process")
def test_peak_is_the_processs_own() -> None:
    """Not that of the process that started it, which getrusage would say."""
    ballast = bytearray(400_000_000)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    code = "\n".join(
        (
            "from vggdeploy.benchmarks import memory",
            "low = memory.peak()",
            "held = b'x' * 100_000_000",
            "del held",
            "print(low, memory.peak())",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    low, high = map(int, done.stdout.split())
    assert low < 250_000_000 < len(ballast)
    assert high >= low + 90_000_000


def test_peak_where_there_is_no_mark_is_getrusages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.machine, "resident", lambda: None)
    assert 10_000_000 < memory.peak() < 1 << 40


def test_peak_of_children_is_that_of_the_largest() -> None:
    code = "held = b'x' * 300_000_000"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 300_000_000 < memory.peak_of_children() < 1 << 40
