"""The calibration table: one threshold a tensor, as JSON, for any target.

A threshold depends on how many levels there are below it, so each tensor has one for int8 (127)
and, where it is never negative, one for uint8 (255).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, limits
from vggdeploy.calib.methods import METHODS
from vggdeploy.calib.rescale import EXPONENTS, LARGEST, PRODUCTS, factors
from vggdeploy.contracts import INT8, UINT8
from vggdeploy.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vggdeploy.calib.channels import Link
    from vggdeploy.calib.collect import Statistics
    from vggdeploy.calib.histogram import Magnitudes
    from vggdeploy.contracts import IntegerType

SCHEMA = 1
KIND = "calibration"

_SMALLEST_SHARE, _LARGEST_SHARE = 1e-9, 16.0
"""What a threshold can be of the largest magnitude seen: a single outlier may leave little of it."""


@dataclass(frozen=True)
class Rescaled:
    """A tensor with its channels multiplied, and what was chosen for it then: see `rescale`.

    Attributes:
        factors: of each channel, from 1 to `rescale.LARGEST`.
        thresholds: by quantized type, of the tensor once it is multiplied.
    """

    factors: tuple[float, ...]
    thresholds: Mapping[str, float]


@dataclass(frozen=True)
class TensorRange:
    """What was seen of a tensor and what was chosen for it.

    Attributes:
        low: smallest value seen; None where that is not known.
        high: largest value seen; None where that is not known.
        thresholds: by quantized type; ``scale = threshold / qmax``.
        method: how the thresholds were chosen.
        rescaled: for a graph whose channels are rescaled; None where that does not pay, or cannot
            be.
    """

    low: float | None
    high: float | None
    thresholds: Mapping[str, float]
    method: str
    rescaled: Rescaled | None = None


@dataclass(frozen=True)
class CalibrationTable:
    """Thresholds by tensor, and what they came from.

    Attributes:
        tensors: by name, in order of execution.
        source: digests of model and images, number of images, seed, preprocessing.
    """

    tensors: Mapping[str, TensorRange]
    source: Mapping[str, Any]

    @property
    def method(self) -> str:
        """How the thresholds were chosen; ``mixed`` where not all in the same way."""
        methods = {tensor.method for tensor in self.tensors.values()}
        return methods.pop() if len(methods) == 1 else "mixed"

    def scale(self, name: str, kind: IntegerType, *, rescaled: bool = True) -> float:
        """The quantization step of tensor `name` for `kind`.

        Args:
            name: of the tensor.
            kind: the quantized type.
            rescaled: whether of the tensor as `quantize` leaves it, its channels rescaled where
                the table has it so; else as it is in the float graph.

        Raises:
            CalibrationError: naming the tensor, when the table has no threshold for it.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise CalibrationError(
                f"the calibration table has no entry for tensor {name!r}",
                got=f"entries for {len(self.tensors)} others",
                expected="a table made from this model",
                fix="calibrate again",
            )
        own = entry.rescaled if rescaled else None
        thresholds = own.thresholds if own else entry.thresholds
        if kind.dtype not in thresholds:
            raise CalibrationError(
                f"the calibration table has no {'rescaled ' if own else ''}threshold of tensor "
                f"{name!r} for {kind.dtype}",
                got=", ".join(thresholds) or "none",
                expected="a table made for this target",
                fix="calibrate again",
            )
        return thresholds[kind.dtype] / kind.qmax

    def plain(self) -> CalibrationTable:
        """The table for a graph whose channels are not rescaled."""
        tensors = {name: replace(entry, rescaled=None) for name, entry in self.tensors.items()}
        return CalibrationTable(tensors, self.source)

    def applied(self) -> CalibrationTable:
        """The table of the graph whose channels are rescaled already."""
        tensors = {
            name: replace(tensor, thresholds=tensor.rescaled.thresholds, rescaled=None)
            if tensor.rescaled
            else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        atomic.write_text(
            path,
            json.dumps(
                {
                    "schema": SCHEMA,
                    "kind": KIND,
                    "source": dict(self.source),
                    "tensors": {
                        name: {
                            "range": None if tensor.low is None else [tensor.low, tensor.high],
                            "threshold": dict(tensor.thresholds),
                            "method": tensor.method,
                            **_rescaled_json(tensor.rescaled),
                        }
                        for name, tensor in self.tensors.items()
                    },
                },
                indent=1,
                allow_nan=False,
            )
            + "\n",
        )

    @classmethod
    def load(cls, path: Path) -> CalibrationTable:
        """Read from JSON.

        Raises:
            CalibrationError: when the file is missing, unreadable or of another schema.
        """
        try:
            content = limits.read(path, limits.JSON_BYTES)
        except FileNotFoundError as error:
            raise CalibrationError(
                f"calibration table {path} does not exist",
                got="nothing there",
                expected="a table that 'vggdeploy calibrate' wrote",
                fix="check the path",
            ) from error
        except (OSError, limits.OverLimitError) as error:
            raise _unreadable(str(path), error) from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> CalibrationTable:
        """Read what `save` wrote.

        Args:
            content: the JSON.
            where: what errors call it.

        Raises:
            CalibrationError: when it is no table, or of another schema.
        """
        try:
            said = json.loads(content, parse_float=_finite, parse_constant=_finite)
            if not isinstance(said, dict) or said.get("kind") != KIND:
                raise ValueError(f"no {KIND} table")
            if said["schema"] != SCHEMA:
                raise ValueError(f"schema {said['schema']}, not {SCHEMA}")
            tensors = {name: _tensor(name, entry) for name, entry in said["tensors"].items()}
            return cls(tensors, dict(said["source"]))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> CalibrationError:
    return CalibrationError(
        f"calibration table {where} cannot be read",
        got=f"no {error}" if isinstance(error, KeyError) else error,
        expected="what 'vggdeploy calibrate' writes",
        fix="calibrate again",
    )


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _tensor(name: str, entry: Any) -> TensorRange:
    low, high = (None, None) if entry["range"] is None else map(_number, entry["range"])
    rescaled = None
    if "rescaled" in entry:
        factors = tuple(_factor(name, value) for value in entry["rescaled"]["factors"])
        rescaled = Rescaled(factors, _thresholds(name, entry["rescaled"]["threshold"]))
    thresholds = _thresholds(name, entry["threshold"])
    if not isinstance(entry["method"], str):
        raise ValueError(f"method {entry['method']!r} of tensor {name!r}")
    if low is not None and high is not None:
        if low > high:
            raise ValueError(f"range {low:g} to {high:g} of tensor {name!r}")
        _require_near(name, thresholds, max(-low, high))
        if rescaled is not None:
            _require_near(
                name, rescaled.thresholds, max(-low, high) * max(rescaled.factors, default=1.0)
            )
    return TensorRange(low, high, thresholds, entry["method"], rescaled)


def _require_near(name: str, thresholds: Mapping[str, float], largest: float) -> None:
    """No method puts a threshold beyond what was seen, nor leaves nothing of it."""
    for value in thresholds.values():
        if not _SMALLEST_SHARE * largest <= value <= _LARGEST_SHARE * largest:
            raise ValueError(f"threshold {value:g} of tensor {name!r}, seen up to {largest:g}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _thresholds(name: str, said: Any) -> dict[str, float]:
    return {kind: _positive(name, value) for kind, value in said.items()}


def _rescaled_json(rescaled: Rescaled | None) -> dict[str, Any]:
    if rescaled is None:
        return {}
    said = {"factors": list(rescaled.factors), "threshold": dict(rescaled.thresholds)}
    return {"rescaled": said}


def _factor(name: str, value: Any) -> float:
    number = _number(value)
    if not 1 <= number <= LARGEST:
        raise ValueError(f"factor {value!r} of a channel of tensor {name!r}")
    return number


def _positive(name: str, value: Any) -> float:
    number = _number(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"threshold {value!r} of tensor {name!r}")
    return number


def calibrate(
    statistics: Statistics,
    nonnegative: Mapping[str, bool],
    method: str,
    source: Mapping[str, Any],
    links: Mapping[str, Link] | None = None,
    *,
    rescale: bool = True,
) -> CalibrationTable:
    """Choose thresholds for every observed tensor.

    Args:
        statistics: what `collect` saw.
        nonnegative: which tensors can never be below 0 and so may be uint8.
        method: one of `METHODS`.
        source: what the statistics came from, recorded as it is.
        links: of the tensors whose channels can be followed; ``auto`` weights channels by them.
        rescale: whether channels are rescaled where a link allows it and it pays.

    Raises:
        ConfigError: for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(
            "unknown method",
            got=repr(method),
            expected="one of " + ", ".join(METHODS),
            fix="choose one with --method",
        )
    tensors = {}
    for name, histogram in statistics.tensors.items():
        kinds: Sequence[IntegerType] = (INT8, UINT8) if nonnegative[name] else (INT8,)
        link = (links or {}).get(name)
        gains = link.gains() if link is not None and histogram.channels > 1 else None
        if gains is not None and not gains.any():  # nothing that is read matters
            gains = None
        weights = gains if method == "auto" else None
        chosen = _choose(method, kinds, histogram.magnitudes(weights=weights))
        rescaled = None
        if rescale and link is not None and link.maker is not None and gains is not None:
            exponents = PRODUCTS if link.products else EXPONENTS
            found = factors(histogram, gains, kinds[-1].qmax, exponents)
            if found is not None:
                scaled = None if weights is None else weights / found**2
                magnitudes = histogram.magnitudes(found, scaled)
                thresholds = _choose(method, kinds, magnitudes)
                rescaled = Rescaled(tuple(found.tolist()), thresholds)
        tensors[name] = TensorRange(histogram.min, histogram.max, chosen, method, rescaled)
    return CalibrationTable(tensors, source)


def _choose(method: str, kinds: Sequence[IntegerType], magnitudes: Magnitudes) -> dict[str, float]:
    return {kind.dtype: METHODS[method](magnitudes, kind.qmax) for kind in kinds}
