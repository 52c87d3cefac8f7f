"""The calibration table: one threshold a tensor, as JSON, for any target.

A threshold depends on how many levels there are below it, so each tensor has one for int8 (127)
and, where it is never negative, one for uint8 (255).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic
from vggdeploy.calib.methods import METHODS
from vggdeploy.contracts import INT8, UINT8
from vggdeploy.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vggdeploy.calib.collect import Statistics
    from vggdeploy.contracts import IntegerType

SCHEMA = 1


@dataclass(frozen=True)
class TensorRange:
    """What was seen of a tensor and what was chosen for it.

    Attributes:
        low: smallest value seen; None where that is not known.
        high: largest value seen; None where that is not known.
        thresholds: by quantized type; ``scale = threshold / qmax``.
        method: how the thresholds were chosen.
    """

    low: float | None
    high: float | None
    thresholds: Mapping[str, float]
    method: str

    def scale(self, kind: IntegerType) -> float:
        """The quantization step for `kind`.

        Raises:
            CalibrationError: when the table has no threshold for it.
        """
        if kind.dtype not in self.thresholds:
            raise CalibrationError(
                f"the calibration table has no threshold for {kind.dtype}",
                got=", ".join(self.thresholds),
                fix="calibrate again",
            )
        return self.thresholds[kind.dtype] / kind.qmax


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

    def save(self, path: Path) -> None:
        """Write as JSON."""
        atomic.write_text(
            path,
            json.dumps(
                {
                    "schema": SCHEMA,
                    "kind": "calibration",
                    "source": dict(self.source),
                    "tensors": {
                        name: {
                            "range": None if tensor.low is None else [tensor.low, tensor.high],
                            "threshold": dict(tensor.thresholds),
                            "method": tensor.method,
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
            text = path.read_text(encoding="utf-8")
            said = json.loads(text, parse_float=_finite, parse_constant=_finite)
            if said["schema"] != SCHEMA:
                raise ValueError(f"schema {said['schema']}, not {SCHEMA}")
            tensors = {name: _tensor(name, entry) for name, entry in said["tensors"].items()}
            return cls(tensors, dict(said["source"]))
        except FileNotFoundError as error:
            raise CalibrationError(
                f"calibration table {path} does not exist", fix="check the path"
            ) from error
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise CalibrationError(
                f"calibration table {path} cannot be read",
                got=error,
                expected="what 'vggdeploy calibrate' writes",
                fix="calibrate again",
            ) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _tensor(name: str, entry: Any) -> TensorRange:
    low, high = (None, None) if entry["range"] is None else map(float, entry["range"])
    thresholds = {kind: _positive(name, value) for kind, value in entry["threshold"].items()}
    return TensorRange(low, high, thresholds, str(entry["method"]))


def _positive(name: str, value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"threshold {value!r} of tensor {name!r}")
    return number


def calibrate(
    statistics: Statistics,
    nonnegative: Mapping[str, bool],
    method: str,
    source: Mapping[str, Any],
) -> CalibrationTable:
    """Choose thresholds for every observed tensor.

    Args:
        statistics: what `collect` saw.
        nonnegative: which tensors can never be below 0 and so may be uint8.
        method: one of `METHODS`.
        source: what the statistics came from, recorded as it is.

    Raises:
        ConfigError: for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(
            f"unknown method {method!r}",
            expected="one of " + ", ".join(METHODS),
            fix="choose one with --method",
        )
    choose = METHODS[method]
    tensors = {}
    for name, histogram in statistics.tensors.items():
        magnitudes = histogram.magnitudes()
        kinds: Sequence[IntegerType] = (INT8, UINT8) if nonnegative[name] else (INT8,)
        thresholds: dict[str, float] = {kind.dtype: choose(magnitudes, kind.qmax) for kind in kinds}
        tensors[name] = TensorRange(histogram.min, histogram.max, thresholds, method)
    return CalibrationTable(tensors, source)
