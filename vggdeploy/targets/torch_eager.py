"""torch in FP32, as written: the reference, run through the same harness as the engines."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import atomic, checkpoints, forms, graphs, limits, reference, topology
from vggdeploy.contracts import Availability, Probe, Runner, Target, TensorSpec
from vggdeploy.errors import BundleError, MissingError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Batch, CompileOptions, Outputs, RunOptions

ENGINE = "model.safetensors"
NETWORK = "network.json"


def _sides(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(forms.positive, value))


def _classes(value: object) -> bool:
    return type(value) is int and 0 < value <= limits.ELEMENTS


_FORM = {
    "arch": str,
    "num_classes": _classes,
    "input_size": _sides,
    "width_divisor": forms.positive,
}
"""What is read of a network."""


class Torch(Target):
    """The reference network in torch, on the CPU."""

    def availability(self) -> Availability:
        for package in ("torch", "safetensors"):
            if importlib.util.find_spec(package) is None:
                return Availability(
                    False,
                    f"the package {package} is not installed",
                    "pip install 'vggdeploy[export]'",
                )
        return Availability(True)

    def version(self) -> str:
        return f"torch {importlib.metadata.version('torch')}"

    def compile(self, onnx: Path, options: CompileOptions, out_dir: Path) -> tuple[Path, ...]:
        import safetensors
        from safetensors.numpy import save_file

        network = options.network
        if network is None:
            raise ModelError(
                f"{self.name} runs networks of the VGG family alone",
                got="a foreign ONNX graph",
                expected="weights of that family",
                fix="build ov-fp32 in its place",
            )
        model = graphs.read(onnx)
        tensors: dict[str, NDArray[np.float32]] = {}
        for layer in network.layers:
            if layer.kind not in ("conv", "linear"):
                continue
            found = model.graph.initializers
            weight = found[f"{layer.name}.weight"].const_value
            assert weight is not None
            tensors[f"{layer.name}.weight"] = weight.numpy()
            # The exporter drops a bias of zeros.
            bias = (
                found[f"{layer.name}.bias"].const_value if f"{layer.name}.bias" in found else None
            )
            tensors[f"{layer.name}.bias"] = (
                np.zeros(layer.out_channels, np.float32) if bias is None else bias.numpy()
            )
        try:
            save_file(tensors, out_dir / ENGINE)
        except safetensors.SafetensorError as error:
            raise atomic.no_space(out_dir / ENGINE) from error
        (out_dir / NETWORK).write_text(
            json.dumps(
                {
                    "arch": network.arch,
                    "num_classes": network.num_classes,
                    "input_size": list(network.input[1:]),
                    "width_divisor": network.width_divisor,
                }
            )
        )
        return out_dir / ENGINE, out_dir / NETWORK

    def open(self, bundle: Bundle, options: RunOptions) -> Runner:
        if options.device != "CPU":
            raise MissingError(
                f"{self.name} runs on the CPU alone",
                got=f"--device {options.device}",
                expected="--device CPU",
                fix="drop --device, or build for another target",
            )
        said, weights = bundle.read_json(NETWORK, _FORM), bundle.file(ENGINE)
        network = topology.vgg(
            said["arch"],
            num_classes=said["num_classes"],
            input_size=tuple(said["input_size"]),
            width_divisor=said["width_divisor"],
        )

        def module() -> Any:
            made = reference.fold_batchnorm(reference.build(network).eval())
            state = checkpoints.read(weights)
            wanted, found = _kinds(made.state_dict()), _kinds(state)
            if found != wanted:
                wrong = next(key for key in (*wanted, *found) if wanted.get(key) != found.get(key))
                raise BundleError(
                    f"bundle {bundle.path} does not hold its network's weights",
                    got=f"{wrong} {found.get(wrong, 'left out')}",
                    expected=wanted.get(wrong, "its keys, and no other"),
                    fix="build it again",
                )
            made.load_state_dict(state, assign=True)
            return made

        return TorchRunner(
            module,
            TensorSpec("image", (options.batch, *network.input)),
            TensorSpec("logits", (options.batch, network.num_classes)),
            f"torch-fp32 {bundle.path}",
        )

    def probes(self, options: RunOptions) -> Sequence[Probe]:
        found = []
        for channels, side in ((256, 56), (512, 28)):
            runner = TorchRunner(
                functools.partial(_convolution, channels),
                TensorSpec("image", (1, channels, side, side)),
                TensorSpec("out", (1, channels, side, side)),
                f"conv {channels}x{side}x{side}",
            )
            found.append(
                Probe(runner.name, runner, macs=side**2 * channels**2 * 9, precision="fp32")
            )
        inputs, outputs = 8192, 4096
        runner = TorchRunner(
            lambda: _matrix(inputs, outputs),
            TensorSpec("image", (1, inputs)),
            TensorSpec("out", (1, outputs)),
            "matrix-vector product",
        )
        found.append(Probe(runner.name, runner, bytes=4 * inputs * outputs))
        return found


class TorchRunner(Runner):
    """Runs a torch module; `make` gives it when the runner is opened."""

    def __init__(
        self, make: Callable[[], Any], taken: TensorSpec, given: TensorSpec, name: str
    ) -> None:
        super().__init__()
        self.name = name
        self.input = taken
        self.outputs = (given,)
        self._make = make
        self._module: Any = None

    def _start(self) -> None:
        self._module = self._make()
        self.details = {"device": "CPU", "requests": 1}

    def _stop(self) -> None:
        self._module = None

    def _infer(self, batch: Batch) -> Outputs:
        return {self.outputs[0].name: reference.outputs(self._module, batch)}


def _kinds(state: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of each tensor of a state dict."""
    return {key: f"{value.dtype} {list(value.shape)}" for key, value in state.items()}


def _convolution(channels: int) -> Any:
    import torch

    return torch.nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)


def _matrix(inputs: int, outputs: int) -> Any:
    import torch

    return torch.nn.Linear(inputs, outputs).requires_grad_(False)
