"""The reference: VGG as a torch module, and the weights that go into it.

The module carries torchvision's parameter names (``features.0.weight`` ... ``classifier.6.bias``),
so its checkpoints load as they are. torch and safetensors are imported where they are used.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggdeploy import checkpoints, digests, topology
from vggdeploy.demo import CHECKPOINT, widen
from vggdeploy.errors import WeightsError, require_package

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from vggdeploy.topology import Layer, Network


ENDINGS = (".safetensors", ".pth", ".pt")
"""What files of weights end in."""


@dataclass(frozen=True)
class Weights:
    """Where weights come from, checked against nothing yet.

    ``source`` is ``"demo"``, ``"imagenet"`` or an absolute path; ``sha256`` is the file's.
    ``preprocess`` names the preset that the network was trained with.
    """

    source: str
    path: Path
    sha256: str
    network: Network
    preprocess: str
    demo: bool = False


def locate(
    source: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_size: tuple[int, int] = (224, 224),
) -> Weights:
    """Find the checkpoint that `source` names and the network it belongs to.

    Args:
        source: ``"demo"``, ``"imagenet"``, or a .safetensors, .pth or .pt file.
        arch: one of `topology.ARCHITECTURES`; vgg16, or what the file says, when None.
        num_classes: outputs of the network; 1000, or what the file says, when None.
        input_size: height and width of the image.

    Raises:
        WeightsError: for a file that is not there, or a source that does not fit `arch`.
        MissingError: when the published checkpoint cannot be fetched.
    """
    if source == "demo":
        for flag, value, only in (("--arch", arch, "vgg16"), ("--num-classes", num_classes, 1000)):
            if value is not None and value != only:
                raise WeightsError(
                    f"the demo weights fit {flag} {only} alone",
                    got=value,
                    expected=only,
                    fix=f"drop {flag}, or give --weights FILE",
                )
        network = topology.vgg("vgg16", input_size=input_size)
        return Weights("demo", CHECKPOINT, digests.sha256_file(CHECKPOINT), network, "demo", True)
    path = (
        checkpoints.fetch_published(arch or "vgg16")
        if source == "imagenet"
        else Path(source).expanduser().resolve()
    )
    if path.suffix not in ENDINGS:
        raise WeightsError(
            "unknown weights",
            got=repr(source),
            expected="demo, imagenet, or a .safetensors, .pth or .pt file",
            fix="choose one with --weights",
        )
    if not path.is_file():
        raise WeightsError(
            f"weights file {path} {'is no file' if path.exists() else 'does not exist'}",
            got="a folder" if path.is_dir() else "nothing there",
            expected="a checkpoint",
            fix="check the path",
        )
    said = checkpoints.metadata(path)
    network = topology.vgg(
        arch or said.get("arch", "vgg16"),
        num_classes=said.get("num_classes", 1000) if num_classes is None else num_classes,
        input_size=input_size,
        width_divisor=said.get("width_divisor", 1),
    )
    return Weights(
        "imagenet" if source == "imagenet" else str(path),
        path,
        digests.sha256_file(path),
        network,
        said.get("preprocess", "imagenet"),
    )


def load(weights: Weights, *, channels_last: bool = False) -> torch.nn.Module:
    """The reference module in evaluation mode, weights checked and in place, float32.

    It takes ``[N, 3, H, W]`` and gives ``[N, classes]`` scores.

    Args:
        weights: what `locate` found.
        channels_last: lay out the convolutions' weights with channels last, which torch's CPU
            kernels run a fifth faster; names, shapes and values are the same.

    Raises:
        WeightsError: naming the file and the first key that differs.
        MissingError: when torch or safetensors is not installed.
    """
    require_package("torch", "export", "the reference network")
    import torch

    state: Mapping[str, torch.Tensor]
    if weights.demo:
        slim = checkpoints.read(weights.path)
        wide = widen.widen({k: v.float().numpy() for k, v in slim.items()}, weights.network)
        state = {key: torch.from_numpy(array) for key, array in wide.items()}
    else:
        state = checkpoints.read(weights.path)
    module = build(weights.network)
    _check(weights, module, state)
    # assign keeps a memory-mapped file mapped: nothing is copied until it is read.
    # Not strict, since old checkpoints lack the batch counters that `_check` lets pass.
    module.load_state_dict({k: v.float() for k, v in state.items()}, strict=False, assign=True)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)


def build(network: Network) -> torch.nn.Module:
    """The torch module of `network`, without storage (on the meta device).

    Raises:
        MissingError: when torch is not installed.
    """
    require_package("torch", "export", "the reference network")
    import torch

    nn = torch.nn
    makers: dict[str, Callable[[Layer], torch.nn.Module]] = {
        "conv": lambda at: nn.Conv2d(
            at.in_channels, at.out_channels, at.kernel, at.stride, at.padding
        ),
        "batchnorm": lambda at: nn.BatchNorm2d(at.out_channels),
        "relu": lambda _: nn.ReLU(inplace=True),
        "maxpool": lambda at: nn.MaxPool2d(at.kernel, at.stride, at.padding),
        "avgpool": lambda at: nn.AdaptiveAvgPool2d((at.kernel, at.kernel)),
        "dropout": lambda _: nn.Dropout(),
        "linear": lambda at: nn.Linear(at.in_channels, at.out_channels),
    }
    parts: dict[str, list[torch.nn.Module]] = {"features": [], "avgpool": [], "classifier": []}
    with torch.device("meta"):
        for layer in network.layers:
            parts[layer.name.split(".")[0]].append(makers[layer.kind](layer))
        return _module_class()(
            nn.Sequential(*parts["features"]),
            *parts["avgpool"],
            nn.Sequential(*parts["classifier"]),
        )


@functools.cache
def _module_class() -> type[torch.nn.Module]:
    """The module's class, made on first use so that importing this file needs no torch."""
    import torch

    class VGG(torch.nn.Module):
        """features, adaptive average pool, classifier: torchvision's three parts."""

        def __init__(
            self,
            features: torch.nn.Sequential,
            avgpool: torch.nn.Module,
            classifier: torch.nn.Sequential,
        ) -> None:
            super().__init__()
            self.features = features
            self.avgpool = avgpool
            self.classifier = classifier

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.avgpool(self.features(image))
            scores: torch.Tensor = self.classifier(pooled.flatten(1))
            return scores

    return VGG


