"""Figures as they are shown: a value from a result, where it came from, and its text with a unit.

Rounding is for reading alone: a `Figure` keeps the value whole, and the page carries it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DIGITS = 3

_LADDERS: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "B/s": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")),
    "MAC": ((1e9, "GMAC"), (1e6, "MMAC"), (1e3, "kMAC"), (1.0, "MAC")),
    "MAC/s": ((1e12, "TMAC/s"), (1e9, "GMAC/s"), (1e6, "MMAC/s"), (1e3, "kMAC/s"), (1.0, "MAC/s")),
    "J": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")),
    "W": ((1.0, "W"), (1e-3, "mW")),
    "Hz": ((1e9, "GHz"), (1e6, "MHz"), (1e3, "kHz"), (1.0, "Hz")),
}
"""For each unit, what it is divided by and then called, the largest first."""

_PLAIN = {
    "images/s": "images/s",
    "MAC/B": "MAC/B",
    "dB": "dB",
    "times": TIMES,
    "degC": "°C",
    "/s": "/s",
}
"""Units that keep their size, and their names."""


@dataclass(frozen=True)
class Figure:
    """A number of a result.

    Attributes:
        value: as the result has it, in seconds, bytes, counts, joules or shares.
        unit: ``s``, ``B``, ``B/s``, ``MAC``, ``MAC/s``, ``J``, ``W``, ``images/s``, ``MAC/B``,
            ``/s``, ``Hz``, ``dB``, ``nat``, ``times``, ``degC``, ``share``, ``part`` (a share of
            three digits), ``points``, ``cosine``, ``p``, ``count``, ``raw`` or empty.
        file: which of the report's files it is from; None for what was derived.
        pointer: where in that file, as a percent-encoded JSON Pointer (RFC 6901, section 6).
    """

    value: float
    unit: str = ""
    file: int | None = None
    pointer: str = ""

    @property
    def text(self) -> str:
        """For reading: rounded, with its unit."""
        return show(self.value, self.unit)


def derived(value: float, unit: str = "") -> Figure:
    """A figure that no result holds, but this report computed."""
    return Figure(value, unit)


def show(value: float, unit: str) -> str:
    """`value` for reading.

    A share or a cosine that is not 1 is never shown as if it were, nor one that is not 0.
    """
    if unit in _LADDERS:
        return _climb(value, _LADDERS[unit])
    if unit == "share":
        return _short_of(value * 100, 100.0, 2, "%")
    if unit == "part":
        return f"{_significant(100 * value)}%"
    if unit == "raw":
        return _sign(f"{value:.15g}")
    if unit == "cosine":
        return _short_of(value, 1.0, 6, "")
    if unit == "points":
        return _sign(f"{100 * value:.2f}") + f"{SPACE}points"
    if unit == "p":
        return "<" + SPACE + "0.001" if 0 <= value < 0.001 else f"{value:.3f}"
    if unit == "count":
        return _sign(f"{value:,.0f}")
    if unit == "nat":
        return f"{_scientific(value)}{SPACE}nat"
    number = _significant(value)
    if unit in ("dB", "degC"):
        number = _sign(f"{value:.1f}")
    return number + (SPACE + _PLAIN[unit] if unit in _PLAIN else "")


def _climb(value: float, ladder: tuple[tuple[float, str], ...]) -> str:
    size = abs(value)
    for step, name in ladder:
        # Half a last digit below a step is already rounded up to it.
        if size >= step * (1 - 5e-4):
            return f"{_significant(value / step)}{SPACE}{name}"
    step, name = ladder[-1]
    return f"{_significant(value / step)}{SPACE}{name}"


def _significant(value: float) -> str:
    """Three digits that mean something, and no fewer than the whole number has."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return _scientific(value)
    exponent = math.floor(math.log10(float(f"{size:.{_DIGITS - 1}e}")))
    return _sign(f"{value:,.{max(0, _DIGITS - 1 - exponent)}f}")


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    power = int(exponent)
    if -3 < power < 3:
        return _significant(value)
    return f"{_sign(mantissa)}{SPACE}{TIMES}{SPACE}10{str(power).translate(_SUPERSCRIPTS)}"


def _short_of(value: float, whole: float, digits: int, unit: str) -> str:
    step = 10.0**-digits
    if whole - step / 2 <= value < whole:
        return f">{SPACE}{whole - step:.{digits}f}{unit}"
    if 0 < value < step / 2:
        return f"<{SPACE}{step:.{digits}f}{unit}"
    return _sign(f"{value:.{digits}f}") + unit


def _sign(number: str) -> str:
    """A number with a true minus sign; minus nothing is nothing."""
    if number.startswith("-"):
        return number[1:] if not number.strip("-0.,") else MINUS + number[1:]
    return number


def scale(value: float, unit: str) -> tuple[float, str]:
    """What values about as large as `value` are divided by for an axis, and the unit's name."""
    for step, name in _LADDERS.get(unit, ()):
        if abs(value) >= step * (1 - 5e-4):
            return step, name
    if unit in _LADDERS:
        return _LADDERS[unit][-1]
    return (0.01, "%") if unit == "share" else (1.0, _PLAIN.get(unit, ""))


def tick(value: float, step: float) -> str:
    """A value of an axis whose unit is divided by `step`."""
    return _sign(f"{float(f'{value / step:.6g}'):,.6g}") if value else "0"
