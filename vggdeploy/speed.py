"""Bundles and results by their paths: tune one, compare two, and what a measurement uses of tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, bundle, execution, machine, results, tuning
from vggdeploy.benchmarks import comparison
from vggdeploy.benchmarks import tune as search
from vggdeploy.benchmarks.options import LARGEST_BATCH
from vggdeploy.contracts import Settings
from vggdeploy.errors import BundleError, MissingError

if TYPE_CHECKING:
    from pathlib import Path

    from vggdeploy.benchmarks.tune import TuneOptions
    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter, Target


def native(opened: Bundle, device: str, command: str) -> Target:
    """The target that runs a bundle on this machine's `device`.

    Raises:
        MissingError: when it does not run here; nothing is measured by emulation.
    """
    try:
        return execution.native(opened, device).target
    except MissingError as error:
        raise MissingError(
            f"{command} measures the device itself, never an emulation: {error.what}",
            got=error.got,
            expected=error.expected,
            fix=error.fix,
        ) from error


def tune(
    path: Path, options: TuneOptions, reporter: Reporter, trusted: Path | None = None
) -> dict[str, Any]:
    """Tune the bundle at `path`, and put what was found into it; see `benchmarks.tune`.

    The bundle is left as it is where nothing keeps the bound.

    Args:
        path: the bundle.
        options: how.
        reporter: told the progress.
        trusted: public keys, one of which must have signed it; see `bundle.open_bundle`.

    Returns:
        the result of `benchmarks.tune`, with ``recorded``: whether it is in the bundle.

    Raises:
        MissingError: when it does not run on this machine.
        ConfigError: when the bundle cannot be written, before anything is measured.
    """
    options.check()
    opened = bundle.open_bundle(path, trusted)
    target = native(opened, options.device, "tune")
    atomic.require_writable(path.resolve())  # where a link points to
    found = search.tune(opened, target, options, reporter)
    winner = found["winner"]
    if winner is None:
        return {**found, "recorded": False}
    choice = tuning.Choice(
        options.goal,
        winner["batch"],
        Settings(**winner["settings"]),
        _place(target, options.device),
        target.version(),
        options.bound_s,
    )
    tuning.record(opened, choice, found)
    return {**found, "recorded": True}


def tuned(
    opened: Bundle, target: Target, goal: str, device: str, batch: int | None = None
) -> tuple[tuning.Choice | None, tuple[str, ...]]:
    """What a bundle was tuned to for `goal` on this machine, and what to know about it.

    Args:
        batch: images a query where that is asked for; a choice for another is not used.

    Raises:
        BundleError: when it was tuned to what tuning does not choose for the target.
    """
    if not tuning.choices(opened):
        return None, ()
    here = _place(target, device)
    chosen, cautions = tuning.choose(opened, goal, here, target.version(), batch)
    if chosen is not None and not (
        1 <= chosen.batch <= LARGEST_BATCH and target.tunable(chosen.settings, here.cores)
    ):
        # No signature covers what a bundle is tuned to.
        raise BundleError(
            f"bundle {opened.path} was not tuned by 'vggdeploy tune'",
            got=f"batch {chosen.batch}, {chosen.settings}",
            expected=f"a batch of 1 to {LARGEST_BATCH} and settings that are tried for {target.name}",
            fix="tune it again, or give --no-tuned",
        )
    return chosen, cautions


def _place(target: Target, device: str) -> tuning.Place:
    return tuning.place(device, machine.system(), target.device_facts(device))


def compare(a: Path, b: Path, *, across_machines: bool, seed: int) -> dict[str, Any]:
    """Compare two result files; see `benchmarks.comparison.compare`.

    Raises:
        ResultError: when one is no measurement, or they are not comparable.
    """
    return comparison.compare(
        results.read(a), results.read(b), across_machines=across_machines, seed=seed
    )
