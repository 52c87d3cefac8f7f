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
    def _bar(self, label: str, total: int | None) -> Iterator[Any]:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                _Count(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal,
            )
            self._progress.start()
        progress = self._progress
        task = progress.add_task(label, total=total)
        self._running += 1
        try:
            yield lambda: progress.advance(task)
        finally:
            progress.remove_task(task)
            self._running -= 1
            if not self._running:
                progress.stop()
                self._progress = None

    def track(self, items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
        """Pass `items` through under a bar; in a log, say now and then how far it is."""
        said = time.perf_counter()
        with self._bar(label, total) as advance:
            for count, item in enumerate(items, start=1):
                yield item
                advance()
                if not self.console.is_terminal and time.perf_counter() - said >= _LOG_SECONDS:
                    said = time.perf_counter()
                    self.line(f"{label} {count}/{total}", style="dim")

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """A moving bar for as long as the block lasts."""
        with self._bar(label, None):
            yield

    def done(self, label: str, seconds: float, cached: bool) -> None:
        """One line that stays."""
        self.line(f"{label:<12}{duration(seconds):>10}{'  cached' if cached else ''}", style="dim")

    def line(self, text: str, style: str = "") -> None:
        """One line of text, never read as markup and never broken."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Text]],
        title: str = "",
        left: int = 1,
    ) -> None:
        """A table whose first `left` columns are text and whose others are figures."""
        table = Table(
            title=title or None,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for index, column in enumerate(columns):
            table.add_column(
                column,
                justify="left" if index < left else "right",
                no_wrap=len(columns) > 4,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        self.console.print(table)


def show_budget(
    terminal: Terminal, result: Mapping[str, Any], yardstick: Mapping[str, Any]
) -> None:
    """The per-layer table, its totals, a second network's totals, and the 3x3 stacks."""
    from vggdeploy import topology

    total = result["total"]
    columns = ["layer", "kind", "output", "params", "MACs", "px", "W MB", "A MB", "MAC/B"]
    rows = [
        [
            layer["name"],
            layer["kind"],
            "x".join(map(str, layer["output"])),
            f"{layer['params']:,}",
            f"{layer['macs']:,}",
            f"{layer['receptive_field']:,}",
            f"{layer['weight_bytes'] / 1e6:.2f}",
            f"{layer['activation_bytes'] / 1e6:.2f}",
            f"{layer['intensity']:.1f}",
        ]
        for layer in result["layers"]
    ]
    rows.append(
        [
            "total",
            "",
            "",
            f"{total['params']:,}",
            f"{total['macs']:,}",
            "",
            f"{total['weight_bytes'] / 1e6:.2f}",
            f"{total['activation_bytes'] / 1e6:.2f}",
            "",
        ]
    )
    left = 3
    if terminal.console.width < _FULL_WIDTH:
        columns, rows, left = [columns[0], *columns[2:]], [[r[0], *r[2:]] for r in rows], 2
    terminal.table(
        columns, rows, f"{result['arch']} at {result['precision']}, batch {result['batch']}", left
    )
    terminal.line(
        "px: receptive field, in input pixels. W: weights, A: activations in and out. MAC/B: "
        "arithmetic intensity, MACs a byte moved."
    )
    terminal.line("")
    terminal.table(
        ("network", "parameters", "MACs", "FLOPs"),
        [
            (
                r["arch"],
                f"{r['total']['params']:,}",
                f"{r['total']['macs']:,}",
                f"{r['total']['flops']:,}",
            )
            for r in (result, yardstick)
        ],
    )
    terminal.line(
        f"MACs are multiply-accumulates for one image ({total['macs'] / 1e9:.2f} G); FLOPs count "
        f"multiply and add apart ({total['flops'] / 1e9:.2f} G)."
    )
    stack, wide = topology.stack_weights(3, 3, 1), topology.stack_weights(1, 7, 1)
    terminal.line(
        f"Three 3x3 layers see {topology.stack_receptive_field(3, 3)} pixels each way, as one 7x7 "
        f"layer does, with {stack} C^2 weights in place of {wide} C^2 "
        f"({1 - stack / wide:.0%} fewer) for C channels in and out."
    )


def show_doctor(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Machine, packages, targets and devices."""
    machine = result["system"]
    memory = machine["memory_bytes"]
    terminal.line(
        f"{machine['cpu']}, {machine['cores']} cores, "
        f"{'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'} memory, "
        f"{machine['system']}, Python {machine['python']}"
    )
    terminal.line(f"8- and 16-bit instructions: {', '.join(machine['isa']) or 'none known'}\n")
    terminal.table(
        ("package", "version", "extra"),
        [
            (name, said["version"] or "missing", said["extra"])
            for name, said in result["packages"].items()
        ],
        left=3,
    )
    terminal.line("")
    terminal.table(
        ("target", "", "what is missing"),
        [
            (
                name,
                "ready" if said["runs_here"] else "builds" if said["available"] else "unavailable",
                said["summary"] if said["runs_here"] else f"{said['reason']}: {said['fix']}",
            )
            for name, said in result["targets"].items()
        ],
        left=3,
    )
    if result["saturates"]:
        terminal.line(
            "this CPU has no VNNI, so its 8-bit sums may saturate: build ov-int8 for it with "
            "--cpu-isa avx2",
            style="yellow",
        )
    for device, said in result["openvino_devices"].items():
        terminal.line(
            f"OpenVINO {device}: {said['name']}, computes in {', '.join(said['precisions'])}"
        )
    terminal.line(f"cache: {result['cache']['path']}, {result['cache']['bytes'] / 1e6:,.0f} MB")


def show_build(
    terminal: Terminal, result: Mapping[str, Any], *, without: Collection[str] = ()
) -> None:
    """What a build came to; its stages were told as they ended. A run's verification says most
    cautions again: those are in `without`."""
    kept = result["mixed"]["kept"] if result["mixed"] else ()
    for name, reason in result["left_in_high_precision"]:
        if name in kept:  # told with what they cost
            continue
        terminal.line(f"left in high precision: {name} ({reason})", style="yellow")
    if result["mixed"]:
        _show_mixed(terminal, result["mixed"])
    if result["ignored_files"]:
        terminal.line(
            f"ignored in the image folder: {result['ignored_files']} files that are no images"
        )
    for caution in result["cautions"]:
        if caution not in without:
            terminal.line(caution, style="yellow")
    if result["unchanged"]:
        terminal.line("nothing was compiled: the same bundle is there already")
    elif all(stage["cached"] for stage in result["stages"] if stage["name"] != "bundle"):
        terminal.line("nothing was compiled: every stage was in the cache")
    terminal.line(
        f"bundle {result['bundle']}: {result['target']}, engine "
        f"{result['engine_bytes'] / 1e6:.2f} MB",
        style="bold",
    )


def _show_mixed(terminal: Terminal, mixed: Mapping[str, Any]) -> None:
    """What was kept in high precision for the bound on the drop, and what that cost."""
    rows = [
        ("kept in high precision", ", ".join(mixed["kept"]) or "nothing: INT8 is within the bound"),
        (
            "top-1 drop" if mixed["judged"] == "labels" else "top-1 drop at most (1 - agreement)",
            f"{100 * mixed['drop']:.2f} points of {100 * mixed['max_drop']:.2f} allowed, on "
            f"{mixed['images']} held-out images",
        ),
    ]
    if mixed["kept"]:
        rows.append(("of INT8 throughout", f"{100 * mixed['int8_drop']:.2f} points"))
        rows.append(("MACs in high precision", f"{mixed['kept_macs_share']:.1%}"))
    if mixed["measured_latency_s"] is not None:
        slower = mixed["measured_latency_s"] / mixed["int8_latency_s"]
        rows.append(
            (
                "latency",
                f"{duration(mixed['measured_latency_s'])} measured, {slower:.2f} times INT8's "
                f"{duration(mixed['int8_latency_s'])}; {duration(mixed['estimated_latency_s'])} "
                "by the roofline",
            )
        )
    terminal.table(("mixed precision", ""), rows)


def show_sensitivity(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Every layer with what it does to the scores alone, the worst first.

    The bar is the noise's amplitude beside that of the worst layer.
    """
    layers = result["layers"]
    worst = layers[0]["sqnr_db"]
    terminal.table(
        ("layer", "noise", "SQNR", "agreement", "MACs", "weights"),
        [
            (
                layer["name"],
                bar(10 ** ((worst - layer["sqnr_db"]) / 20)),
                f"{layer['sqnr_db']:.1f} dB",
                f"{layer['agreement']:.4f}",
                f"{layer['macs']:,}",
                f"{layer['weight_share']:.1%}",
            )
            for layer in layers
        ],
        f"each layer alone quantized for {result['target']}, "
        f"{result['sensitivity_images']} calibration images",
        left=2,
    )


def bar(share: float) -> str:
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
