"""Which target observes activations, and in which precision."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vggdeploy import sources, targets
from vggdeploy.contracts import GraphTarget, RunOptions, Silent
from vggdeploy.errors import ConfigError, MissingError
from vggdeploy.machine import cpu

if TYPE_CHECKING:
    from pathlib import Path

    from vggdeploy.cache import Cache

PRECISIONS = ("auto", "fp32", "bf16")

PAYS = 1.2
"""How many times as fast as float32 bfloat16 has to be. On CPUs with matrix units (AMX) it is twice
to four times as fast; where there are but instructions for it (AVX512-BF16) it was measured at 0.52
times, since float32 has the better kernels."""


def require_known(precision: str) -> None:
    """Make sure that activations can be observed in `precision`, as `choose` takes it.

    Raises:
        ConfigError: for another one.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            "unknown precision for calibration",
            got=repr(precision),
            expected="auto, fp32 or bf16",
            fix="choose one with --calib-precision",
        )


def choose(precision: str, store: Cache) -> GraphTarget:
    """The target that observes activations.

    Args:
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where this machine is faster in it
            (docs/quantization.md says how to measure what it changes).
        store: remembers what was measured, so that a choice stays.

    Raises:
        ConfigError: for another precision.
        MissingError: when the target is not installed, or this machine has no bf16 arithmetic.
    """
    require_known(precision)
    exact = sources.float_target()
    if precision == "fp32":
        return exact
    narrow = targets.get("ov-bf16")
    here = narrow.runs_on(RunOptions().device)
    if precision == "auto" and not (here.ok and gain(store) >= PAYS):
        return exact
    if not here.ok:
        raise MissingError(
            "--calib-precision bf16 cannot be had here",
            got=here.reason,
            expected="a CPU that computes in bfloat16",
            fix="give --calib-precision fp32, or auto",
        )
    assert isinstance(narrow, GraphTarget)
    return narrow


def gain(store: Cache) -> float:
    """How many times as fast as float32 this machine's bfloat16 convolutions are, measured once."""

    def measure(folder: Path) -> None:
        from vggdeploy.benchmarks import peak
        from vggdeploy.targets.openvino import OpenVINO
        from vggdeploy.targets.openvino_probes import convolutions

        rates = []
        for name in ("ov-bf16", "ov-fp32"):
            target = targets.get(name)
            assert isinstance(target, OpenVINO)
            probes = convolutions(target, target.precision, RunOptions(profile=True))
            rates.append(max(peak.measure(probes, Silent()).macs_per_s.values()))
        (folder / "gain.json").write_text(json.dumps(rates[0] / rates[1]))

    said = cpu.facts()
    found = store.stage("bf16-gain", {key: said[key] for key in ("cpu", "isa", "cores")}, measure)
    return float(json.loads((found.path / "gain.json").read_text()))
