"""The table of layers as a person sees it: units, floors, and what is said when something is off."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from vggdeploy import bench_table, layers_table, roofline
from vggdeploy.contracts import LayerTime
from vggdeploy.roofline import Layer, Owners, Peaks
from vggdeploy.terminal import Terminal

LAYERS = [
    Layer("features.0", "conv", 8_000_000, 100.0, 60.0),
    Layer("avgpool", "avgpool", 0, 0.0, 40.0),
    Layer("classifier.0", "linear", 1_000_000, 1e6, 10.0),
]
OWNERS = Owners({"nodes": {"features.0": "c", "classifier.0": "f"}})
QUERY = [
    LayerTime("c", ("c",), "Convolution", "I8", 0.016),
    LayerTime("f", ("f",), "FullyConnected", "f32", 0.0075),
    LayerTime("reorder", (), "Reorder", "f32", 0.0015),
]


def said(query: Any = QUERY, **changes: Any) -> dict[str, Any]:
    peaks = Peaks({"int8": 1e9, "fp32": 5e8}, 2e8)
    rows = roofline.rows(LAYERS, OWNERS, [query], peaks, "int8")
    return {
        "peak_from": "measured",
        "layers": roofline.to_json(rows),
        "roofline": roofline.chart(rows, peaks),
        "peak_check": roofline.peak_check(rows),
        "profile": {
            "queries": 18, "seconds": sum(row.seconds for row in rows),
            "floor_s": sum(row.floor_s for row in rows), "query_s": 0.026,
            "unmatched": [row.name for row in rows if row.macs and not row.engine_layers],
        },
        **changes,
    }  # fmt: skip


def shown(budget: dict[str, Any], width: int = 120) -> list[str]:
    out = io.StringIO()
    terminal = Terminal(Console(file=out))
    terminal.console.width = width
    layers_table.show_layers(terminal, budget)
    return out.getvalue().splitlines()


def cells(lines: list[str], name: str) -> list[str]:
    line = next(line for line in lines if line.startswith(name))
    words = re.sub(r"[█▏▎▍▌▋▊▉]+", " ", line)
    # A figure and its unit are one cell.
    return re.sub(r" (?=(ms|us|s|GMAC/s|GB/s|no|layer|executed)\b)", "_", words).split()


def test_figures() -> None:
    lines = shown(said())
    assert cells(lines, "features.0") == [
        "features.0", "int8", "16.00_ms", "64.0%", "8.00_ms", "2.00", "compute", "0_GMAC/s"
    ]  # fmt: skip
    assert cells(lines, "classifier.0")[1:] == [
        "fp32", "7.50_ms", "30.0%", "5.00_ms", "1.50", "memory", "0.1_GB/s"
    ]  # fmt: skip
    assert cells(lines, "in no layer")[1:] == ["fp32", "1.50_ms", "6.0%"]
    assert cells(lines, "avgpool") == ["avgpool", "not_executed"]
    assert cells(lines, "total") == ["total", "25.00_ms", "100%", "13.00_ms", "1.92"]
    assert any("int8 1 GMAC/s" in line and "0.2 GB/s" in line for line in lines)
    assert any("profiled queries took 26.00 ms" in line for line in lines)


def test_a_narrow_terminal_has_what_matters() -> None:
    lines = shown(said(), width=70)
    assert all(len(line) <= 70 for line in lines[:7])
    assert cells(lines, "features.0") == [
        "features.0", "16.00_ms", "64.0%", "8.00_ms", "2.00", "compute"
    ]  # fmt: skip


def test_a_backend_that_does_not_tell_is_said_to() -> None:
    assert shown({"profile": None}) == ["layers: the backend does not tell what each took"]


def test_layers_that_were_not_found_are_named() -> None:
    lines = shown(said([QUERY[0]]))
    assert any("does not say where these run: classifier.0" in line for line in lines)
    assert not any("does not say" in line for line in shown(said()))


def test_a_beaten_peak_is_said_with_its_figures() -> None:
    assert bench_table.peak_doubts(said()) == []
    fast = [LayerTime("c", ("c",), "Convolution", "I8", 0.004), *QUERY[1:]]
    (doubt,) = bench_table.peak_doubts(said(fast))
    assert "features.0 (200% of the compute peak)" in doubt
    assert "measured peak fell short" in doubt
    (doubt,) = bench_table.peak_doubts(said(fast, peak_from="table"))
    assert "table is too low" in doubt
    assert bench_table.peak_doubts({"peak_check": None}) == []


@pytest.mark.parametrize(
    ("times", "share", "style"), [(0.9, 0.5, "yellow"), (1.9, 0.5, ""), (2.5, 0.5, "red"), (2.5, 0.01, "")]
)  # fmt: skip
def test_what_is_worth_a_look_is_coloured(times: float, share: float, style: str) -> None:
    found = layers_table._times({"of_floor": times, "share": share})
    assert str(found.style) == style  # type: ignore[union-attr]
