"""The flags of TensorRT targets: what was asked for, checked before any long work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vggdeploy import targets
from vggdeploy.calib import sparsity
from vggdeploy.contracts import TrtOptions
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from vggdeploy.inputs import BuildOptions

_LEVELS = range(6)
"""What TensorRT takes as a builder optimization level (IBuilderConfig)."""

_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")


def tensorrt(options: BuildOptions) -> TrtOptions | None:
    """How TensorRT builds; None for another target.

    A batch that is not given follows those that are: ``--max-batch 1`` alone is a profile of 1.

    Raises:
        ConfigError: for a flag of TensorRT's with another target, or a value that cannot be.
    """
    given: dict[str, Any] = {
        "--flavour": options.flavour,
        "--min-batch": options.min_batch,
        "--opt-batch": options.opt_batch,
        "--max-batch": options.max_batch,
        "--workspace": options.workspace,
        "--optimization-level": options.optimization_level,
        "--compute-capability": tuple(options.compute_capability or ()) or None,
        "--dla": options.dla,
        "--sparsity": options.sparsity,
    }
    targets.get(options.target)
    takers = [name for name, entry in targets.REGISTRY.items() if entry.module == "tensorrt"]
    if options.target not in takers:
        for flag, value in given.items():
            if value is not None:
                raise ConfigError(
                    f"{flag} makes no difference to {options.target}",
                    got="a target of another backend",
                    expected=f"a TensorRT target: {', '.join(takers)}",
                    fix="drop it, or its setting, or build trt-int8",
                )
        return None
    for flag, least in (("--workspace", 1), ("--dla", 0)):
        value = given[flag]
        if value is not None and value < least:
            raise ConfigError(
                f"{flag} is wrong", got=value, expected=f"{least} or more", fix="mend the value"
            )
    level = options.optimization_level
    if level is not None and level not in _LEVELS:
        raise ConfigError(
            "--optimization-level is wrong",
            got=level,
            expected=f"{_LEVELS[0]} to {_LEVELS[-1]}",
            fix="mend the value",
        )
    if options.sparsity not in (None, sparsity.PATTERN):
        raise ConfigError(
            "unknown --sparsity",
            got=repr(options.sparsity),
            expected=f"{sparsity.PATTERN}, which is what sparse tensor cores take",
            fix="mend the value, or drop it",
        )
    capabilities = tuple(dict.fromkeys(given["--compute-capability"] or ()))
    for capability in capabilities:
        if not _CAPABILITY.fullmatch(capability):
            raise ConfigError(
                "--compute-capability is wrong",
                got=repr(capability),
                expected="a version such as 7.5 or 12.0",
                fix="give one flag for each",
            )
    least, tuned, most = _batches(options)
    return TrtOptions(
        flavour=options.flavour,
        min_batch=least,
        opt_batch=tuned,
        max_batch=most,
        workspace_bytes=options.workspace,
        optimization_level=level,
        compute_capabilities=capabilities,
        dla_core=options.dla,
        sparse=options.sparsity is not None,
    )


def _batches(options: BuildOptions) -> tuple[int, int, int]:
    default = TrtOptions()
    most = options.max_batch
    if most is None:
        most = max(default.max_batch, options.opt_batch or 0, options.min_batch or 0)
    least = default.min_batch if options.min_batch is None else options.min_batch
    tuned = max(default.opt_batch, least) if options.opt_batch is None else options.opt_batch
    if not 1 <= least <= tuned <= most:
        raise ConfigError(
            "the batches of the optimization profile are out of order",
            got=f"--min-batch {least}, --opt-batch {tuned}, --max-batch {most}",
            expected="1 or more, each no less than the one before",
            fix="mend them",
        )
    return least, tuned, most
