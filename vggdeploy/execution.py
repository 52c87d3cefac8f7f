"""How a bundle is executed on this machine: natively, or emulated where its device is not here.

Emulation computes the graph that the bundle's engine is compiled from, as that graph is defined, in
float on the CPU: values are rounded and saturate at each QuantizeLinear as in the engine, while sums
between are float32's in place of exact integers, and what is float16 in the graph is computed in
float32. So accuracy can be judged before a device is at hand; speed cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vggdeploy import sources, targets
from vggdeploy.errors import MissingError

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import GraphTarget, Runner, RunOptions, Target


@dataclass(frozen=True)
class Execution:
    """How one bundle runs here.

    Attributes:
        target: the bundle's.
        emulator: what computes the graph in its place; None where the target itself runs.
        reason: why it is emulated.
    """

    target: Target
    emulator: GraphTarget | None = None
    reason: str = ""

    @property
    def kind(self) -> Literal["native", "emulated"]:
        """As results name it."""
        return "emulated" if self.emulator else "native"

    def least(self, opened: Bundle) -> int:
        """The fewest images of a query. A TensorRT engine may take no single one; the graph that
        emulates it does."""
        return opened.batches[0] if opened.batches and self.kind == "native" else 1

    def open(self, opened: Bundle, options: RunOptions) -> Runner:
        """A runner of the bundle's engine, or of its graph.

        Raises:
            MissingError, ModelError: as the target's own `Target.open`.
            BundleError: when a graph is to be emulated and there is none.
        """
        if self.emulator is None:
            return self.target.open(opened, options)
        return self.emulator.open_graph(opened.graph, (), replace(options, device="CPU"))

    def cautions(self, opened: Bundle, options: RunOptions) -> tuple[str, ...]:
        """What to know before trusting the outputs."""
        if self.emulator is None:
            return self.target.cautions(opened, options)
        caution = f"emulated on the CPU, as its graph is defined, since {self.reason}"
        if not opened.compiled:
            caution += f"; there is no engine yet: {compile_command(opened)} makes it on the device"
        return (caution,)


def native(opened: Bundle, device: str) -> Execution:
    """The target itself, known to run `opened` on this machine's `device`.

    Raises:
        MissingError: when it does not run here, or there is no engine yet.
    """
    reason = _lacking(targets.get(opened.target), device)
    if reason is not None:
        raise reason
    if not opened.compiled:
        raise MissingError(
            f"bundle {opened.path} has no engine yet",
            got="a portable one, not compiled here",
            expected="an engine for this device",
            fix=compile_command(opened),
        )
    return Execution(targets.get(opened.target))


def choose(opened: Bundle, device: str, *, only_native: bool = False) -> Execution:
    """How `opened` is executed here: natively where its target runs, else emulated.

    A bundle without an engine is not emulated where its target runs: compiling it is a command.

    Args:
        opened: the bundle.
        device: the backend's own name of the device.
        only_native: forbids emulation.

    Raises:
        MissingError: when neither can be.
    """
    target = targets.get(opened.target)
    lacking = _lacking(target, device)
    if lacking is None or only_native or not target.keeps_graph:
        return native(opened, device)
    if (opened.manifest.get("recipe") or {}).get("dla_core") is not None:
        raise MissingError(
            f"bundle {opened.path} cannot be emulated, since DLA quantizes by itself and its graph "
            "is the float one",
            got=said(lacking),
            expected=lacking.expected,
            fix=lacking.fix,
        )
    return Execution(target, emulator(target, lacking), said(lacking))


def emulator(target: Target, lacking: MissingError) -> GraphTarget:
    """What emulates `target`, which does not run here for what is `lacking`.

    Raises:
        MissingError: with both ways out.
    """
    try:
        return sources.float_target()
    except MissingError as error:
        raise MissingError(
            f"{said(lacking)}, and to emulate it on the CPU takes OpenVINO",
            got=error.got,
            expected=lacking.expected,
            fix=f"{lacking.fix}, or: {error.fix}",
        ) from error


def lacking(target: str, device: str) -> MissingError | None:
    """Why bundles of `target` do not run on this machine's `device`; None where they do.

    Raises:
        ConfigError: for an unknown target.
    """
    return _lacking(targets.get(target), device)


def compile_command(opened: Bundle) -> str:
    """The command that makes the engine of a portable bundle."""
    return f"vggdeploy compile {opened.path}"


def _lacking(target: Target, device: str) -> MissingError | None:
    try:
        sources.runnable(target.name, device)
    except MissingError as error:
        return error
    return None


def said(error: MissingError) -> str:
    """What is lacking and why, as a part of a sentence."""
    return f"{error.what}: {error.got}"
