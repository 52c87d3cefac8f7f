"""Widening: a slim network replicated to full width, computing the same function.

Every hidden channel is copied k times and the weights that read the copies are divided by k
(Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", 2015). With
k a power of two, as here, the division is exact in binary floating point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vggdeploy.topology import Network


def widen(
    slim: Mapping[str, NDArray[np.float32]], network: Network
) -> dict[str, NDArray[np.float32]]:
    """Replicate the channels of `slim` up to the widths of `network`.

    Copies are laid side by side as whole groups (channel ``c`` of the slim network becomes ``c``,
    ``c + C``, ``c + 2C``, ...), so that neighbouring channels differ, as they do in any network.

    Args:
        slim: ``weight`` and ``bias`` of every convolution and fully connected layer of a network
            with the same layers and fewer channels.
        network: the network to widen to, without BatchNorm.

    Returns:
        The wide network's tensors, under the same names.

    Raises:
        WeightsError: when a width of `network` is no multiple of the slim one.
    """
    wide: dict[str, NDArray[np.float32]] = {}
    for layer in network.layers:
        if layer.kind not in ("conv", "linear"):
            continue
        weight = slim[f"{layer.name}.weight"]
        out_copies = _copies(layer.name, layer.out_channels, weight.shape[0])
        in_copies = _copies(layer.name, layer.in_channels, weight.shape[1])
        # A row of fully connected weights reads channels times positions, channel first, so
        # repeating the whole row repeats the channels.
        repeat = (out_copies, in_copies) + (1,) * (weight.ndim - 2)
        wide[f"{layer.name}.weight"] = np.tile(weight / np.float32(in_copies), repeat)
        wide[f"{layer.name}.bias"] = np.tile(slim[f"{layer.name}.bias"], out_copies)
    return wide


def _copies(name: str, wide: int, slim: int) -> int:
    if wide % slim:
        raise WeightsError(
            f"{name} cannot be widened",
            got=f"{slim} channels",
            expected=f"a divisor of {wide}",
            fix="train a network whose widths divide the full ones",
        )
    return wide // slim
