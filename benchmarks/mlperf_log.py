"""What LoadGen wrote about a run: its verdict and its figures."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from vggdeploy.errors import ResultError

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = "mlperf_log_summary.txt"
DETAIL = "mlperf_log_detail.txt"

_ENTRY = ":::MLLOG "
_PERCENTILE = re.compile(r"result_(\d+\.\d+)_percentile_latency_ns")
_PER_QUERY = re.compile(r"result_(\d+\.\d+)_percentile_per_query_latency_ns")
_EARLY = re.compile(r"Early stopping ([\d.]+)th percentile estimate: (\d+)")
_RATES = ("result_samples_per_second", "result_completed_samples_per_sec")


def parse(folder: Path) -> dict[str, Any]:
    """The result in a folder of LoadGen's logs, in seconds.

    Returns:
        ``scenario``; ``result`` (``VALID`` or ``INVALID``); ``because``, what was not satisfied;
        ``percentiles_s`` by percent, of queries; ``mean_s``; ``early_stopping_s`` by percent, as
        far as there were queries for it; ``samples_per_s`` (None where the scenario has none);
        ``queries``; ``seeds``; ``loadgen``, its version; ``errors``, that LoadGen counted.

    Raises:
        ResultError: when the logs are not those of a whole run.
    """
    detail = _detail(folder / DETAIL)
    said = _summary(folder / SUMMARY)
    if "result_validity" not in detail or said.get("Result is") != detail["result_validity"]:
        raise ResultError(
            f"the logs of LoadGen in {folder} are not of a whole run",
            got=f"{said.get('Result is')!r} in {SUMMARY}, {detail.get('result_validity')!r} in "
            f"{DETAIL}",
            expected="one verdict",
            fix="run it again",
        )
    early = _EARLY.findall(str(detail.get("early_stopping_result", "")))
    mean = detail.get("result_mean_query_latency_ns", detail.get("result_mean_latency_ns"))
    return {
        "scenario": detail["effective_scenario"],
        "result": detail["result_validity"],
        "because": [key for key, value in said.items() if value.upper() == "NO"],
        "percentiles_s": _percentiles(detail),
        "mean_s": None if mean is None else mean / 1e9,
        "early_stopping_s": {_short(percent): int(ns) / 1e9 for percent, ns in early},
        "samples_per_s": next((detail[key] for key in _RATES if key in detail), None),
        "queries": detail.get("result_query_count"),
        "seeds": {
            name: detail[f"effective_{name}_rng_seed"]
            for name in ("qsl", "sample_index", "schedule")
        },
        "loadgen": detail["loadgen_version"],
        "errors": detail.get("num_errors", 0),
    }


def _percentiles(detail: dict[str, Any]) -> dict[str, float]:
    """Of queries where LoadGen tells them apart from samples (MultiStream)."""
    for pattern in (_PER_QUERY, _PERCENTILE):
        found = {
            _short(match[1]): value / 1e9
            for key, value in detail.items()
            if (match := pattern.fullmatch(key))
        }
        if found:
            return found
    return {}


def _short(percent: str) -> str:
    """``99.00`` as ``99``, ``99.90`` as ``99.9``."""
    return f"{float(percent):g}"


def _detail(path: Path) -> dict[str, Any]:
    """Keys and values of the detailed log; of a key that comes twice, the last."""
    found = {}
    for line in _lines(path):
        if line.startswith(_ENTRY):
            try:
                entry = json.loads(line.removeprefix(_ENTRY))
            except ValueError:
                continue  # cut off, or a message of LoadGen's that is no JSON
            found[str(entry.get("key"))] = entry.get("value")
    return found


def _summary(path: Path) -> dict[str, str]:
    """The lines ``name : value`` in front of the statistics."""
    found: dict[str, str] = {}
    for line in _lines(path):
        if line.startswith("Additional Stats"):
            break
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ResultError(
            f"LoadGen left no {path.name}",
            got=error,
            expected=f"its logs in {path.parent}",
            fix="run it again, with --logs DIR on a disk with room",
        ) from error
