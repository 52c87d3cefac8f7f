"""What a job starts from: its options, and the network and the images that they name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggdeploy import dataset, sources
from vggdeploy import preprocess as preprocessing
from vggdeploy.calib import methods, second_order, trt_cache
from vggdeploy.contracts import DEFAULT_CPU
from vggdeploy.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.cache import Cache
    from vggdeploy.dataset import Dataset
    from vggdeploy.sources import Source

CALIBRATION_IMAGES = 128
"""How many images calibrate by default."""

JUDGED = 256
"""Held-out images that a bound on the drop is judged on, or as many as it takes to show it."""

PROBES = 16
"""Probe images in a bundle: 2.4 MB at 224 pixels, and seconds to verify on a small device. They tell
an engine that computes something else from one that does not; how much accuracy it loses, labelled
images tell (``verify --data``)."""

HELD_OUT = 32
"""Images of a small folder that stay out of calibration: a bound on the drop is judged on them, and
probes are drawn from them."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build. None stands for a default that the weights decide.

    Attributes:
        target: a name in `targets.REGISTRY`.
        weights: ``demo``, ``imagenet`` or a checkpoint.
        model: a foreign FP32 ONNX graph, in place of weights.
        arch: see `reference.locate`.
        num_classes: see `reference.locate`.
        preprocess: a preset or a TOML file.
        calib_data: a folder of images, or ``demo``.
        calib_images: how many to draw; when None, `CALIBRATION_IMAGES`, or fewer of a small
            folder, see `HELD_OUT`.
        method: a key of `calib.METHODS`.
        calib_precision: ``fp32``, ``bf16`` or ``auto``, see `observers.choose`.
        rescale: whether channels are rescaled between layers where it pays.
        weight_rounding: ``gptq`` or ``nearest``.
        damping: of second-order rounding, see `calib.second_order`.
        order: of second-order rounding, one of `calib.ORDERS`.
        bias_correction: whether biases make good for the mean error of their layer.
        seed: draws the images.
        calibration: a calibration table, or a TensorRT calibration cache, in place of a
            calibration; `calib_images` are kept out of the probes all the same.
        emit_trt_cache: whether the table is written as a TensorRT calibration cache too.
        trt_version: the TensorRT that shall read that.
        max_drop: the largest top-1 drop against the float network, as a share: layers stay in high
            precision until it is met; None quantizes all.
        sensitivity_images: how many of the images that calibrate rank the layers.
        cpu_isa: the CPU that OpenVINO INT8 is built for, a key of `contracts.CPU_WEIGHTS`.
        input_format: ``float``, or ``uint8-nhwc`` for a network that preprocesses pixels itself,
            see `pixels`.
        portable: whether compiling is left to the device (`compiling`), see `Target.keeps_graph`.
        flavour: of TensorRT, a key of `trt_api.MODULES`; this and those that follow are for
            TensorRT targets, see `contracts.TrtOptions`.
        min_batch: the fewest images of a query.
        opt_batch: the images of the query that kernels are chosen for.
        max_batch: the most images of a query.
        workspace: bytes of scratch memory that a layer may use.
        optimization_level: 0 to 5.
        compute_capability: of the GPUs that TensorRT for RTX builds for.
        dla: the DLA core that the engine is for.
        sparsity: ``2:4`` for weights of that pattern, see `calib.sparsity`; None leaves them dense.
        out: where the bundle goes; ``bundles/<name>-<target>`` when None.
        force: whether another bundle at `out` is replaced.
    """

    target: str = "ov-int8"
    weights: str = "demo"
    model: Path | None = None
    arch: str | None = None
    num_classes: int | None = None
    preprocess: str | None = None
    calib_data: str | None = None
    calib_images: int | None = None
    method: str = methods.DEFAULT
    calib_precision: str = "auto"
    rescale: bool = True
    weight_rounding: str = "gptq"
    damping: float = second_order.DAMPING
    order: str = "diagonal"
    bias_correction: bool = False
    seed: int = 0
    calibration: Path | None = None
    emit_trt_cache: bool = False
    trt_version: str = trt_cache.DEFAULT_VERSION
    max_drop: float | None = None
    sensitivity_images: int = 32
    cpu_isa: str = DEFAULT_CPU
    input_format: str = "float"
    portable: bool = False
    flavour: str | None = None
    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    compute_capability: Sequence[str] | None = None
    dla: int | None = None
    sparsity: str | None = None
    out: Path | None = None
    force: bool = False


def resolve(options: BuildOptions) -> Source:
    """The network that the options name.

    Raises:
        ConfigError: for flags that do not go together.
        WeightsError, ModelError, MissingError: as `sources` has them.
    """
    if options.model is None:
        return sources.from_weights(
            options.weights,
            arch=options.arch,
            num_classes=options.num_classes,
            preprocess=options.preprocess,
        )
    own = None if options.weights == sources.DEMO else options.weights
    for flag, value in (
        ("--weights", own),
        ("--arch", options.arch),
        ("--num-classes", options.num_classes),
    ):
        if value is not None:
            raise ConfigError(
                f"{flag} does not go with --model",
                got=f"{flag} {value} and --model {options.model}",
                expected="either alone",
                fix="drop one of them, or its setting: a graph brings weights and shape of its own",
            )
    recipe = preprocessing.load(options.preprocess or "imagenet")
    return sources.from_onnx(options.model, recipe)


def choose_images(options: BuildOptions, source: Source, store: Cache) -> tuple[Dataset, Dataset]:
    """Images to calibrate on, and probes.

    Probes are not among the calibration images unless so many of these are asked for that nothing
    is left; the demo's are digits that its network was not trained on either.

    Raises:
        DatasetError: when there is no folder, or it has fewer images than asked for.
    """
    everything, spare = _folders(options, source, store)
    count = options.calib_images
    if count is None:
        # A small folder is shared: at least half of it calibrates.
        half = (len(everything) + 1) // 2
        count = min(CALIBRATION_IMAGES, max(half, len(everything) - HELD_OUT))
    chosen = everything.choose(count, options.seed)
    pool = spare.without(chosen)
    if not len(pool):
        pool = chosen
    return chosen, pool.choose(min(PROBES, len(pool)), options.seed)


def choose_ranking(options: BuildOptions, calibrating: Dataset) -> Dataset:
    """The images that rank layers: some of those that calibrate.

    Raises:
        ConfigError: when none is asked for.
    """
    asked = options.sensitivity_images
    if asked < 1:
        raise ConfigError(
            "--sensitivity-images is wrong", got=asked, expected="1 or more", fix="mend the value"
        )
    return calibrating.choose(min(asked, len(calibrating)), options.seed)


def choose_judged(
    options: BuildOptions, source: Source, store: Cache, calibrating: Dataset
) -> Dataset | None:
    """The held-out images that ``max_drop`` is judged on; None without that bound.

    They are images of the calibration folder that do not calibrate, or the demo's held-out digits.

    Raises:
        ConfigError: for a bound that is no share above 0.
        DatasetError: when they are too few to show a drop as small as the bound.
    """
    bound = options.max_drop
    if bound is None:
        return None
    if not 0 < bound <= 1:
        raise ConfigError(
            "--max-drop of a build is wrong",
            got=bound,
            expected="a share above 0 and at most 1; no number of images shows a drop of nothing",
            fix="divide percent by 100",
        )
    _, spare = _folders(options, source, store)
    pool = spare.without(calibrating)
    # One image of n is a drop of 1/n; rounded, since 1 / 0.07 is not 100 / 7 to the last bit.
    least = math.ceil(round(1 / bound, 6))
    if len(pool) < least:
        raise DatasetError(
            f"too few images are held out of calibration to show a top-1 drop of {bound:g}",
            got=f"{len(pool)} of {len(spare)} in {spare.root}",
            expected=f"{least} or more",
            fix="add images, calibrate on fewer with --calib-images, or allow a larger --max-drop",
        )
    return pool.choose(min(len(pool), max(least, JUDGED)), options.seed)


def _folders(options: BuildOptions, source: Source, store: Cache) -> tuple[Dataset, Dataset]:
    """The images that calibration draws from, and those that may be held out."""
    ours = source.weights is not None and source.weights.demo
    if options.calib_data is None and not ours:
        raise DatasetError(
            "there are no images to calibrate and to probe with",
            got="no --calib-data",
            expected="a folder of some hundred images like those the network will see",
            fix="give --calib-data DIR",
        )
    if options.calib_data in (None, sources.DEMO):
        return sources.demo_images("training", store), sources.demo_images("heldout", store)
    everything = dataset.scan(Path(str(options.calib_data)).expanduser())
    return everything, everything


def held_out(source: Source, data: str | None, calibration: Dataset, store: Cache) -> Dataset:
    """The images of `data` that are not among the calibration images.

    Raises:
        DatasetError: when none is left.
    """
    demo = source.weights is not None and source.weights.demo
    if data == sources.DEMO or (data is None and demo):
        return sources.demo_images("heldout", store)
    folder = dataset.scan(Path(data).expanduser() if data else calibration.root)
    taken = {sample.path.resolve() for sample in calibration.samples}
    rest = tuple(sample for sample in folder.samples if sample.path.resolve() not in taken)
    if not rest:
        raise DatasetError(
            f"every image of {folder.root} calibrates, and none is left to judge on",
            got=f"{len(folder)} images, {len(calibration)} of them calibrate",
            expected="one at least that does not",
            fix="give --data another folder, or fewer --calib-images",
        )
    return replace(folder, samples=rest)
