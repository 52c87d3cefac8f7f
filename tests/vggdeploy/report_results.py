"""Results for tests of reports: what runs of the slim demo network left, and what those do not have.

`report_int8.json` and `report_fp32.json` are real runs. What a result may hold besides (layers,
intervals, energy, temperatures, tuning, comparisons) is made up here, plausible and the same every
time.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent

LAYERS = [
    ("features.0", "conv", 1_354_752, 175_000), ("features.2", "conv", 28_901_376, 211_000),
    ("features.5", "conv", 14_450_688, 108_000), ("features.7", "conv", 28_901_376, 112_000),
    ("features.10", "conv", 14_450_688, 62_000), ("features.12", "conv", 28_901_376, 70_000),
    ("features.14", "conv", 28_901_376, 70_000), ("features.17", "conv", 14_450_688, 54_000),
    ("features.19", "conv", 28_901_376, 90_000), ("features.21", "conv", 28_901_376, 90_000),
    ("features.24", "conv", 7_225_344, 64_000), ("features.26", "conv", 7_225_344, 64_000),
    ("features.28", "conv", 7_225_344, 64_000), ("classifier.0", "linear", 1_605_632, 1_610_000),
    ("classifier.3", "linear", 262_144, 265_000), ("classifier.6", "linear", 5_120, 6_000),
]  # fmt: skip


def run(precision: str = "int8") -> dict[str, Any]:
    """A real run of the slim demo network, as it was written."""
    result: dict[str, Any] = json.loads((HERE / f"report_{precision}.json").read_text("utf-8"))
    return result


def layers(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """Times of layers that add up to about the least latency, none below its floor."""
    rng = np.random.default_rng(4)
    budget = bench["budget"]
    found = []
    for name, kind, macs, size in LAYERS:
        floor = max(macs / budget["peak_macs_per_s"], size / budget["peak_bytes_per_s"])
        seconds = floor * float(rng.uniform(1.05, 1.9)) + 4e-6
        found.append(
            {
                "name": name,
                "kind": kind,
                "engine_layers": [f"{name}/WithoutBiases"],
                "precision": "i8" if kind == "conv" else "f32",
                "seconds": seconds,
                "macs": macs,
                "bytes": size,
                "intensity": macs / size,
                "floor_s": floor,
                "of_floor": floor / seconds,
                "bound": "compute" if floor == macs / budget["peak_macs_per_s"] else "memory",
                "utilisation": macs / seconds / budget["peak_macs_per_s"],
            }
        )
    total = sum(layer["seconds"] for layer in found)
    return [{**layer, "share": layer["seconds"] / total} for layer in found]


def samples(count: int = 400, seed: int = 0, median: float = 0.0037) -> list[float]:
    """Latencies with a tail to the right, in order of time."""
    rng = np.random.default_rng(seed)
    return [float(value) for value in median * (0.93 + rng.gamma(1.6, 0.05, count))]


def bench(precision: str = "int8", seed: int = 0, median: float = 0.0037) -> dict[str, Any]:
    """A measurement with everything that one may have."""
    result = run(precision)["bench"]
    result["samples_s"] = samples(400, seed, median)
    ordered = sorted(result["samples_s"])

    def rank(share: float) -> float:
        return ordered[int(np.ceil(share * (len(ordered) - 1)))]

    result["latency_s"] = {
        "p50": rank(0.5), "p90": rank(0.9), "p99": rank(0.99),
        "mean": float(np.mean(ordered)), "min": ordered[0], "max": ordered[-1],
    }  # fmt: skip
    peak = result["budget"]["peak_macs_per_s"]
    rate = result["budget"]["macs"] / rank(0.5)
    result["budget"].update(achieved_macs_per_s=rate, utilisation=rate / peak)
    result.update(
        schema=1,
        ci95={"p50": [rank(0.45), rank(0.55)], "p90": [rank(0.87), rank(0.93)], "p99": None},
        early_stopping={"p90": rank(0.92), "p99": None},
        started_s=[float(value) for value in np.cumsum([0.0, *result["samples_s"][:-1]])],
        settings={"streams": 1, "threads": 2, "pinning": True, "precision": None},
        throughput_by_batch=[
            {"batch": batch, "images_per_s": 330 * batch / (batch + 0.35) / (median / 0.0037)}
            for batch in (1, 2, 4, 8, 16, 32)
        ],
        warmup={"queries": 60, "seconds": 0.31, "steady": True},
        measured_seconds=float(sum(result["samples_s"])),
        partial=False,
        stable=True,
        unstable_because=[],
        advice=[],
        energy={
            "joules_per_image": 0.1312, "watts": 35.4, "idle_watts": 11.2,
            "net_joules_per_image": 0.0898, "source": "RAPL package-0", "seconds": 1.61,
            "images": 400,
        },
        temperature_c={"before": {"k10temp Tctl": 48.5}, "after": {"k10temp Tctl": 57.25}},
        mlperf=None,
    )  # fmt: skip
    result["budget"]["layers"] = layers(result)
    result["budget"]["peak_check"] = {"ok": True, "beaten_by": []}
    return result


def full(precision: str = "int8", seed: int = 0, median: float = 0.0037) -> dict[str, Any]:
    """A run with everything that one may have, whose gate passed."""
    result = run(precision)
    result["bench"] = bench(precision, seed, median)
    result["gate"].update(verdict="pass", unstable=[])
    for criterion in result["gate"]["criteria"]:
        criterion.update(verdict="pass", note="")
        if criterion["name"] == "max_p99":
            criterion["value"] = result["bench"]["latency_s"]["p99"]
    return result


def failed(precision: str = "int8") -> dict[str, Any]:
    """A run that was emulated in part, interrupted, unstable, and failed its gate."""
    result = full(precision)
    result["verify"]["execution"] = "emulated"
    result["verify"]["note"] = "the probes were judged, not photos: the weights are gone"
    result["verify"]["parity"]["top1_agreement"] = 0.985
    result["verify"]["accuracy"].update(drop=0.015, top1=0.965, mcnemar_p=0.0313)
    result["bench"].update(
        partial=True,
        stable=False,
        unstable_because=["the CPU was 61% busy with others", "the clock fell from 3.4 to 2.1 GHz"],
        advice=["cpupower frequency-set -g performance"],
    )
    result["bench"]["budget"]["peak_check"] = {"ok": False, "beaten_by": ["features.2"]}
    result["gate"].update(verdict="fail", execution="emulated")
    result["gate"]["criteria"][0].update(verdict="fail", value=0.985, execution="emulated")
    result["gate"]["criteria"][2].update(
        verdict="inconclusive", note="the measurement was unstable"
    )
    return result


def tune() -> dict[str, Any]:
    """A search for the best setting."""
    tried = [
        {
            "batch": batch,
            "settings": {"streams": streams, "threads": 2, "pinning": False, "precision": None},
            "rounds": rounds,
            "p50": 0.0035 * batch,
            "p99": 0.0041 * batch,
            "images_per_s": 290.0 + 12 * rounds - streams,
            "kept_until": rounds,
        }
        for batch, streams, rounds in ((1, 1, 2), (1, 2, 1), (4, 1, 3), (4, 2, 2), (8, 1, 4))
    ]
    return {
        "schema": 1,
        "kind": "tune",
        "bundle": "slim-ov-int8",
        "digest": run()["bench"]["digest"],
        "goal": "throughput",
        "bound_s": 0.05,
        "seconds": 30.0,
        "tried": tried,
        "winner": {key: tried[-1][key] for key in ("batch", "settings")},
        "system": run()["bench"]["system"],
    }


def compare() -> dict[str, Any]:
    """A comparison of the two runs' bundles."""
    sides = [
        {key: run(precision)["bench"][key] for key in ("bundle", "target", "digest")}
        for precision in ("int8", "fp32")
    ]
    return {
        "schema": 1,
        "kind": "compare",
        "a": sides[0],
        "b": sides[1],
        "metric": "latency",
        "ratio": 0.61,
        "ci95": [0.59, 0.64],
        "paired": True,
        "verdict": "faster",
        "system": run()["bench"]["system"],
    }


def written(folder: Path, *found: dict[str, Any]) -> list[Path]:
    """Results as files."""
    paths = []
    for place, result in enumerate(found):
        path = folder / f"result-{place}.json"
        path.write_text(json.dumps({"schema": 1, **copy.deepcopy(result)}), "utf-8")
        paths.append(path)
    return paths