def fold_batchnorm(module: torch.nn.Module) -> torch.nn.Module:
    """The same function without BatchNorm: each is folded into the convolution before it.

    Module names stay as they are (a folded BatchNorm becomes Identity).
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    parts = module.features
    assert isinstance(parts, torch.nn.Sequential)
    for index, layer in enumerate(parts):
        if isinstance(layer, torch.nn.BatchNorm2d):
            conv = parts[index - 1]
            assert isinstance(conv, torch.nn.Conv2d)
            parts[index - 1] = fuse_conv_bn_eval(conv.eval(), layer.eval())
            parts[index] = torch.nn.Identity()
    return module.requires_grad_(False)


def outputs(module: torch.nn.Module, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores ``[N, classes]`` of a float32 batch ``[N, 3, H, W]``."""
    import torch

    with torch.inference_mode():
        result: NDArray[np.float32] = module(torch.from_numpy(batch)).numpy()
    return result


def _check(weights: Weights, module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Compare names, then shapes, then the numbers, and name the first difference."""
    import torch

    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    # Checkpoints older than PyTorch 0.4.1 have no batch counters, which inference never reads.
    for key in wanted:
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, ())
    where = f"weights file {weights.path} does not fit {weights.network.arch}"
    for key in [*wanted, *given]:
        if key not in given or key not in wanted:
            raise WeightsError(
                where,
                got=f"{'no' if key not in given else 'an unknown'} key {key!r}",
                expected=f"the {len(wanted)} keys of torchvision's {weights.network.arch}",
                fix=_suggest(weights, given),
            )
    for key, shape in wanted.items():
        if given[key] != shape:
            classes = key in ("classifier.6.weight", "classifier.6.bias")
            raise WeightsError(
                where,
                got=f"{key} of shape {list(given[key])}",
                expected=str(list(shape)),
                fix=f"give --num-classes {given[key][0]}"
                if classes and given[key]
                else _suggest(weights, given),
            )
    for key, value in state.items():
        if value.dtype not in plain and not key.endswith("num_batches_tracked"):
            raise WeightsError(
                f"weights file {weights.path}: {key} holds no floating-point numbers",
                got=str(value.dtype).removeprefix("torch."),
                expected="the float weights, before any quantization",
                fix="give the original checkpoint",
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(
                f"weights file {weights.path}: {key} holds NaN or infinity",
                got=f"{int((~value.isfinite()).sum()):,} such numbers",
                expected="finite numbers",
                fix="train or copy it again",
            )


def _suggest(weights: Weights, given: Mapping[str, tuple[int, ...]]) -> str:
    """The --arch that the file's keys and shapes do fit, if there is one."""
    for arch in topology.ARCHITECTURES:
        other = build(replace(topology.vgg(arch), num_classes=weights.network.num_classes))
        shapes = {
            key: tuple(value.shape)
            for key, value in other.state_dict().items()
            if not key.startswith("classifier.6.") and not key.endswith("num_batches_tracked")
        }
        if all(given.get(key) == shape for key, shape in shapes.items()) and (
            sum(key.startswith("features") and key.endswith("weight") for key in given)
            == sum(key.startswith("features") and key.endswith("weight") for key in shapes)
        ):
            return f"the file looks like {arch}: give --arch {arch}"
    if given and all(key.startswith("module.") for key in given):
        return "strip the prefix 'module.' that DataParallel puts before every key"
    return "give a checkpoint with torchvision's names, or the right --arch"
