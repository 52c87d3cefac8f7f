"""What the stages agree on: dialects, targets, runners, and how progress is told.

Stages know these and not each other: a target hands calibration a `Dialect`, benchmarks drive a
`Runner`, and long jobs tell a `Reporter` how far they are.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from vggdeploy.errors import ConfigError, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from vggdeploy.bundle import Bundle
    from vggdeploy.preprocess import Preprocess
    from vggdeploy.topology import Network

Item = TypeVar("Item")
Outputs = dict[str, "NDArray[np.float32]"]

Batch: TypeAlias = "NDArray[Any]"
"""What a network takes: float32 images, or uint8 pixels, as its `Runner.input` says."""


class Reporter(Protocol):
    """Where a long job says how far it is."""

    def track(self, items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
        """Pass `items` through, counting them against `total` under `label`."""

    def step(self, label: str) -> AbstractContextManager[None]:
        """Show that something of unknown length is under way."""

    def done(self, label: str, seconds: float, cached: bool) -> None:
        """Say that a stage has ended."""


class Silent:
    """A reporter that says nothing."""

    def track(self, items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
        yield from items

    def step(self, label: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def done(self, label: str, seconds: float, cached: bool) -> None:
        pass


@dataclass(frozen=True)
class IntegerType:
    """An 8-bit type of quantized values with zero point 0, and the range of it that is used.

    ``scale = threshold / qmax``; `qmin` is where rounding saturates below.
    """

    dtype: Literal["int8", "uint8"]
    qmin: int
    qmax: int


SMALLEST_GROUP = 16
"""Below this a float16 scale adds more than one bit to each weight, and 8 bits a channel serve."""


@dataclass(frozen=True)
class GroupedType:
    """A type of weights below 8 bits, one scale a group of successive inputs of a channel.

    A weight is ``integer * scale``, integers from `qmin` to `qmax`; scales may be negative.

    Attributes:
        group: inputs a scale is for, where the layer's inputs are a multiple of it.
        scale: the type that scales are stored in.
    """

    dtype: Literal["int4"]
    qmin: int
    qmax: int
    group: int
    scale: Literal["float16", "float32"]

    def fitting(self, inputs: int) -> int | None:
        """The group for a layer of so many inputs: `group`, halved until it divides them.

        None where it would fall below SMALLEST_GROUP. In groups of 64, 25,088 inputs have 64, 784
        have 16, and 250 have none. Halves alone, although 50 divides 250: OpenVINO 2026.4's kernel
        for x86 takes groups that are no power of two and computes something else with them.
        """
        group = self.group
        while inputs % group and group >= SMALLEST_GROUP:
            group //= 2
        return group if group >= SMALLEST_GROUP else None


@dataclass(frozen=True)
class Dialect:
    """How a backend wants its Q/DQ graph.

    Attributes:
        nonnegative: the type of an activation that is never negative (after ReLU).
        signed: the type of any other activation.
        weight: the type of weights, one scale an output channel.
        image_weight: that of the first layer's, which read pixels or an image of both signs.
        high_precision: the type of scales, biases and everything that is not quantized.
        matrix: the type of the weights of matrix products, with a scale a channel or a group,
            whose activations then stay in high precision; None where they are quantized as
            convolutions are.
        pixels: whether a first layer reads the image's own 8-bit pixels, where it can
            (`calib.lattice`).
    """

    name: str
    nonnegative: IntegerType
    signed: IntegerType
    weight: IntegerType
    image_weight: IntegerType
    high_precision: Literal["float32", "float16"]
    matrix: IntegerType | GroupedType | None = None
    pixels: bool = False

    def activation(self, nonnegative: bool) -> IntegerType:
        """The type of an activation tensor."""
        return self.nonnegative if nonnegative else self.signed

    @property
    def grouped(self) -> GroupedType | None:
        """The type of the weights of matrix products where groups of them share a scale."""
        return self.matrix if isinstance(self.matrix, GroupedType) else None


INT8 = IntegerType("int8", -128, 127)
INT8_NARROW = IntegerType("int8", -127, 127)
UINT8 = IntegerType("uint8", 0, 255)

INT7 = IntegerType("int8", -64, 64)
"""Weights for x86 without VNNI, whose instruction adds two products of u8 and s8 in 16 bits:
2 * 255 * 64 still fits, 2 * 255 * 127 saturates (Intel, "Lower Numerical Precision Deep Learning
Inference and Training", 2018). Signed activations are made unsigned by an offset of 128 first."""

INT4_GROUPS = GroupedType("int4", -8, 7, 128, "float16")
"""4.125 bits a weight, scales included. In groups of 64 OpenVINO takes 1.35 times as long for the first
fully connected layer of VGG16."""

CPU_WEIGHTS: dict[str, IntegerType] = {"vnni": INT8_NARROW, "avx2": INT7}
"""What ``--cpu-isa`` takes: the CPU that an OpenVINO INT8 target is built for."""

DEFAULT_CPU = "vnni"

DIALECTS: dict[str, Dialect] = {
    # After ReLU unsigned: 255 levels in place of 127, one bit for nothing.
    # Pixels, as an image of both signs with the offset of 128 that such values get, are large: with
    # 8 bits most of a first layer's sums would saturate on CPUs without VNNI.
    # The fully connected layers of a single image are bound by the bytes of their weights; their
    # activations cost nothing, so they stay as they are: OpenVINO multiplies 8-bit weights with
    # floats, which on a CPU without VNNI takes less than half the time of 8 bits with 8.
    "openvino": Dialect(
        "openvino", UINT8, INT8, INT8_NARROW, INT7, "float32", INT8_NARROW, pixels=True
    ),
    "openvino-w4": Dialect(
        "openvino-w4", UINT8, INT8, INT8_NARROW, INT7, "float32", INT4_GROUPS, pixels=True
    ),
    # TensorRT's INT8 is signed and symmetric alone. float16 for the rest, since an FP32 scale or
    # bias would leave FP32 GEMMs behind.
    "tensorrt": Dialect("tensorrt", INT8, INT8, INT8_NARROW, INT8_NARROW, "float16"),
}


@dataclass(frozen=True)
class Availability:
    """Whether a target can be compiled for here; if not, why, and what would change that."""

    ok: bool
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """A network's input or output. None in `shape` stands for the batch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    def accepts(self, array: NDArray[Any]) -> bool:
        """Whether `array` has this dtype and, but for None, this shape.

        Asked before every query, when an engine has just emptied the caches: what is spelt in
        Python costs ten times what it costs warm, so the common case is two comparisons.
        """
        return array.dtype == self.dtype and (
            array.shape == self.shape
            or (
                array.ndim == len(self.shape)
                and all(
                    want in (None, got) for want, got in zip(self.shape, array.shape, strict=True)
                )
            )
        )

    def __str__(self) -> str:
        sides = ", ".join("N" if side is None else str(side) for side in self.shape)
        return f"{self.dtype} [{sides}]"


@dataclass(frozen=True)
class TrtOptions:
    """How a TensorRT engine is built. None stands for TensorRT's own default.

    Attributes:
        flavour: ``tensorrt`` or ``rtx``; None for what is installed, ``tensorrt`` first.
        min_batch: the fewest images of a query, the least of the optimization profile.
        opt_batch: the images of the query that kernels are chosen for; one, as `RunOptions` has it.
        max_batch: the most images of a query.
        workspace_bytes: scratch memory that a layer may use.
        optimization_level: 0 to 5; higher tries more kernels and takes longer.
        compute_capabilities: of the GPUs that an engine of TensorRT for RTX is for, such as
            ``"7.5"``; several go into one engine. Empty for what the flavour builds by itself.
        dla_core: the DLA core that the engine is for; None for the GPU.
        sparse: whether kernels for weights of 2:4 sparsity may be chosen.
        timing_cache: where the times of kernels are kept between builds; None for a file of the
            GPU, the flavour and its version below the stage cache.
        calibration_cache: what a float graph is quantized by inside of TensorRT (DLA).
    """

    flavour: str | None = None
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 32
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    dla_core: int | None = None
    sparse: bool = False
    timing_cache: Path | None = None
    calibration_cache: Path | None = None

    @property
    def batches(self) -> tuple[int, int, int]:
        """The optimization profile: the least, what it is tuned for, the most."""
        return self.min_batch, self.opt_batch, self.max_batch


@dataclass(frozen=True)
class CompileOptions:
    """What a target needs beyond the graph.

    Attributes:
        network: the topology, where the graph came from ours.
        device: the backend's own name of the device.
        tensorrt: how TensorRT builds; None for other targets, and for its defaults.
        pixels: what the engine does with uint8 ``[N, H, W, 3]`` pixels before the network; None
            where it takes what the graph takes.
    """

    network: Network | None = None
    device: str = "CPU"
    tensorrt: TrtOptions | None = None
    pixels: Preprocess | None = None


@dataclass(frozen=True)
class Settings:
    """How a backend uses its device: what can be tuned. None is the backend's own choice.

    Attributes:
        streams: queries that are executed side by side.
        threads: of the CPU, for all of them.
        pinning: whether threads are bound to cores.
        precision: what float parts are computed in, by the backend's own name.
    """

    streams: int | None = None
    threads: int | None = None
    pinning: bool | None = None
    precision: str | None = None


@dataclass(frozen=True)
class RunOptions:
    """How a runner executes.

    Attributes:
        device: the backend's own name of the device.
        batch: images a query.
        goal: ``"latency"`` for one query at a time, ``"throughput"`` for many in flight.
        settings: how the device is used.
        profile: whether `Runner.layer_times` is wanted; timing each layer costs time of its own.
    """

    device: str = "CPU"
    batch: int = 1
    goal: Literal["latency", "throughput"] = "latency"
    settings: Settings = Settings()
    profile: bool = False


@dataclass(frozen=True)
class LayerTime:
    """What one layer of an engine took.

    Attributes:
        name: the engine's own.
        nodes: names of the nodes of the graph that it executes, as far as the backend says.
        kind: the backend's word for what it does.
        precision: what it was computed in, by the backend's own name; empty where not said.
        seconds: of one query.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    precision: str
    seconds: float


@dataclass(frozen=True)
class Probe:
    """A small network that shows what the device can do: time it, and divide.

    ``macs`` multiply-accumulates a query for a compute probe, ``bytes`` read a query for a
    bandwidth probe; the other is 0. ``precision`` is what a compute probe is meant to be computed
    in, one of `budget.PRECISIONS`; where the runner tells its layers' times, theirs counts.
    """

    name: str
    runner: Runner
    macs: int = 0
    bytes: int = 0
    precision: str = ""


class Runner(ABC):
    """A compiled network, ready to execute between ``with`` and its end.

    The base class checks state, shape and dtype; a backend implements the underscored methods and
    only executes. A runner is for one thread.

    Attributes:
        name: shown in messages.
        input: the one input, float32 ``[N, 3, H, W]`` or ``[N, H, W, 3]``, or uint8 pixels
            ``[N, H, W, 3]``; N is fixed when opened for a batch.
        outputs: the outputs, in the order of the network.
        reuses_buffers: whether arrays from one call are overwritten by the next.
        depth: queries that `infer_many` keeps in flight.
        details: facts about the execution that belong into a result, such as the precision that
            the backend really chose.
    """

    name: str
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    reuses_buffers: bool = False
    depth: int = 1

    def __init__(self) -> None:
        self._open = False
        self.details: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._open:
            raise RunnerError(
                f"{self.name} is open already",
                got="a second 'with'",
                expected="a closed runner",
                fix="use one 'with' at a time",
            )
        self._start()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        self._stop()

    def infer(self, batch: Batch) -> Outputs:
        """Run one batch and wait for it.

        Raises:
            RunnerError: when not open, or when `batch` is not what `input` says.
        """
        return self._infer(self._checked(batch))

    def infer_many(self, batches: Iterable[Batch]) -> Generator[Outputs, None, None]:
        """Run batches with up to `depth` in flight; results come in the order of the batches.

        A result's arrays are valid until the next one is asked for.

        Raises:
            RunnerError: as `infer`.
        """
        return self._infer_many(self._checked(batch) for batch in batches)

    def start(self, batch: Batch, done: Callable[[Outputs], None]) -> None:
        """Begin a query, and call `done` with its outputs when it has ended.

        Waits while `depth` queries are in flight. `done` may be called from another thread, and
        in another order than that of the queries; the arrays are valid until it returns. `batch`
        must not change before. A backend that has no queue runs the query right here.

        Raises:
            RunnerError: as `infer`.
        """
        self._begin(self._checked(batch), done)

    def drain(self) -> None:
        """Wait for every query that `start` has begun.

        Raises:
            RunnerError: for one that failed.
            BaseException: what a `done` raised.
        """
        self._drain()

    def layer_times(self) -> list[LayerTime]:
        """What each layer of the last `infer` took, in the order of execution; empty where the
        backend does not say. The runner must have been opened with ``profile``.

        Raises:
            RunnerError: when it was not, or nothing has been run.
        """
        return []

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """The first output of `infer`: class scores ``[N, classes]``."""
        return self.infer(batch)[self.outputs[0].name]

    def _checked(self, batch: Batch) -> Batch:
        if not self._open:
            raise RunnerError(
                f"{self.name} is not open",
                got="a closed runner",
                expected="an open one",
                fix="call it inside 'with runner:'",
            )
        if not self.input.accepts(batch):
            raise RunnerError(
                f"{self.name}: input {self.input.name!r} does not fit",
                got=f"{batch.dtype} {list(batch.shape)}",
                expected=self.input,
                fix="preprocess the image as the bundle's manifest says"
                if self.input.dtype == "float32"
                else "give it the image's own pixels, resized as the bundle's manifest says",
            )
        return batch

    def _infer_many(self, batches: Iterable[Batch]) -> Generator[Outputs, None, None]:
        for batch in batches:
            yield self._infer(batch)

    def _begin(self, batch: Batch, done: Callable[[Outputs], None]) -> None:
        done(self._infer(batch))

    def _drain(self) -> None:  # noqa: B027  # nothing is in flight where `_begin` waits
        """Wait until nothing is in flight."""

    @abstractmethod
    def _start(self) -> None:
        """Load and compile."""

    @abstractmethod
    def _stop(self) -> None:
        """Free everything; called once, on every path."""

    @abstractmethod
    def _infer(self, batch: Batch) -> Outputs:
        """Run one checked batch."""


class Target(ABC):
    """A backend at a precision: how to compile for it, and how to run what was compiled.

    Attributes:
        name: what ``--target`` takes.
        precision: one of `budget.PRECISIONS`.
        dialect: how it wants its Q/DQ graph; None for a float target.
        keeps_graph: whether a bundle holds the graph that its engine was compiled from, even where
            that is not quantized.
        float_type: the type of weights and activations in the float graph that it compiles.
        takes_pixels: whether its engines can take uint8 pixels: by `CompileOptions.pixels`, or, of
            a target that keeps the graph, by a graph that does.
    """

    keeps_graph: bool = False
    takes_pixels: bool = False
    float_type: Literal["float32", "float16"] = "float32"

    def __init__(self, name: str, precision: str, dialect: Dialect | None) -> None:
        self.name = name
        self.precision = precision
        self.dialect = dialect

    @abstractmethod
    def availability(self) -> Availability:
        """Whether `compile` can work on this machine."""

    @abstractmethod
    def version(self) -> str:
        """Name and version of the backend, part of what a compiled engine depends on."""

    def dialect_for(self, cpu_isa: str) -> Dialect | None:
        """The dialect for a CPU of the kind `cpu_isa`.

        Raises:
            ConfigError: for an unknown kind, or where the kind of CPU makes no difference.
        """
        if cpu_isa != DEFAULT_CPU:
            raise ConfigError(
                f"--cpu-isa makes no difference to {self.name}",
                got=f"--cpu-isa {cpu_isa}",
                expected=f"{DEFAULT_CPU}, or an OpenVINO INT8 target",
                fix="drop it, or build ov-int8",
            )
        return self.dialect

    def prepare(self, options: CompileOptions) -> dict[str, Any]:
        """Settle whether `compile` can work with `options`, before any long work.

        Returns:
            What an engine depends on besides the graph, JSON-ready; empty where that is only the
            versions of libraries.

        Raises:
            ConfigError: for options that do not go together, or not with this target.
            MissingError: for what this machine lacks.
        """
        return {}

    @abstractmethod
    def compile(self, onnx: Path, options: CompileOptions, out_dir: Path) -> tuple[Path, ...]:
        """Compile a graph into engine files below `out_dir`.

        Raises:
            ModelError: when the backend does not take the graph.
        """

    def facts(self, out_dir: Path) -> dict[str, Any]:
        """What `compile` found out about the engine that it put into `out_dir`, for the manifest.

        ``layers``, where it is there, is for the budget: the engine's layers, None where they could
        not be looked at.
        """
        return {}

    @abstractmethod
    def open(self, bundle: Bundle, options: RunOptions) -> Runner:
        """A runner of a bundle's engine.

        Raises:
            MissingError: when this machine cannot run it.
        """

    def runs_on(self, device: str) -> Availability:
        """Whether a bundle of this target can run on this machine's `device`."""
        return self.availability()

    def device_facts(self, device: str) -> dict[str, Any]:
        """What the driver says of `device`, JSON-ready; empty where a target asks no driver.

        A GPU's facts are those that `gpus.rated` takes.

        Raises:
            MissingError: when there is no such device.
        """
        return {}

    def copy_rates(self, device: str) -> dict[str, float]:
        """Bytes a second that copies on `device` were just measured to move, for `gpus.rated`;
        empty where a target does not measure them.

        Raises:
            MissingError: when there is no such device.
            RunnerError: when it fails.
        """
        return {}

    def cautions(self, bundle: Bundle, options: RunOptions) -> tuple[str, ...]:
        """What to know before trusting this bundle's outputs on this machine."""
        return ()

    def candidates(self, options: RunOptions) -> Sequence[Settings]:
        """Settings that are worth trying on this machine for `options`' goal and batch, the
        backend's own choice first."""
        return (Settings(),)

    def tunable(self, settings: Settings, cores: int) -> bool:
        """Whether `settings` may be among the `candidates` of a machine with so many CPUs: what a
        bundle says that it was tuned to may be anyone's words."""
        return settings == Settings()

    @abstractmethod
    def probes(self, options: RunOptions) -> Sequence[Probe]:
        """Networks whose best time shows the attainable MAC rate and bandwidth."""


class GraphTarget(Target):
    """A target that can also run a bare ONNX graph and show tensors inside of it."""

    @abstractmethod
    def open_graph(self, onnx: Path, taps: Sequence[str], options: RunOptions) -> Runner:
        """A runner of an ONNX graph whose outputs are the graph's own, then the tensors `taps`."""
