"""TOML that a person wrote: settings and recipes of preprocessing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vggdeploy import limits
from vggdeploy.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BOM = "\N{BYTE ORDER MARK}"
"""What some editors put before UTF-8."""

_MOST = 1 << 63
"""TOML's whole numbers have 64 bits, and what it cannot keep it refuses (toml.io, v1.0.0, Integer)."""

_LONG = "a whole number of more than 64 bits"


def read(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file, which `what` calls by its kind in errors.

    Raises:
        FileNotFoundError: when there is none.
        ConfigError: when it cannot be read, or is no TOML.
    """
    try:
        path.lstat()
        if not path.is_file():
            got = "no plain file" if path.exists() else "a link to nothing"
            raise _unreadable(path, what, got)
        text = limits.read_text(path, limits.TOML_BYTES).removeprefix(_BOM)
        if any(line.count(".") > limits.TOML_DOTS for line in _told(text)):
            raise _unreadable(path, what, f"a line of more than {limits.TOML_DOTS} dots")
        table: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        # Python's own error of a number with too many digits says how to allow them.
        raise _unreadable(path, what, _LONG if type(error) is ValueError else error) from error
    rest: list[Any] = [table]
    while rest:
        value = rest.pop()
        if isinstance(value, dict | list):
            rest += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and not -_MOST <= value < _MOST:
            raise _unreadable(path, what, _LONG)
    return table


def _told(text: str) -> Iterator[str]:
    """The lines that may hold a key. TOML ends them at a line feed alone: what else Python takes for
    an end may stand in a key's quotes."""
    return (line for line in text.split("\n") if not line.lstrip().startswith("#"))


def _unreadable(path: Path, what: str, got: object) -> ConfigError:
    return ConfigError(
        f"{what} file {path} cannot be read",
        got=got,
        expected="TOML in UTF-8",
        fix="mend or remove it",
    )
