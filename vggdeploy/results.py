"""Result files: JSON with a schema and a kind, written whole and never over another."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, forms, limits
from vggdeploy.errors import BundleError, ConfigError, ResultError
from vggdeploy.forms import ABSENT
from vggdeploy.manifest import MANIFEST, SIGNATURES, files, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCHEMA = 1
STDOUT = "-"


def refuse_overwrite(
    destination: str | None, force: bool, out: Path | None = None, *, flag: str = "--json"
) -> None:
    """Say no before the work is done when a result could not be written after it.

    Args:
        destination: of the result.
        force: whether it may replace what is there.
        out: what else the command writes.
        flag: that the destination was given with.

    Raises:
        ConfigError: when the file exists and `force` is not given, its folder is missing, or it is
            `out` itself or a file of a bundle.
    """
    if destination in (None, STDOUT):
        return
    path = Path(str(destination))
    if out is not None and os.path.realpath(path) == os.path.realpath(out):
        raise ConfigError(
            f"{flag} and --out are one file",
            got=path,
            expected="two files",
            fix="give one of them another name",
        )
    with atomic.writing(path):  # of a name that is too long, say
        there = path.exists()
        _require_no_part(path, flag)
    if there and not force:
        raise ConfigError(
            f"{path} exists",
            got="a folder" if path.is_dir() else "a file",
            expected="a free path",
            fix=f"give --force, or another {flag}",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{path} cannot be written",
            got="a folder" if path.is_dir() else f"no folder {path.parent}",
            expected="a file in a folder that exists",
            fix=f"give {flag} the path of a file in a folder that exists",
        )
    atomic.require_writable(path)


def _require_no_part(path: Path, flag: str) -> None:
    """Make sure that `path` is no file of a bundle, which would be altered then."""
    real = Path(os.path.realpath(path))
    with contextlib.suppress(BundleError):  # no bundle, or one that is beyond damage
        if real.name in (MANIFEST, SIGNATURES, *files(read_manifest(real.parent))):
            raise ConfigError(
                f"{flag} is a file of bundle {real.parent}",
                got=path,
                expected="a file of its own",
                fix=f"give {flag} another name",
            )


def require_apart(read: Iterable[Path], written: Mapping[str, Path | str | None]) -> None:
    """Make sure that nothing that is written is another file of the same command.

    Args:
        read: files, or bundles, that the command reads.
        written: what it writes, by flag; None and ``-`` are no files.

    Raises:
        ConfigError: with the flag, and what its file is besides.
    """
    seen = {os.path.realpath(path): "a result that is read" for path in read}
    for flag, given in written.items():
        if given is None or str(given) in ("", STDOUT):
            continue
        real = os.path.realpath(given)
        if real in seen:
            raise ConfigError(
                f"{flag} is {seen[real]}",
                got=given,
                expected="a file of its own",
                fix=f"give {flag} another name",
            )
        seen[real] = f"the same file as {flag}"


def say(text: str, flag: str) -> None:
    """Write to standard output.

    Args:
        text: whole lines.
        flag: that sends them there, for errors.

    Raises:
        ConfigError: when standard output is closed, or cannot be written.
    """
    if sys.stdout is None:
        raise ConfigError(
            f"{flag} has nowhere to go",
            got="a closed standard output",
            expected="an open one",
            fix="open it, or drop the flag",
        )
    with atomic.writing(Path("standard output")):
        sys.stdout.write(text)
        sys.stdout.flush()


def write(result: Mapping[str, Any], destination: str | None) -> None:
    """Write a result to a file, or to standard output for ``-``; nothing when None."""
    if destination is None:
        return
    text = json.dumps({"schema": SCHEMA, **result}, indent=1, allow_nan=False) + "\n"
    if destination == STDOUT:
        say(text, "--json -")
    else:
        atomic.write_text(Path(destination), text)


def read(path: Path) -> dict[str, Any]:
    """Read a result of any kind.

    Raises:
        ResultError: when the file is missing, no result, or of another schema.
    """
    try:
        content = limits.read(path, limits.RESULT_BYTES)
        result = json.loads(content, parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise ResultError(
            f"result {path} does not exist",
            got="nothing there",
            expected="JSON that a command's --json wrote",
            fix="check the path",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(
            f"result {path} cannot be read",
            got=error,
            expected="JSON that a command's --json wrote",
            fix="run the command again",
        ) from error
    if not isinstance(result, dict) or "kind" not in result:
        raise ResultError(
            f"{path} is no result",
            got=f"a {type(result).__name__} without a kind",
            expected="JSON that a command's --json wrote",
            fix="check the path",
        )
    if result.get("schema") != SCHEMA:
        raise ResultError(
            f"result {path} is of another schema",
            got=result.get("schema"),
            expected=SCHEMA,
            fix="run the command again with this version",
        )
    return result


def _a_time(value: object) -> bool:
    """Seconds that a query may have taken: above 0, and less than thirty years."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _an_interval(value: object) -> bool:
    """Two finite numbers in order."""
    return (
        isinstance(value, list | tuple)
        and [type(each) in (int, float) and abs(each) < math.inf for each in value] == [True, True]
        and value[0] <= value[1]
    )


_JUDGED = (
    ABSENT,
    None,
    {"n": (ABSENT, forms.positive), "sqnr_ci95": (ABSENT, None, _an_interval)},
)
_FIGURES = {"samples_s": (ABSENT, [_a_time]), "parity": _JUDGED, "accuracy": _JUDGED}


def require_possible(result: Mapping[str, Any], what: str) -> None:
    """Raises ResultError where a sample of `what`, or its number of judged images, cannot be:
    intervals of those would say nonsense with confidence."""
    if (wrong := forms.misfit(result, _FIGURES)) is not None:
        raise ResultError(
            f"{what} is wrong",
            got=wrong,
            expected="what the command's --json wrote",
            fix="run the command again",
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
