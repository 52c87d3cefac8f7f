"""Train the demo checkpoint: ``python -m vggdeploy.demo.train [OUT.safetensors]``.

A VGG16 with BatchNorm at one eighth the width, on the demo's training digits at 224x224, five
epochs of AdamW on a one-cycle schedule, then BatchNorm folded and the weights stored as float16.
Seeded; about six minutes on two cores. The 400 held-out digits are looked at once, at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from vggdeploy import checkpoints, preprocess, reference, topology
from vggdeploy.demo import CHECKPOINT, WIDTH_DIVISOR, digits

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

EPOCHS = 5
BATCH = 16
PEAK_LEARNING_RATE = 2e-3
SHIFT = 12
"""Largest random shift, in pixels each way: half of one of a digit's own pixels."""
SEED = 0


def main(out: Path = CHECKPOINT) -> float:
    """Train, write the checkpoint to `out`, and return the held-out top-1 accuracy (0 to 1)."""
    import torch

    console = Console(stderr=True)
    torch.manual_seed(SEED)
    network = topology.vgg("vgg16_bn", width_divisor=WIDTH_DIVISOR)
    model = reference.build(network).to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            # Zero-mean Gaussian by fan-out for convolutions, 0.01 for the rest: torchvision's VGG.
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                torch.nn.init.normal_(module.weight, 0, 0.01)
            assert module.bias is not None
            torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()

    pixels, labels = digits.split("training")
    images, targets = _enlarge(pixels), torch.from_numpy(labels)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for step in track(range(steps), "training the demo network", console=console):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images))
        chosen = order[step % (len(images) // BATCH) * BATCH :][:BATCH]
        batch = _shifted(_normalize(images[chosen.numpy()]))
        optimizer.zero_grad()
        loss_of(model(batch), targets[chosen]).backward()
        optimizer.step()
        schedule.step()

    reference.fold_batchnorm(model.eval())
    folded = {
        key: value.detach().numpy().astype(np.float16) for key, value in model.state_dict().items()
    }
    plain = topology.vgg("vgg16", width_divisor=WIDTH_DIVISOR)
    # Folding leaves the indices of vgg16_bn; the checkpoint has those of vgg16.
    names = [
        f"{layer.name}.{part}"
        for layer in plain.layers
        if layer.kind in ("conv", "linear")
        for part in ("weight", "bias")
    ]
    checkpoints.save(out, dict(zip(names, folded.values(), strict=True)), plain, "demo")

    module = reference.load(reference.locate(str(out)))
    pixels, labels = digits.split("heldout")
    right = 0
    for start in range(0, len(pixels), 50):
        inputs = _normalize(_enlarge(pixels[start : start + 50])).numpy()
        scores = reference.outputs(module, inputs)
        right += int((scores.argmax(1) == labels[start : start + 50]).sum())
    accuracy = right / len(pixels)
    console.print(f"{out}: {out.stat().st_size:,} bytes, held-out top-1 {accuracy:.2%}")
    return accuracy


def _enlarge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[N, 8, 8]`` grey to ``[N, 224, 224, 3]`` RGB, by the demo's own preprocessing."""
    recipe = preprocess.PRESETS["demo"]
    return np.stack([recipe.geometry(Image.fromarray(image).convert("RGB")) for image in pixels])


def _normalize(pixels: NDArray[np.uint8]) -> torch.Tensor:
    import torch

    return torch.from_numpy(preprocess.PRESETS["demo"].arithmetic(pixels))


def _shifted(batch: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to `SHIFT` pixels each way, its edge pixels repeated."""
    import torch

    padded = torch.nn.functional.pad(batch, (SHIFT,) * 4, mode="replicate")
    height, width = batch.shape[2:]
    moves = torch.randint(0, 2 * SHIFT + 1, (len(batch), 2)).tolist()
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(padded, moves, strict=True)
        ]
    )


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
