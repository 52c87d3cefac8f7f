"""Charts of results, as SVG or PNG; drawn with matplotlib, which the extra ``report`` brings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, errors
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

SUFFIXES = (".svg", ".png")

_PER_LAYER_INCHES = 0.28
_DPI = 150


def check(path: Path, force: bool) -> None:
    """Make sure, before any long work, that a chart can be drawn and written.

    Raises:
        ConfigError: when the file exists and `force` is not given, or is of another kind.
        MissingError: when matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"a chart cannot be written to {path}",
            got=f"the ending {path.suffix!r}",
            expected=" or ".join(SUFFIXES),
            fix="give --plot another name",
        )
    if path.is_dir() or (path.exists() and not force):
        raise ConfigError(
            f"{path} exists",
            got="a folder" if path.is_dir() else "a file",
            expected="a free path",
            fix="give another --plot" if path.is_dir() else "give --force, or another --plot",
        )
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{path} cannot be written",
            got=f"no folder {path.parent}",
            expected="a folder that exists",
            fix="give --plot the path of a file in a folder that exists",
        )
    errors.require_package("matplotlib", "report", "a chart")


def sensitivity(result: Mapping[str, Any], path: Path) -> None:
    """Draw a ranking of layers: noise to signal of each alone, in decibels, the worst on top.

    Raises:
        ConfigError, MissingError: as `atomic.writing` has them.
    """
    import matplotlib
    from matplotlib.figure import Figure

    layers = result["layers"]
    places = range(len(layers))
    # Without pyplot, which would ask for a display and keep every figure.
    figure = Figure(figsize=(8, 1.4 + _PER_LAYER_INCHES * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    noise = [-layer["sqnr_db"] for layer in layers]
    floor = min(noise) - 5
    bars = axes.barh(places, [value - floor for value in noise], left=floor, color="#4477aa")
    axes.bar_label(
        bars, [f"{layer['agreement']:.1%}" for layer in layers], padding=3, fontsize="small"
    )
    axes.margins(x=0.12)
    axes.set_yticks(places, [layer["name"] for layer in layers])
    axes.invert_yaxis()
    axes.set_xlabel("noise to signal of the scores, dB (beside it: top-1 agreement)")
    axes.set_title(
        f"each layer alone quantized for {result['target']}, {result['sensitivity_images']} images",
        fontsize="medium",
    )
    with atomic.writing(path), tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder:
        work = Path(folder) / path.name
        # The same result gives the same bytes: no date, no random ids, no version.
        key = "Date" if path.suffix.lower() == ".svg" else "Software"
        with matplotlib.rc_context({"svg.hashsalt": "vggdeploy", "svg.fonttype": "none"}):
            figure.savefig(work, dpi=_DPI, metadata={key: None})
        work.replace(path)
