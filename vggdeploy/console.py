"""What a person sees of builds, verifications and verdicts, and of what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy import machine_table
from vggdeploy.bench_table import show_bench
from vggdeploy.contracts import TensorSpec
from vggdeploy.gate_table import show_gate
from vggdeploy.terminal import bar, duration

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vggdeploy.gates import Verdicts
    from vggdeploy.terminal import Terminal

_FULL_WIDTH = 96
"""Columns that the whole budget table takes; below, the kind of layer is left out."""


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
    terminal.table(
        ("machine", ""),
        [
            *machine_table.rows(result["system"]),
            ("temperature", machine_table.heat(result["temperature_c"])),
            ("power", result["power"]["source"] or result["power"]["reason"]),
        ],
        left=2,
    )
    terminal.line("")
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
                _readiness(said),
                said["summary"] if said["runs_here"] else f"{said['reason']}: {said['fix']}",
            )
            for name, said in result["targets"].items()
        ],
        left=3,
    )
    if result["saturates"]:
        terminal.line(
            "this CPU has no VNNI, so its 8-bit sums may saturate: where 'verify --data' shows a "
            "loss, build ov-int8 for it with --cpu-isa avx2",
            style="yellow",
        )
    for device, said in result["openvino_devices"].items():
        terminal.line(
            f"OpenVINO {device}: {said['name']}, computes in {', '.join(said['precisions'])}"
        )
    cache = result["cache"]
    held = f"{cache['path']}, {cache['bytes'] / 1e6:,.0f} MB"
    terminal.line(f"cache: {cache['reason'] or held}")


def _readiness(target: Mapping[str, Any]) -> str:
    if target["runs_here"]:
        return "ready"
    able = [*(["builds"] if target["available"] else []),
            *(["emulated"] if target["emulated"] else [])]  # fmt: skip
    return ", ".join(able) or "unavailable"


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
    if result["sparsity"]:
        _show_sparsity(terminal, result["sparsity"])
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
    engine = f"engine {result['engine_bytes'] / 1e6:.2f} MB"
    if result["batches"]:
        engine += f", batches {', '.join(map(str, result['batches']))}"
    if not result["compiled"]:
        engine = f"no engine yet: 'vggdeploy compile {result['bundle']}' makes it on the device"
    if result["input"]["dtype"] == "uint8":
        engine += f", takes {TensorSpec(**result['input'])}"
    terminal.line(f"bundle {result['bundle']}: {result['target']}, {engine}", style="bold")


def show_compile(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """What a bundle was compiled to, and with what."""
    name = result["device"].get("name")
    terminal.line(
        f"bundle {result['bundle']}: {result['target']}, engine "
        f"{result['engine_bytes'] / 1e6:.2f} MB, by {result['backend']}"
        + (f" for {name}" if name else ""),
        style="bold",
    )


def show_run(terminal: Terminal, result: Mapping[str, Any], verdicts: Verdicts) -> None:
    """A run's parts; in place of its measurement, why there is none."""
    show_build(terminal, result["build"], without=result["verify"]["cautions"])
    show_verify(terminal, result["verify"])
    if result["bench"]:
        show_bench(terminal, result["bench"])
    else:
        terminal.line(
            f"verified by emulation and not benched: {result['not_benched']}", style="yellow"
        )
    show_gate(terminal, verdicts)


def _show_sparsity(terminal: Terminal, sparsity: Mapping[str, Any]) -> None:
    """What pruning did to each layer, and which it left as they were."""
    terminal.table(
        (f"{sparsity['pattern']} sparsity", "error of weights", "of outputs"),
        [
            (
                layer["name"],
                f"{layer['weight_error']:.1%}",
                "" if layer["output_error"] is None else f"{layer['output_error']:.1%}",
            )
            for layer in sparsity["layers"]
        ]
        + [("together", f"{sparsity['weight_error']:.1%}", "")],
    )
    for name, reason in sparsity["dense"]:
        terminal.line(f"left dense: {name} ({reason})", style="yellow")


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
