"""What a person sees of a measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy import machine_table
from vggdeploy.terminal import bar, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggdeploy.terminal import Terminal

_PEAKS = {
    "measured": "attainable here",
    "rate by table, bandwidth measured": "by its table, memory measured",
}
"""What a device can attain, by where that is from."""


def show_bench(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Latency with its intervals, throughput, both against the budget, and what is in doubt."""
    mlperf, server = result["mlperf"], result["server"]
    terminal.table(
        (f"{result['scenario']} at batch {result['batch']}", ""),
        [
            *_latency_rows(result),
            *_tuned_rows(result),
            *_server_rows(server),
            *_mlperf_rows(mlperf),
            *_budget_rows(result),
            *_energy_rows(result),
            ("machine", f"{result['system']['cpu']}, {result['system']['cores']} cores"),
        ],
        left=2,
    )
    if result["throughput_by_batch"]:
        best = max(row["images_per_s"] for row in result["throughput_by_batch"])
        terminal.table(
            ("batch", "", "images/s"),
            [
                (str(row["batch"]), bar(row["images_per_s"] / best), f"{row['images_per_s']:.2f}")
                for row in result["throughput_by_batch"]
            ],
            left=2,
        )
    for caution in result.get("cautions", ()):
        terminal.line(caution, style="yellow")
    if result["partial"]:
        terminal.line("partial: it was interrupted, and no gate passes it", style="yellow")
    for reason in result["unstable_because"]:
        terminal.line(f"unstable: {reason}", style="yellow")
    for reason in peak_doubts(result["budget"]):
        terminal.line(reason, style="yellow")
    for command in result["advice"]:
        terminal.line(f"  try: {command}", style="dim")


def _latency_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    latency, ends = result["latency_s"], result["ci95"]
    count, warmup = len(result["samples_s"]), result["warmup"]
    early = [f"{name} {duration(v)}" for name, v in result["early_stopping"].items() if v]
    rows = [
        (
            "median latency" if name == "p50" else name,
            duration(latency[name])
            + (
                f" (95%: {duration(ends[name][0])} to {duration(ends[name][1])})"
                if ends[name]
                else " (too few samples for an interval)"
            ),
        )
        for name in ("p50", "p90", "p99")
    ]
    if early:
        rows.append(("by early stopping", " / ".join(early)))
    settled = "settled" if warmup["steady"] else "did not settle"
    rows.append(
        (
            "samples",
            f"{count} in {result['measured_seconds']:.1f} s, after {warmup['queries']} that "
            f"{settled}",
        )
    )
    ips, requests = result["throughput_ips"], result["throughput_requests"]
    if ips is not None:
        ends = result.get("throughput_ci95")
        sure = f" (95%: {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        rows.append(("throughput", f"{ips:.2f} images/s{sure}, up to {requests} queries in flight"))
    return rows


def _tuned_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return (
        [("settings", f"tuned: {settings_words(result['settings'])}")]
        if result.get("tuned")
        else []
    )


def settings_words(settings: Mapping[str, Any]) -> str:
    """How a device is used, in words."""
    streams, threads, pinning = (settings[key] for key in ("streams", "threads", "pinning"))
    said = [
        "" if streams is None else f"{streams} stream{'s' * (streams != 1)}",
        "" if threads is None else f"{threads} thread{'s' * (threads != 1)}",
        "" if pinning is None else "pinned" if pinning else "unpinned",
        settings["precision"] or "",
    ]
    return ", ".join(filter(None, said)) or "the backend's own"


def _server_rows(server: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if server is None:
        return []
    bound = server["p99_bound_s"]
    how = (
        f" (the highest with a p99 within {duration(bound)}, of {len(server['tried'])} tried)"
        if server["found"]
        else ""
    )
    return [
        ("arrivals", f"{server['rate']:.3f} queries/s{how}"),
        ("capacity", f"{server['capacity']:.3f} queries/s with a full queue"),
    ]


def _mlperf_rows(mlperf: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if mlperf is None:
        return []
    length = "" if mlperf["full"] else "; short: not of a valid length, which --full is"
    why = f" ({', '.join(mlperf['because'])}: no)" if mlperf.get("because") else ""
    rows = [(f"MLPerf {mlperf['scenario']}", f"{mlperf['result']}{why}{length}")]
    if mlperf.get("percentiles_s") and mlperf["scenario"] != "Offline":  # which is one query
        shown = {name: mlperf["percentiles_s"].get(name) for name in ("50", "90", "99")}
        rows.append(
            (
                "LoadGen's percentiles",
                ", ".join(f"p{name} {duration(v)}" for name, v in shown.items() if v),
            )
        )
    if mlperf.get("samples_per_s"):
        rows.append(("LoadGen's rate", f"{mlperf['samples_per_s']:.2f} samples/s"))
    rows.append(("LoadGen's logs", mlperf["logs"]))
    return rows


def _budget_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    budget = result["budget"]
    rows = [
        ("budget", f"{budget['macs'] / 1e9:.2f} GMAC a query"),
        ("achieved", f"{budget['achieved_macs_per_s'] / 1e9:.0f} GMAC/s"),
    ]
    if budget["peak_macs_per_s"] is None:
        return rows
    floor = max(budget["compute_floor_s"], budget["memory_floor_s"] or 0)
    bandwidth = budget["peak_bytes_per_s"]
    rate = "unknown bandwidth" if bandwidth is None else f"{bandwidth / 1e9:.1f} GB/s"
    return [
        *rows,
        (
            _PEAKS.get(budget["peak_from"], "at most, by its table"),
            f"{budget['peak_macs_per_s'] / 1e9:.0f} GMAC/s, {rate}",
        ),
        (
            "utilisation",
            f"{budget['utilisation']:.1%}"
            + (
                " (over 100%: fewer multiplications than the network has, as Winograd's way, "
                "or the probes fell short)"
                if budget["utilisation"] > 1
                else ""
            ),
        ),
        ("floor", f"{duration(floor)} ({budget['bound']} binds)"),
    ]


def _energy_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Energy, or why it is not told, and how warm it got."""
    heat = result["temperature_c"]
    said = result["energy"]
    rows = [("energy", machine_table.energy(said) if said else result["energy_note"])]
    if warming := machine_table.warming(heat["before"], heat["after"]):
        rows.append(("temperature", warming))
    return rows


def peak_doubts(budget: Mapping[str, Any]) -> list[str]:
    """Why the peaks that a result was judged by are not to be believed; nothing where they are."""
    check = budget["peak_check"]
    if check is None or check["ok"]:
        return []
    names = ", ".join(
        f"{beaten['name']} ({beaten['achieved'] / beaten['peak']:.0%} of the {beaten['roof']} peak)"
        for beaten in check["beaten_by"]
    )
    whose = "measured peak fell short" if budget["peak_from"] == "measured" else "table is too low"
    return [
        f"the {whose}: layers beat it: {names}. Run again on an idle machine; a layer that goes on "
        "beating the compute peak multiplies less often than the network does (Winograd)"
    ]
