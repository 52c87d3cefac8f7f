"""What NVIDIA's GPUs can do at most: dense rates by compute capability, unit count and clock.

Rates are multiply-accumulates a streaming multiprocessor (SM) and clock cycle. Sources:

- CUDA cores: "CUDA C++ Programming Guide", section "Arithmetic Instructions", table "Throughput of
  Native Arithmetic Instructions" (rows "32-bit" and "16-bit floating-point add, multiply,
  multiply-add"). INT8 without tensor cores is DP4A, four products in the place of one of FP32.
- Tensor cores: the white papers and data sheets named with each row, whose published dense rates
  are the row's times SMs, clock and two operations a multiply-accumulate.
- Which precisions a compute capability has at all: TensorRT's support matrix, section "Hardware
  and Precision" (releases 8.5 and 10.1).

A row with `Rates.derived` has a figure that its source does not state, or whose source was not at
hand when the row was last gone through: it follows from what is published of the same multiprocessor
elsewhere. The others were held against the published figure, and `tests/vggdeploy/test_gpus.py`
holds them to it.

Published figures with sparsity are twice the dense ones, and so are sparse tensor cores for weights
of 2:4 sparsity: a utilisation above 1 is then no error. FP16 is that with FP16 accumulation;
GeForce cards do half of it where sums are in FP32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy.budget import Device
from vggdeploy.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Rates:
    """Dense multiply-accumulates an SM and clock cycle; None for a precision it does not have.

    Attributes:
        fp32: CUDA cores.
        tf32: tensor cores on FP32 values with significands cut to 10 bits.
        fp16: tensor cores where there are any, else CUDA cores.
        int8: tensor cores where they take it, else DP4A.
        geforce_tf32: that of cards sold as GeForce, where it is another.
        integrated: whether the GPU shares the memory of a CPU (Jetson, DGX Spark).
        source: where the tensor cores' rates, or what else is not in the CUDA guide, are from.
        derived: what of the row is no published figure that could be checked, and what it follows
            from; empty for nothing.
    """

    fp32: int
    fp16: int | None
    int8: int | None
    tf32: int | None = None
    geforce_tf32: int | None = None
    integrated: bool = False
    source: str = "CUDA C++ Programming Guide"
    derived: str = ""


_MATRIX = "TensorRT support matrix: no INT8"
_GA102 = "NVIDIA Ampere GA102 GPU Architecture, tables 2 and 3 (GeForce RTX 3080; A40 data sheet)"
_ADA = "NVIDIA Ada GPU Architecture, appendix A, table 2 (GeForce RTX 4090); L4 data sheet"
_B200 = "NVIDIA Blackwell Architecture Technical Brief, table 3 (HGX B200)"

RATES: dict[str, Rates] = {
    # Maxwell
    "5.0": Rates(128, None, None, source="TensorRT support matrix: FP32 alone"),
    "5.2": Rates(128, None, None, source="TensorRT support matrix: FP32 alone"),
    "5.3": Rates(128, 256, None, integrated=True, source=_MATRIX),  # TX1, Nano
    # Pascal
    "6.0": Rates(64, 128, None, source=_MATRIX),
    "6.1": Rates(
        128, 2, 512, source="NVIDIA Tesla P4 and P40 data sheets: 22 and 47 TOPS",
        derived="INT8 from DP4A at the rate of FP32; the data sheets were not at hand",
    ),
    "6.2": Rates(128, 256, None, integrated=True, source=_MATRIX),  # TX2
    # Volta
    "7.0": Rates(
        64, 512, 256, source="NVIDIA Tesla V100 GPU Architecture, table 1",
        derived="INT8 from DP4A at the rate of FP32: its tensor cores do not take it",
    ),
    "7.2": Rates(
        64, 512, 1024, integrated=True, source="Jetson AGX Xavier Series data sheet: 22.6 TOPS",
        derived="by the data sheet's total, which was not at hand",
    ),
    # Turing; see `_BARE_TURING` for the cards without tensor cores.
    "7.5": Rates(64, 512, 1024, source="NVIDIA Turing GPU Architecture, table 1; T4 data sheet"),
    # Ampere
    "8.0": Rates(
        64, 1024, 2048, 512, source="NVIDIA A100 Tensor Core GPU Architecture, tables 1 and 2"
    ),
    "8.6": Rates(128, 512, 1024, 256, 128, source=_GA102),
    "8.7": Rates(
        128, 1024, 2048, 512, integrated=True,
        source="NVIDIA/Deep-Learning-Accelerator-SW, README: 171 sparse INT8 TOPS of the GPU (Jetson "
        "AGX Orin 64GB); Jetson AGX Orin Series Technical Brief: 170",
    ),
    # Ada
    "8.9": Rates(128, 512, 1024, 256, 128, source=_ADA),
    # Hopper. Its clock is lower while tensor cores are busy: 1.83 GHz of 1.98.
    "9.0": Rates(
        128, 2048, 4096, 1024, source="NVIDIA H100 Tensor Core GPU Architecture, table 2"
    ),
    # Blackwell
    "10.0": Rates(
        128, 4096, 8192, 2048, source=_B200,
        derived="SMs and clock, of which the brief says nothing, are B200's as drivers tell them",
    ),
    # Blackwell Ultra gave INT8 up for FP4: 0.15 dense POPS beside B200's 4.5.
    "10.3": Rates(
        128, 4096, 256, 2048, source="NVIDIA Blackwell Ultra technical brief: 150 dense INT8 TOPS",
        derived="by that total, with B200's SMs and clock; NVIDIA's documents differ in it by 2%",
    ),
    "11.0": Rates(
        128, 4096, 8192, 2048, integrated=True,
        source="NVIDIA Jetson Thor specifications (T5000): 1,035 sparse FP8 TFLOPS or INT8 TOPS, "
        "517 dense FP8 TFLOPS",
    ),
    "12.0": Rates(
        128, 512, 1024, 256, 128,
        source="NVIDIA RTX Blackwell GPU Architecture, appendix A (GeForce RTX 5090): 838 dense INT8 "
        "TOPS, 419 FP16 TFLOPS",
    ),
    # GB10: the same SM, by its 1,000 sparse FP4 TFLOPS of 48 SMs, four times INT8's dense rate.
    "12.1": Rates(
        128, 512, 1024, 256, 128, integrated=True, source="NVIDIA DGX Spark data sheet",
        derived="of 12.0: the data sheet has one rounded figure, of FP4",
    ),
}  # fmt: skip
_BARE_TURING = Rates(64, 128, 256, source="CUDA C++ Programming Guide; DP4A")
"""TU116 and TU117 have no tensor cores, and units of their own for FP16 at twice the rate of FP32,
which is the CUDA guide's rate for all of 7.x (TechPowerUp, "EVGA GeForce GTX 1660 Ti XC Black
Review", Architecture, 2019). Their compute capability is Turing's, so their names tell them apart.
A GTX 1650 on a larger chip (TU106) has its tensor cores switched off."""

_BARE_NAMES = re.compile(
    r"\bGTX 16\d\d|\bMX[45]50\b|\bT(?:400|500|550|600|1000|1200|2000)\b", re.IGNORECASE
)
"""GeForce GTX 1650 to 1660 Ti, GeForce MX450 and MX550, and the professional cards from T400 to
T2000; T4, and what is called RTX, has tensor cores."""

RATES["10.1"] = RATES["11.0"]  # what CUDA up to 12.9 called Jetson Thor


def rates(compute_capability: str, name: str = "") -> Rates:
    """The row of a compute capability such as ``"8.7"``, or that of the card called `name` where its
    capability has cards with tensor cores and without.

    Raises:
        ConfigError: for one that is not in the table, naming the known ones.
    """
    if compute_capability not in RATES:
        raise ConfigError(
            "no rates are known for this compute capability",
            got=repr(compute_capability),
            expected="one of " + ", ".join(RATES),
            fix="measure with a GPU of the table, or add its row to vggdeploy/gpus.py",
        )
    if compute_capability == "7.5" and _BARE_NAMES.search(name):
        return _BARE_TURING
    return RATES[compute_capability]


def peak(
    compute_capability: str, sms: int, clock_hz: float, precision: str, name: str = ""
) -> float:
    """The largest dense rate of a GPU, in multiply-accumulates a second.

    Args:
        compute_capability: such as ``"8.7"``.
        sms: streaming multiprocessors.
        clock_hz: of the SMs, the highest.
        precision: ``fp32``, ``tf32``, ``fp16`` or ``int8``.
        name: the card's; GeForce cards multiply TF32 at half the rate, and some of Turing have no
            tensor cores.

    Raises:
        ConfigError: for an unknown compute capability or precision.
        MissingError: where the GPU has no such arithmetic.
    """
    row = rates(compute_capability, name)
    geforce = re.search(r"\bgeforce\b", name, re.IGNORECASE) is not None
    tf32 = row.geforce_tf32 if geforce and row.geforce_tf32 else row.tf32
    found = {"fp32": row.fp32, "tf32": tf32, "fp16": row.fp16, "int8": row.int8}
    if precision not in found:
        raise ConfigError(
            "no GPU rate is known for this precision",
            got=repr(precision),
            expected="one of " + ", ".join(found),
            fix="choose a TensorRT target",
        )
    rate = found[precision]
    if rate is None:
        has = ", ".join(key for key, value in found.items() if value is not None)
        raise MissingError(
            f"a GPU of compute capability {compute_capability} has no {precision} arithmetic",
            got=has,
            expected=f"{precision} among them",
            fix=f"build a target of {has} for it",
        )
    return rate * sms * clock_hz


def bandwidth(memory_bus_bits: int, memory_clock_hz: float) -> float:
    """Bytes a second that a GPU's own memory moves at most.

    Two transfers a clock cycle, each as wide as the bus (CUDA's deviceQuery sample; M. Harris, "How
    to Query Device Properties and Handle Errors in CUDA C/C++", NVIDIA, 2012).
    """
    return 2 * memory_clock_hz * memory_bus_bits / 8


def rated(facts: Mapping[str, Any], precision: str) -> Device:
    """What a GPU can do at most, by the table, from what its driver says of it.

    Args:
        facts: ``name``, ``compute_capability``, ``multiprocessors``, ``clock_hz``, ``memory_bus_bits`` and
            ``memory_clock_hz``; with ``copy_bytes_per_s``, what its memory was measured to move.
        precision: as for `peak`.

    Returns:
        Rates by the table. The bandwidth is what was measured; else the bus's, or 0, not known,
        where the GPU shares a CPU's memory: the driver says the GPU's clock there in place of the
        memory's.

    Raises:
        ConfigError, MissingError: as `peak`.
    """
    capability = str(facts["compute_capability"])
    macs = peak(
        capability, facts["multiprocessors"], facts["clock_hz"], precision, str(facts["name"])
    )
    if "copy_bytes_per_s" in facts:
        return Device(macs, facts["copy_bytes_per_s"])
    if rates(capability).integrated:
        return Device(macs, 0.0)
    return Device(macs, bandwidth(facts["memory_bus_bits"], facts["memory_clock_hz"]))
