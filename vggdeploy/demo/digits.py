"""The demo's images: scikit-learn's handwritten digits, as folders of PNG files.

1,797 grayscale images of 8x8 pixels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI, 1998), shuffled once under a fixed seed. The last 400 are held out: the network is
neither trained nor calibrated on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.errors import ConfigError, missing_package

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HELD_OUT = 400
SPLITS = ("training", "heldout")
_SEED = 20140904


def split(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``[N, 8, 8]`` uint8 and labels ``[N]`` of a split.

    Raises:
        MissingError: when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_package("scikit-learn", "demo", "the demo's images") from error
    if name not in SPLITS:
        raise ConfigError(
            "unknown split",
            got=repr(name),
            expected="one of " + ", ".join(SPLITS),
            fix="choose one of them",
        )
    digits = load_digits()
    # Sixteen grey levels, spread over the eight bits of a PNG.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(_SEED).permutation(len(images))
    chosen = order[-HELD_OUT:] if name == "heldout" else order[:-HELD_OUT]
    return images[chosen], digits.target[chosen].astype(np.int64)


def write(name: str, folder: Path) -> None:
    """Write a split as class folders ``0`` to ``9`` of PNG files below `folder`."""
    from PIL import Image

    for index, (pixels, label) in enumerate(zip(*split(name), strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:04}.png")
