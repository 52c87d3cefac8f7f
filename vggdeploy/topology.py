"""The VGG family as data: layers, shapes, parameters, multiply-accumulates, receptive fields.

Standard library only. The networks are those of Simonyan and Zisserman, "Very Deep Convolutional
Networks for Large-Scale Image Recognition" (2014), table 1, columns A, B, D and E, in the form and
with the module names that torchvision gave them, so that its checkpoints fit. AlexNet is
torchvision's too (Krizhevsky, "One weird trick", 2014).

One multiply-accumulate (MAC) counts as one operation, as the source table's "Ops" does; FLOPs are
twice that.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from vggdeploy import limits
from vggdeploy.errors import ConfigError

Kind = Literal["conv", "batchnorm", "relu", "maxpool", "avgpool", "dropout", "linear"]
Shape = tuple[int, ...]

# A number is a 3x3 convolution with that many output channels, "M" a 2x2 max pool of stride 2.
_VGG: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M") + (256,) * 3 + ("M",) + ((512,) * 3 + ("M",)) * 2,
    "vgg19": (64, 64, "M", 128, 128, "M") + (256,) * 4 + ("M",) + ((512,) * 4 + ("M",)) * 2,
}
ARCHITECTURES: tuple[str, ...] = tuple(name for base in _VGG for name in (base, f"{base}_bn"))
"""Every name that ``--arch`` takes."""

HIDDEN = 4096
"""Width of the two hidden fully connected layers."""

MOST_CLASSES = limits.ELEMENTS // HIDDEN
"""More would not be weights of one tensor."""

SLIMMEST = 64
"""The first layer has 64 channels: divided by more, nothing is left."""

SMALLEST_INPUT = 32
"""Five max pools of stride 2 leave nothing of a smaller image."""


@dataclass(frozen=True)
class Layer:
    """One layer, with torchvision's module name (``features.0``, ``classifier.6``).

    ``kernel``, ``stride`` and ``padding`` are in pixels and the same both ways; for ``avgpool``,
    ``kernel`` is the side of the output that the adaptive pool makes.
    """

    name: str
    kind: Kind
    in_channels: int = 0
    out_channels: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def weights(self) -> int:
        """Weight elements, biases and BatchNorm's affine parameters not among them."""
        if self.kind in ("conv", "linear"):
            return self.in_channels * self.out_channels * self.kernel**2
        return 0

    @property
    def params(self) -> int:
        """Trainable parameters: weights, biases, and BatchNorm's scale and shift."""
        if self.kind in ("conv", "linear"):
            return self.weights + self.out_channels
        return 2 * self.out_channels if self.kind == "batchnorm" else 0


@dataclass(frozen=True)
class Network:
    """A chain of layers from an image ``input`` ([channels, height, width]) to class scores."""

    arch: str
    input: tuple[int, int, int]
    num_classes: int
    layers: tuple[Layer, ...]
    width_divisor: int = 1

    @property
    def batch_norm(self) -> bool:
        """Whether any layer is a BatchNorm."""
        return any(layer.kind == "batchnorm" for layer in self.layers)


@dataclass(frozen=True)
class Row:
    """A layer in its place: what goes in, what comes out, what it costs for one image.

    ``receptive_field`` is the side, in input pixels, of what one output element sees, padding
    included: a fully connected layer is the 7x7 convolution that it could be written as, so VGG16's
    see 404 pixels and cover all of a 224-pixel image.
    """

    layer: Layer
    input: Shape
    output: Shape
    macs: int
    receptive_field: int

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def params(self) -> int:
        return self.layer.params


