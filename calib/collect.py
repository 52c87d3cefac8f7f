"""Collection: a float network run over images, its tensors observed as they pass.

Each image's tensors are counted and let go, so memory does not grow with the number of images.
Decoding, inference and counting overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import dataset
from vggdeploy.calib.histogram import Histogram
from vggdeploy.contracts import Silent
from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.contracts import Reporter, Runner
    from vggdeploy.dataset import Dataset
    from vggdeploy.preprocess import Preprocess


@dataclass(frozen=True)
class Statistics:
    """What each tensor was seen to hold, by name."""

    images: int
    tensors: dict[str, Histogram]

    def save(self, path: Path) -> None:
        """Write as .npz, only the bins that hold anything."""
        arrays: dict[str, Any] = {
            "images": np.int64(self.images),
            "names": np.array(list(self.tensors), np.str_),
            "ranges": np.array([[h.min, h.max] for h in self.tensors.values()], np.float64),
        }
        for index, histogram in enumerate(self.tensors.values()):
            arrays[f"bins{index}"], arrays[f"counts{index}"] = histogram.sparse()
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(
                int(file["images"]),
                {
                    str(name): Histogram.restore(
                        file[f"bins{index}"], file[f"counts{index}"], float(low), float(high)
                    )
                    for index, (name, (low, high)) in enumerate(
                        zip(file["names"], file["ranges"], strict=True)
                    )
                },
            )


def collect(
    runner: Runner,
    tensors: Sequence[str],
    images: Dataset,
    preprocess: Preprocess,
    reporter: Reporter | None = None,
) -> Statistics:
    """Run every image through `runner` and observe `tensors`.

    Args:
        runner: a float network, open, for batches of one image, with an output for each of
            `tensors` but its own input.
        tensors: names of the tensors to observe; the input's name is allowed.
        images: what to run, in order.
        preprocess: how an image becomes the network's input.
        reporter: told the progress.

    Raises:
        DatasetError: naming an image that cannot be decoded; nothing is skipped.
        CalibrationError: naming a tensor that held a NaN or an infinity, and the image, or one
            that was empty or the same everywhere.
    """
    histograms = {name: Histogram() for name in tensors}
    given: list[NDArray[np.float32]] = []

    def queries() -> Iterator[NDArray[np.float32]]:
        prepared = dataset.parallel(
            lambda sample: preprocess.arithmetic(
                preprocess.geometry(dataset.decode(sample.path))[None]
            ),
            images.samples,
        )
        for batch in prepared:
            if runner.input.name in histograms:
                given.append(batch)
            yield batch

    results = (reporter or Silent()).track(
        runner.infer_many(queries()), len(images), "observing activations"
    )
    for sample, outputs in zip(images.samples, results, strict=True):
        for name, histogram in histograms.items():
            histogram.add(given.pop(0) if name == runner.input.name else outputs[name])
            if histogram.nonfinite:
                raise CalibrationError(
                    f"tensor {name!r} held NaN or infinity for image {sample.path}",
                    got=f"{histogram.nonfinite} such elements",
                    expected="finite values",
                    fix="check the weights and --preprocess",
                )
    for name, histogram in histograms.items():
        if histogram.min == histogram.max or not histogram.count:
            raise CalibrationError(
                f"tensor {name!r} is "
                + (f"{histogram.min:g} everywhere" if histogram.count else "empty")
                + f" in all {len(images)} images",
                expected="values that differ",
                fix="check the weights, --preprocess and the images",
            )
    return Statistics(len(images), histograms)
