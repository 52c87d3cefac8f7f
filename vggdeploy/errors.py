"""The error tree: everything a user can cause, each with the exit code it ends in.

::

    VggdeployError                 exit 2, unless a subclass says otherwise
    ├── ConfigError                a flag, a setting or a TOML file
    ├── DatasetError               an image or a folder of images
    ├── WeightsError               a checkpoint
    ├── ModelError                 an ONNX graph
    ├── CalibrationError           statistics that cannot be collected or used
    ├── BundleError                a bundle: missing, altered, of another schema, not signed
    ├── ResultError                a result file: missing, unreadable, of another schema
    ├── BoundError                 exit 1: a bound that a build was to meet and cannot
    ├── RunnerError                a runner: wrong state, name, shape or dtype
    ├── MissingError               exit 3: this machine lacks something
    └── PartialError               exit 130: Ctrl-C; what there was by then is kept

A message answers four questions in one line, ``what: got G, expected E -- fix``: what went wrong,
what was got, what was expected, and how to mend it. None of them can be left out, and the line is
`text.printable`, whoever wrote what it quotes. A vendor's exception is mapped to one of these and
kept as ``__cause__``.
"""

from __future__ import annotations

import importlib.util

from vggdeploy.text import printable

EXIT_OK = 0
EXIT_GATE = 1
EXIT_INPUT = 2
EXIT_MISSING = 3
EXIT_INTERRUPTED = 130
"""What a shell gives a program that Ctrl-C ended, and typer too."""


class VggdeployError(Exception):
    """A failure the user can mend.

    Args:
        what: what went wrong, naming the file, tensor, flag or target.
        got: what was found: the value, the kind of file, a vendor's exception.
        expected: what would have been right.
        fix: what to do about it.
    """

    exit_code = EXIT_INPUT

    def __init__(self, what: str, *, got: object, expected: object, fix: str) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.fix = fix
        super().__init__(self._line())

    def _line(self) -> str:
        line = f"{self.what}: got {_shown(self.got)}, expected {self.expected} -- {self.fix}"
        return printable(" ".join(line.split()))


def _shown(value: object) -> str:
    """A value in a message; an exception that says nothing shows its name."""
    text = "" if value is None else str(value).strip()
    return text or (type(value).__name__ if isinstance(value, BaseException) else "nothing")


class ConfigError(VggdeployError):
    """A flag, a setting or a TOML file that cannot be used."""


class DatasetError(VggdeployError):
    """An image, or a folder of images, that cannot be used."""


class WeightsError(VggdeployError):
    """A checkpoint that cannot be loaded into the architecture asked for."""


class ModelError(VggdeployError):
    """An ONNX graph that cannot be read, checked, quantized or compiled."""


class CalibrationError(VggdeployError):
    """Calibration statistics that cannot be collected or used."""


class BundleError(VggdeployError):
    """A bundle that is missing, incomplete, altered, of another schema, or signed by nobody trusted."""


class ResultError(VggdeployError):
    """A result file that is missing, unreadable or of another schema."""


class BoundError(VggdeployError):
    """A bound that a build was to meet and cannot: what a failed gate is to a verification."""

    exit_code = EXIT_GATE


class RunnerError(VggdeployError):
    """A runner used out of order, or given an input it does not take."""


class MissingError(VggdeployError):
    """This machine lacks a package, a device, disk space or the network."""

    exit_code = EXIT_MISSING


class PartialError(VggdeployError):
    """A measurement that Ctrl-C ended after its first samples, which were kept."""

    exit_code = EXIT_INTERRUPTED


def missing_package(package: str, extra: str, purpose: str) -> MissingError:
    """The error for an optional package that is not installed.

    Args:
        package: the import name, such as ``"openvino"``.
        extra: the extra of this project that brings it.
        purpose: what needs it, as the beginning of a sentence.
    """
    return MissingError(
        f"{purpose} needs the package {package}",
        got="none installed",
        expected=f"what the extra {extra!r} brings",
        fix=f"pip install 'vggdeploy[{extra}]'",
    )


def require_package(package: str, extra: str, purpose: str) -> None:
    """Make sure that an optional package is there, without importing it.

    Raises:
        MissingError: with the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise missing_package(package, extra, purpose)