def vgg(
    arch: str = "vgg16",
    *,
    num_classes: int = 1000,
    input_size: tuple[int, int] = (224, 224),
    width_divisor: int = 1,
) -> Network:
    """A network of the VGG family.

    Args:
        arch: one of `ARCHITECTURES`.
        num_classes: outputs of the last layer.
        input_size: height and width of the image, at least 32 each.
        width_divisor: every channel count and hidden width is divided by it (the demo's slim
            network has 8).

    Raises:
        ConfigError: for an unknown name, no classes, or an image too small.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(
            "unknown architecture",
            got=repr(arch),
            expected="one of " + ", ".join(ARCHITECTURES),
            fix="choose one with --arch",
        )
    _check_size(num_classes, input_size, SMALLEST_INPUT)
    if not 1 <= width_divisor <= SLIMMEST:
        raise ConfigError(
            "the network cannot be made so slim",
            got=width_divisor,
            expected=f"a divisor of 1 to {SLIMMEST}",
            fix="choose another width_divisor",
        )
    layers: list[Layer] = []
    channels = 3

    def add(part: str, kind: Kind, **numbers: int) -> None:
        index = sum(layer.name.startswith(part + ".") for layer in layers)
        layers.append(Layer(f"{part}.{index}", kind, **numbers))

    for step in _VGG[arch.removesuffix("_bn")]:
        if isinstance(step, str):
            add(
                "features",
                "maxpool",
                in_channels=channels,
                out_channels=channels,
                kernel=2,
                stride=2,
            )
            continue
        width = step // width_divisor
        add("features", "conv", in_channels=channels, out_channels=width, kernel=3, padding=1)
        channels = width
        if arch.endswith("_bn"):
            add("features", "batchnorm", in_channels=channels, out_channels=channels)
        add("features", "relu", in_channels=channels, out_channels=channels)
    layers.append(Layer("avgpool", "avgpool", channels, channels, kernel=7))
    widths = (channels * 7 * 7, HIDDEN // width_divisor, HIDDEN // width_divisor, num_classes)
    for position, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        add("classifier", "linear", in_channels=fan_in, out_channels=fan_out)
        if position < 2:
            add("classifier", "relu", in_channels=fan_out, out_channels=fan_out)
            add("classifier", "dropout", in_channels=fan_out, out_channels=fan_out)
    return Network(arch, (3, *input_size), num_classes, tuple(layers), width_divisor)


def _check_size(num_classes: int, input_size: tuple[int, int], smallest: int) -> None:
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ConfigError(
            "the network cannot have so many classes",
            got=num_classes,
            expected=f"1 to {MOST_CLASSES:,}",
            fix="mend --num-classes",
        )
    if min(input_size) < smallest:
        raise ConfigError(
            "the image is too small for the network's poolings",
            got=f"{input_size[0]}x{input_size[1]}",
            expected=f"{smallest} pixels or more each way",
            fix="choose a larger size",
        )


def network(
    arch: str, *, num_classes: int = 1000, input_size: tuple[int, int] = (224, 224)
) -> Network:
    """Any network whose budget can be told: the VGG family, and ``alexnet``.

    Raises:
        ConfigError: as `vgg`.
    """
    if arch == "alexnet":
        return alexnet(num_classes, input_size)
    return vgg(arch, num_classes=num_classes, input_size=input_size)


def alexnet(num_classes: int = 1000, input_size: tuple[int, int] = (224, 224)) -> Network:
    """AlexNet in torchvision's form: the yardstick beside VGG's budget.

    Raises:
        ConfigError: for no classes, or an image smaller than 63 pixels, of which nothing is left.
    """
    _check_size(num_classes, input_size, smallest=63)

    def conv(name: str, fan_in: int, fan_out: int, kernel: int, stride: int, pad: int) -> Layer:
        return Layer(name, "conv", fan_in, fan_out, kernel, stride, pad)

    def pool(name: str, width: int) -> Layer:
        return Layer(name, "maxpool", width, width, kernel=3, stride=2)

    def same(name: str, kind: Kind, width: int) -> Layer:
        return Layer(name, kind, width, width)

    layers = (
        conv("features.0", 3, 64, 11, 4, 2),
        same("features.1", "relu", 64),
        pool("features.2", 64),
        conv("features.3", 64, 192, 5, 1, 2),
        same("features.4", "relu", 192),
        pool("features.5", 192),
        conv("features.6", 192, 384, 3, 1, 1),
        same("features.7", "relu", 384),
        conv("features.8", 384, 256, 3, 1, 1),
        same("features.9", "relu", 256),
        conv("features.10", 256, 256, 3, 1, 1),
        same("features.11", "relu", 256),
        pool("features.12", 256),
        Layer("avgpool", "avgpool", 256, 256, kernel=6),
        same("classifier.0", "dropout", 9216),
        Layer("classifier.1", "linear", 9216, 4096),
        same("classifier.2", "relu", 4096),
        same("classifier.3", "dropout", 4096),
        Layer("classifier.4", "linear", 4096, 4096),
        same("classifier.5", "relu", 4096),
        Layer("classifier.6", "linear", 4096, num_classes),
    )
    return Network("alexnet", (3, *input_size), num_classes, layers)


def rows(network: Network) -> tuple[Row, ...]:
    """Every layer of `network` in its place, in order of execution.

    Receptive fields grow by ``(kernel - 1) * jump`` a layer, where ``jump`` is the product of the
    strides so far (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
    Networks", Distill 2019).
    """
    found: list[Row] = []
    shape: Shape = network.input
    seen: float = 1
    jump: float = 1
    whole: float = 1
    for layer in network.layers:
        output, window, stride = _step(layer, shape)
        if layer.kind == "linear":
            seen = whole
        else:
            if layer.kind == "avgpool":
                # The windows of an adaptive pool overlap where it does not divide evenly, so the
                # layer behind it sees what the whole map in front of it saw.
                whole = seen + (max(shape[1:]) - 1) * jump
            seen += (window - 1) * jump
            jump *= stride
        area = math.prod(output[1:]) if layer.kind == "conv" else 1
        found.append(Row(layer, shape, output, layer.weights * area, math.ceil(seen)))
        shape = output
    return tuple(found)


def _step(layer: Layer, shape: Shape) -> tuple[Shape, int, float]:
    """Output shape of a layer, the widest window it looks through, and its stride."""
    if layer.kind in ("conv", "maxpool"):
        height, width = (
            (side + 2 * layer.padding - layer.kernel) // layer.stride + 1 for side in shape[1:]
        )
        return (layer.out_channels, height, width), layer.kernel, layer.stride
    if layer.kind == "avgpool":
        # PyTorch's adaptive pool: output i averages floor(i*n/m) up to ceil((i+1)*n/m).
        side, sides = layer.kernel, shape[1:]
        window = max(
            math.ceil((i + 1) * n / side) - math.floor(i * n / side)
            for n in sides
            for i in range(side)
        )
        return (layer.out_channels, side, side), window, max(sides) / side
    if layer.kind == "linear":
        return (layer.out_channels,), 1, 1
    return shape, 1, 1


def total_params(network: Network) -> int:
    """Trainable parameters: 138,357,544 for VGG16."""
    return sum(layer.params for layer in network.layers)


def total_macs(network: Network) -> int:
    """Multiply-accumulates for one image: 15,470,264,320 for VGG16 at 224x224."""
    return sum(row.macs for row in rows(network))


def stack_receptive_field(layers: int, kernel: int) -> int:
    """Pixels seen by a stack of stride-1 convolutions: ``L * (F - 1) + 1``."""
    return layers * (kernel - 1) + 1


def stack_weights(layers: int, kernel: int, channels: int) -> int:
    """Weights of a stack of convolutions, `channels` in and out: ``L * F^2 * C^2``."""
    return layers * kernel**2 * channels**2
