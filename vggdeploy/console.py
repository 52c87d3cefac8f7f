"""What a person sees: progress and tables on standard error. Units are given here alone."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from vggdeploy.contracts import Item
    from vggdeploy.gates import Verdicts

_LOG_WIDTH = 120
"""Where standard error is a file, there is no terminal to fit into."""

_LOG_SECONDS = 10.0
"""How often a log, which has no bars, hears of a long job."""

_FULL_WIDTH = 96
"""Columns that the whole budget table takes; below, the kind of layer is left out."""

_BAR_WIDTH = 20
"""Columns of a table's longest bar."""

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class _Count(MofNCompleteColumn):
    """How many of how many; nothing where the number is not known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class Terminal:
    """Progress bars and tables on standard error; a `contracts.Reporter`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        if not self.console.is_terminal:
            self.console.width = _LOG_WIDTH
        self._progress: Progress | None = None
        self._running = 0

    @contextlib.contextmanager
    def _bar(share: float) -> str:
    """A bar of `share` of `_BAR_WIDTH` columns, to an eighth of one."""
    whole, rest = divmod(round(8 * _BAR_WIDTH * min(1.0, max(0.0, share))), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[rest].strip()


def show_verify(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Parity, and accuracy where there are labels."""
    parity, accuracy = result["parity"], result["accuracy"]
    rows = [
        ("images", f"{parity['n']:,} ({result['judged']}, {result['execution']})"),
        ("top-1 agreement", f"{parity['top1_agreement']:.4f}"),
        ("cosine, mean / min", f"{parity['cosine_mean']:.6f} / {parity['cosine_min']:.6f}"),
        ("SQNR", f"{parity['sqnr_db']:.1f} dB"),
        ("KL divergence", f"{parity['kl_mean']:.2e} nat"),
        ("largest difference", f"{parity['max_abs']:.4g}"),
    ]
    if accuracy:
        low, high = accuracy["ci95"]
        rows += [
            ("top-1", f"{accuracy['top1']:.2%} (95%: {low:.2%} to {high:.2%})"),
            ("top-5", f"{accuracy['top5']:.2%}"),
            ("reference top-1", f"{accuracy['reference_top1']:.2%}"),
            (
                "drop",
                f"{100 * accuracy['drop']:.2f} points (McNemar p {accuracy['mcnemar_p']:.2f})",
            ),
        ]
    terminal.table(("parity with the reference", ""), rows)
    for caution in filter(None, (result["note"], *result["cautions"])):
        terminal.line(caution, style="yellow")


def show_bench(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Latency, throughput, and both against the budget."""
    latency, budget = result["latency_s"], result["budget"]
    floor = max(budget["compute_floor_s"], budget["memory_floor_s"])
    terminal.table(
        (f"speed at batch {result['batch']}", ""),
        [
            ("median latency", duration(latency["p50"])),
            ("p90 / p99", f"{duration(latency['p90'])} / {duration(latency['p99'])}"),
            ("samples", f"{len(result['samples_s'])}"),
            ("throughput", f"{result['throughput_ips']:.2f} images/s"),
            ("budget", f"{budget['macs'] / 1e9:.2f} GMAC"),
            ("achieved", f"{budget['achieved_macs_per_s'] / 1e9:.0f} GMAC/s"),
            (
                "attainable here",
                f"{budget['peak_macs_per_s'] / 1e9:.0f} GMAC/s, "
                f"{budget['peak_bytes_per_s'] / 1e9:.1f} GB/s",
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
            ("machine", f"{result['system']['cpu']}, {result['system']['cores']} cores"),
        ],
    )
    for reason in result["unstable_because"]:
        terminal.line(f"unstable: {reason}", style="yellow")


def show_gate(terminal: Terminal, verdicts: Verdicts) -> None:
    """Every criterion, then the verdict."""
    terminal.table(
        ("criterion", "bound", "value", "verdict"),
        [
            (
                criterion.name,
                f"{criterion.bound:.6g}",
                "none" if criterion.value is None else f"{criterion.value:.6g}",
                Text(criterion.verdict, style=_COLOURS[criterion.verdict]),
            )
            for criterion in verdicts.criteria
        ],
    )
    for criterion in verdicts.criteria:
        if criterion.note:
            terminal.line(f"{criterion.name}: {criterion.note}", style="yellow")
    if verdicts.judged:
        terminal.line(f"judged on {verdicts.images} images ({verdicts.judged})")
    if verdicts.execution == "emulated":
        terminal.line("accuracy was judged by emulation, not on the device", style="yellow")
    terminal.line(
        f"verdict: {verdicts.verdict.upper()}", style=f"bold {_COLOURS[verdicts.verdict]}"
    )


def duration(value: float) -> str:
    """A duration in the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"
