"""Settings from ``vggdeploy.toml``, else from ``[tool.vggdeploy]`` in pyproject.toml.

Keys are the flags' names with underscores (``calib_images = 256``); a table named after a command
holds settings for it alone, and ``[gate]`` holds the bounds of ``gate`` and ``run``, with tables of
its own that `policy.split` takes out first.
"""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy import forms, toml
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Kind = Literal["switch", "whole", "number", "text", "texts"]
_KINDS: dict[Kind, tuple[Any, str]] = {
    "switch": (bool, "true or false"),
    "whole": (int, "a whole number"),
    "number": (float, "a number"),
    "text": (lambda value: isinstance(value, str) and value != "", "text in quotes, not empty"),
    "texts": ([str], 'a list of texts, such as ["8.6"]'),
}

OWN, SHARED = "vggdeploy.toml", "pyproject.toml"


def here() -> Path:
    """The folder that the program was called in.

    Raises:
        ConfigError: when it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "the working directory is gone",
            got="a folder that was removed",
            expected="one that exists",
            fix="change to another",
        ) from error


def load(folder: Path) -> tuple[dict[str, Any], str]:
    """The settings that apply in `folder`, and the file they are from; empty where there are none.

    Raises:
        ConfigError: for a file that is no TOML, and what is no file: settings that say whom to
            trust do not vanish unseen.
    """
    for name in (OWN, SHARED):
        path = folder / name
        try:
            table = toml.read(path, "settings")
        except FileNotFoundError:
            continue
        if name == SHARED:
            tool = table.get("tool", {})
            table = tool.get("vggdeploy", {}) if isinstance(tool, dict) else tool
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: tool.vggdeploy is no table",
                got=type(table).__name__,
                expected="a table",
                fix="mend the file",
            )
        if table or name == OWN:
            return table, str(path)
    return {}, ""


def defaults(
    settings: Mapping[str, Any], commands: Mapping[str, Mapping[str, Kind]], where: str
) -> dict[str, dict[str, Any]]:
    """Settings sorted by command: what stands in for flags that were not given.

    Args:
        settings: as `load` gave them.
        commands: the flags that each command takes: their names, with underscores, and kinds.
        where: the file, for errors.

    Raises:
        ConfigError: for a key that no command takes, with the nearest that one does, and for a
            value of another kind than the flag's.
    """
    found: dict[str, dict[str, Any]] = {command: {} for command in commands}
    anywhere = {name: kind for flags in commands.values() for name, kind in flags.items()}
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    for key, table in tables.items():
        require_known(key, commands, where, "table")
        for inner, setting in table.items():
            require_known(inner, commands[key], where, f"key in [{key}]")
            _require_kind(f"[{key}] {inner}", setting, commands[key][inner], where)
            found[key][inner] = setting
    # A run ends in a gate: it has the same bounds, unless its own table says otherwise.
    for inner, setting in tables.get("gate", {}).items():
        if inner.startswith(("min_", "max_", "baseline")) and inner in commands.get("run", ()):
            found["run"].setdefault(inner, setting)
    for key, value in settings.items():
        if key in tables:
            continue
        if key in commands and key not in anywhere:
            raise ConfigError(
                f"{where}: {key} is wrong",
                got=reprlib.repr(value),
                expected=f"a table [{key}] of the settings of that command",
                fix="make it a table, or remove it",
            )
        require_known(key, anywhere, where, "key")
        for command, flags in commands.items():
            if key in flags:
                _require_kind(key, value, flags[key], where)
                found[command].setdefault(key, value)
    return found


def _require_kind(key: str, value: object, kind: Kind, where: str) -> None:
    """Nothing is made of a value of another kind: ``"yes"`` is no ``true``, and ``true`` no 1."""
    form, expected = _KINDS[kind]
    if forms.misfit(value, form) is not None:
        raise ConfigError(
            f"{where}: {key} is wrong",
            got=reprlib.repr(value),
            expected=expected,
            fix="mend or remove it",
        )


def require_known(key: str, names: Iterable[str], where: str, what: str = "key") -> None:
    """Make sure that a key is one of `names`.

    Raises:
        ConfigError: with the nearest of them.
    """
    known = sorted(names)
    if key in known:
        return
    raise ConfigError(
        f"{where}: unknown {what}",
        got=repr(key),
        expected=nearest(key, known),
        fix="rename or remove it",
    )


def nearest(name: str, known: Sequence[str], most: int = 1) -> str:
    """What to expect in the place of a name that is not among the `known`: the nearest of them,
    `most` at most, or all where none is near."""
    near = difflib.get_close_matches(name, known, most)
    return f"perhaps {', '.join(map(repr, near))}" if near else f"one of {', '.join(known)}"
