"""From a decoded image to the network's input, written once and recorded in every bundle.

Two steps, so that the first can be stored: geometry gives uint8 ``[H, W, 3]`` (what probes hold),
arithmetic gives float32 ``[N, 3, H, W]`` or ``[N, H, W, 3]``. A preprocessing other than the one
the network was trained with costs more accuracy than INT8 does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vggdeploy import toml
from vggdeploy.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = 1e9
"""Far beyond any mean or scale, and small enough that float32 holds every product of two."""

LARGEST_RESIZED = 1 << 24
"""Pixels of a resized image, and of what a network sees: a strip of 256 by 65,536."""

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes the network's input.

    ``x = (pixel * scale - mean) / std`` for each channel, in the order of ``channels``.
    ``resize`` is ``"shortest"`` (shortest side to ``resize_to``, then a centre crop) or
    ``"stretch"`` (straight to ``size``). Pillow's filters are antialiased.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["shortest", "stretch"] = "shortest"
    resize_to: int = 256
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    layout: Literal["nchw", "nhwc"] = "nchw"

    def geometry(self, image: Image.Image, name: str = "an image") -> NDArray[np.uint8]:
        """Resize and crop an RGB image: uint8 ``[H, W, 3]``, channels still RGB.

        Args:
            image: what is resized.
            name: what errors call it.

        Raises:
            DatasetError: for an image so thin that resizing its shortest side would fill memory.
        """
        height, width = self.size
        method = _INTERPOLATIONS[self.interpolation]
        if self.resize == "stretch":
            image = image.resize((width, height), method)
        else:
            # torchvision's Resize(int): the longer side is truncated, not rounded.
            short, to = min(image.size), self.resize_to
            scaled = tuple(to if side == short else int(to * side / short) for side in image.size)
            if scaled[0] * scaled[1] > LARGEST_RESIZED:
                raise DatasetError(
                    f"{name} is too thin",
                    got=f"{image.width}x{image.height} pixels, resized {scaled[0]}x{scaled[1]}",
                    expected=f"{LARGEST_RESIZED:,} pixels at most",
                    fix='remove it, or preprocess with resize = "stretch"',
                )
            image = image.resize((scaled[0], scaled[1]), method)
            left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image, dtype=np.uint8)

    def arithmetic(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalize uint8 ``[N, H, W, 3]`` RGB pixels into the network's float32 input."""
        x = pixels[..., ::-1] if self.channels == "bgr" else pixels
        scale = np.float32(self.scale) / np.asarray(self.std, np.float32)
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        normal = x.astype(np.float32) * scale - shift
        if self.layout == "nchw":
            normal = normal.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(normal, dtype=np.float32)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The network's input for one image, in the order of ``layout``."""
        return (3, *self.size) if self.layout == "nchw" else (*self.size, 3)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping that `from_mapping` takes back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


PRESETS: dict[str, Preprocess] = {
    # torchvision's, for its VGG checkpoints.
    "imagenet": Preprocess(),
    # Simonyan and Zisserman's own, for weights converted from Caffe.
    "caffe": Preprocess(
        channels="bgr", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
    ),
    # Pixels in 0 to 1 and nothing more.
    "unit": Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    # ImageNet's statistics on the demo's digits, whose edges a centre crop would cut off.
    "demo": Preprocess(resize="stretch"),
}


def load(name_or_file: str) -> Preprocess:
    """A preset by name, or a TOML file.

    Raises:
        ConfigError: for an unknown name, an unreadable file, an unknown key or a wrong value.
    """
    if name_or_file in PRESETS:
        return PRESETS[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".toml":
        raise ConfigError(
            "unknown preprocessing",
            got=repr(name_or_file),
            expected="one of " + ", ".join(PRESETS) + ", or a .toml file",
            fix="choose one with --preprocess",
        )
    try:
        table = toml.read(path, "preprocessing")
    except FileNotFoundError as error:
        raise ConfigError(
            f"preprocessing file {path} does not exist",
            got="nothing there",
            expected="a .toml file of preprocessing",
            fix="check the path",
        ) from error
    return from_mapping(table, where=str(path))


def from_mapping(table: dict[str, Any], *, where: str) -> Preprocess:
    """Build and check a `Preprocess`; `where` names the source in errors.

    Raises:
        ConfigError: for an unknown key or a value that cannot be.
    """
    known = {field.name for field in fields(Preprocess)}
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key",
                got=repr(key),
                expected="one of " + ", ".join(sorted(known)),
                fix="remove or rename it",
            )

    def numbers(key: str, count: int, kind: type) -> tuple[Any, ...]:
        value = table.get(key, getattr(Preprocess, key))
        if (
            not isinstance(value, list | tuple)
            or len(value) != count
            or not all(_is_number(v, kind) for v in value)
        ):
            raise ConfigError(
                f"{where}: {key} is wrong",
                got=value,
                expected=f"{count} {'whole numbers' if kind is int else 'finite numbers'}",
                fix="mend the value",
            )
        return tuple(kind(v) for v in value)

    def choice(key: str, options: tuple[str, ...]) -> Any:
        value = table.get(key, getattr(Preprocess, key))
        if value not in options:
            raise ConfigError(
                f"{where}: {key} is wrong",
                got=repr(value),
                expected="one of " + ", ".join(options),
                fix="mend the value",
            )
        return value

    def number(key: str, kind: type) -> Any:
        value = table.get(key, getattr(Preprocess, key))
        if not _is_number(value, kind):
            raise ConfigError(
                f"{where}: {key} is wrong",
                got=repr(value),
                expected="a number",
                fix="mend the value",
            )
        return kind(value)

    made = Preprocess(
        size=numbers("size", 2, int),
        resize=choice("resize", ("shortest", "stretch")),
        resize_to=number("resize_to", int),
        interpolation=choice("interpolation", tuple(_INTERPOLATIONS)),
        channels=choice("channels", ("rgb", "bgr")),
        scale=number("scale", float),
        mean=numbers("mean", 3, float),
        std=numbers("std", 3, float),
        layout=choice("layout", ("nchw", "nhwc")),
    )
    if min(made.size) < 1:
        raise ConfigError(
            f"{where}: size is wrong",
            got=made.size,
            expected="1 pixel or more",
            fix="mend the value",
        )
    if made.size[0] * made.size[1] > LARGEST_RESIZED:
        raise ConfigError(
            f"{where}: size is wrong",
            got=made.size,
            expected=f"{LARGEST_RESIZED:,} pixels at most",
            fix="mend the value",
        )
    if min(*made.std, made.scale) < 1 / _LARGEST:
        raise ConfigError(
            f"{where}: std and scale divide and multiply the pixels",
            got=f"std {made.std}, scale {made.scale}",
            expected="all above 0",
            fix="mend the value",
        )
    if made.resize == "shortest" and made.resize_to < max(made.size):
        raise ConfigError(
            f"{where}: the crop is larger than the resized image",
            got=f"resize_to {made.resize_to}, size {made.size}",
            expected=f"resize_to of {max(made.size)} or more",
            fix='raise resize_to, or set resize = "stretch"',
        )
    return made


def _is_number(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int)
    return isinstance(value, int | float) and abs(value) <= _LARGEST
