"""Collection: a float network run over images, its tensors observed as they pass.

Each image's tensors are counted and let go, so memory does not grow with the number of images.
Decoding, inference and counting overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import dataset, limits
from vggdeploy.calib.histogram import Histogram
from vggdeploy.contracts import Silent
from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.contracts import Outputs, Reporter, Runner
    from vggdeploy.dataset import Dataset
    from vggdeploy.preprocess import Preprocess

LONGEST = 8192
"""Channels of a vector that are told apart: each takes 6 kB of counts."""


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
        }
        for index, histogram in enumerate(self.tensors.values()):
            arrays |= {f"{key}{index}": array for key, array in histogram.save().items()}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote."""
        file = limits.arrays(path)
        return cls(
            int(file["images"]),
            {
                str(name): Histogram.restore(
                    {key: file[f"{key}{index}"] for key in Histogram.SAVED}
                )
                for index, name in enumerate(file["names"])
            },
        )


def collect(
    runner: Runner,
    tensors: Mapping[str, str],
    images: Dataset,
    preprocess: Preprocess,
    reporter: Reporter | None = None,
) -> Statistics:
    """Run every image through `runner` and observe `tensors`.

    Args:
        runner: a float network, open, for batches of one image, with an output for each tensor to
            observe but its own input.
        tensors: what is observed, by the name that it is recorded under; the input is allowed.
        images: what to run, in order.
        preprocess: how an image becomes the network's input.
        reporter: told the progress.

    Raises:
        DatasetError: naming an image that cannot be decoded or resized; nothing is skipped.
        CalibrationError: naming a tensor that held a NaN or an infinity, and the image, or one
            that was empty or the same everywhere.
    """
    shapes = {spec.name: spec.shape for spec in (runner.input, *runner.outputs)}
    histograms = {name: Histogram(_channels(shapes[seen])) for name, seen in tensors.items()}
    outputs = passes(runner, images, preprocess, reporter, "observing activations")
    for sample, held in zip(images.samples, outputs, strict=True):
        for name, seen in tensors.items():
            histograms[name].add(held[seen])
            if histograms[name].nonfinite:
                raise CalibrationError(
                    f"tensor {name!r} held NaN or infinity for image {sample.path}",
                    got=f"{histograms[name].nonfinite} such elements",
                    expected="finite values",
                    fix="check the weights and --preprocess",
                )
    for name, histogram in histograms.items():
        if histogram.min == histogram.max or not histogram.count:
            raise CalibrationError(
                f"tensor {name!r} has no range",
                got=(f"{histogram.min:g} everywhere" if histogram.count else "no element")
                + f" in all {len(images)} images",
                expected="values that differ",
                fix="check the weights, --preprocess and the images",
            )
    return Statistics(len(images), histograms)


def _channels(shape: tuple[int | None, ...]) -> int:
    """How many channels of a map ``[N, C, H, W]`` or a vector ``[N, C]`` are told apart."""
    told = len(shape) == 4 or (len(shape) == 2 and int(shape[1] or 1) <= LONGEST)
    return int(shape[1] or 1) if told else 1


def passes(
    runner: Runner,
    images: Dataset,
    preprocess: Preprocess,
    reporter: Reporter | None,
    label: str,
) -> Iterator[Outputs]:
    """Each image's outputs, and its input under the input's name, in order.

    Decoding goes on while the network runs. The arrays are valid until the next image's.
    """
    given: list[NDArray[np.float32]] = []

    def queries() -> Iterator[NDArray[np.float32]]:
        for batch in dataset.parallel(
            lambda sample: preprocess.arithmetic(dataset.load(sample.path, preprocess)[None]),
            images.samples,
        ):
            given.append(batch)
            yield batch

    results = runner.infer_many(queries())
    for outputs in (reporter or Silent()).track(results, len(images), label):
        yield {**outputs, runner.input.name: given.pop(0)}
