"""What a person sees of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggdeploy.terminal import Terminal


def show_inspect(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """What a bundle is, what it was made from, and whether its files and signatures hold."""
    build, model, tool, host = (result[key] or {} for key in ("build", "model", "tool", "host"))
    rows = [
        ("target", f"{result['target']}, {_engine(result)}"),
        ("digest", result["digest"]),
        ("size", f"{result['bytes'] / 1e6:.2f} MB{', packed' if result['packed'] else ''}"),
        ("signed", _signed(result)),
        ("network", f"{model.get('name')}, SHA-256 {str(model.get('sha256'))[:16]}..."),
        ("input", _tensor(result["input"])),
        ("output", _tensor(result["output"])),
        ("preprocessing", _said(result["preprocess"])),
        ("backend", str(build.get("backend") or "none yet")),
        ("made by", f"{_said(tool, ' ')}, {_host(host)}"),
    ]
    if result["calibration"]:
        rows.append(("calibration", _said(result["calibration"])))
    if result["kept"]:
        rows.append(("kept in high precision", ", ".join(result["kept"])))
    if result["recipe"]:
        rows.append(("TensorRT recipe", _said(result["recipe"])))
    if result["device"]:
        rows.append(("compiled on", _said(result["device"])))
    for each in result["tuned"]:
        rows.append(
            (f"tuned for {each['goal']}", f"batch {each['batch']}, {_said(each['settings'])}")
        )
    terminal.table((result["path"], ""), rows, left=2)
    terminal.line("")
    terminal.table(
        ("file", "bytes", "SHA-256", "state"),
        [
            (
                file["name"],
                f"{file['size']:,}",
                f"{file['sha256'][:16]}...",
                Text(file["state"], style="green" if file["state"] == "whole" else "red"),
            )
            for file in result["files"]
        ],
    )


def _host(host: Mapping[str, Any]) -> str:
    said = {key: host.get(key) or "not told" for key in ("system", "machine", "python")}
    return "on {system} ({machine}), Python {python}".format(**said)


def _engine(result: Mapping[str, Any]) -> str:
    if result["engine"]:
        return f"engine {', '.join(result['engine'])}"
    return "portable: to be compiled on the device"


def _signed(result: Mapping[str, Any]) -> str:
    words = {True: "trusted", False: "WRONG", None: "not among the trusted keys"}
    if result["trusted"] is None:
        words[None] = "not checked: give --trusted-keys"
    found = [f"by {each['key'][:16]}... ({words[each['holds']]})" for each in result["signatures"]]
    return ", ".join(found) or "no"


def _tensor(said: Mapping[str, Any]) -> str:
    shape = ", ".join("N" if side is None else str(side) for side in said.get("shape", ()))
    return f"{said.get('name')} [{shape}] {said.get('dtype', '')}"


def _said(values: Mapping[str, Any], between: str = ", ") -> str:
    """What is known of a mapping, in one line."""
    known = {key: value for key, value in values.items() if value not in (None, (), [])}
    if between == " ":
        return between.join(str(value) for value in known.values())
    return between.join(f"{key} {value}" for key, value in known.items())
