"""The table of GPU rates against what data sheets publish of real cards."""

from __future__ import annotations

import pytest

from vggdeploy import gpus
from vggdeploy.errors import ConfigError, MissingError

# Published dense rates, in T operations a second (two a multiply-accumulate); figures that are
# published with sparsity are halved. SMs and boost clocks are the same data sheets'.
PUBLISHED = [
    # name, compute capability, SMs, GHz, precision, TOPS or TFLOPS
    ("GeForce GTX 980", "5.2", 16, 1.216, "fp32", 4.98),
    ("Jetson Nano", "5.3", 1, 0.9216, "fp16", 0.472),
    ("Jetson Nano", "5.3", 1, 0.9216, "fp32", 0.236),
    ("Tesla P100", "6.0", 56, 1.480, "fp16", 21.2),
    ("Tesla P40", "6.1", 30, 1.531, "int8", 47.0),
    ("Tesla P4", "6.1", 20, 1.063, "int8", 21.8),
    ("Jetson TX2", "6.2", 2, 1.300, "fp16", 1.33),
    ("Tesla V100", "7.0", 80, 1.530, "fp16", 125.0),
    ("Tesla V100", "7.0", 80, 1.530, "fp32", 15.7),
    ("Jetson AGX Xavier", "7.2", 8, 1.377, "int8", 22.6),
    ("Jetson AGX Xavier", "7.2", 8, 1.377, "fp16", 11.3),
    ("Tesla T4", "7.5", 40, 1.590, "int8", 130.0),
    ("Tesla T4", "7.5", 40, 1.590, "fp16", 65.0),
    ("Tesla T4", "7.5", 40, 1.590, "fp32", 8.1),
    ("NVIDIA GeForce GTX 1650", "7.5", 14, 1.665, "fp32", 2.984),
    ("NVIDIA GeForce GTX 1650", "7.5", 14, 1.665, "fp16", 5.967),
    ("Quadro T1000", "7.5", 14, 1.650, "fp16", 5.914),
    ("A100", "8.0", 108, 1.410, "int8", 624.0),
    ("A100", "8.0", 108, 1.410, "fp16", 312.0),
    ("A100", "8.0", 108, 1.410, "tf32", 156.0),
    ("A100", "8.0", 108, 1.410, "fp32", 19.5),
    ("NVIDIA GeForce RTX 3080", "8.6", 68, 1.710, "int8", 238.0),
    ("NVIDIA GeForce RTX 3080", "8.6", 68, 1.710, "fp16", 119.0),
    ("NVIDIA GeForce RTX 3080", "8.6", 68, 1.710, "tf32", 29.8),
    ("NVIDIA GeForce RTX 3090", "8.6", 82, 1.695, "int8", 284.0),
    ("NVIDIA A40", "8.6", 84, 1.740, "fp16", 149.7),
    ("NVIDIA A40", "8.6", 84, 1.740, "fp32", 37.4),
    ("NVIDIA A40", "8.6", 84, 1.740, "tf32", 74.8),
    ("Jetson AGX Orin 64GB", "8.7", 16, 1.300, "int8", 170 / 2),
    ("Jetson AGX Orin 64GB", "8.7", 16, 1.300, "fp32", 5.3),
    ("NVIDIA GeForce RTX 4090", "8.9", 128, 2.520, "int8", 660.6),
    ("NVIDIA GeForce RTX 4090", "8.9", 128, 2.520, "fp16", 330.3),
    ("NVIDIA GeForce RTX 4090", "8.9", 128, 2.520, "tf32", 82.6),
    ("NVIDIA L4", "8.9", 58, 2.040, "int8", 485 / 2),
    ("NVIDIA L4", "8.9", 58, 2.040, "tf32", 120 / 2),
    ("NVIDIA H100 SXM5", "9.0", 132, 1.830, "int8", 1978.9),
    ("NVIDIA H100 SXM5", "9.0", 132, 1.830, "fp16", 989.4),
    ("NVIDIA H100 SXM5", "9.0", 132, 1.830, "tf32", 494.7),
    ("NVIDIA B200", "10.0", 148, 1.850, "int8", 4500.0),
    ("NVIDIA B200", "10.0", 148, 1.850, "fp16", 2250.0),
    ("NVIDIA Thor", "11.0", 20, 1.575, "int8", 1035 / 2),
    ("NVIDIA Thor", "11.0", 20, 1.575, "fp32", 8.064),
    ("NVIDIA GeForce RTX 5090", "12.0", 170, 2.407, "int8", 838.0),
    ("NVIDIA GeForce RTX 5090", "12.0", 170, 2.407, "fp16", 419.0),
    ("NVIDIA GeForce RTX 5090", "12.0", 170, 2.407, "tf32", 104.8),
    ("NVIDIA RTX PRO 6000 Blackwell", "12.0", 188, 2.617, "tf32", 251.9),
]


@pytest.mark.parametrize("card", PUBLISHED, ids=lambda card: f"{card[0]} {card[4]}")
def test_published_rates_come_out(card):
    name, capability, sms, ghz, precision, published = card
    found = 2 * gpus.peak(capability, sms, ghz * 1e9, precision, name) / 1e12
    # Data sheets round their rates and clocks; the next possible rate is half, or twice.
    assert found == pytest.approx(published, rel=0.03)


def test_every_generation_of_the_table_is_held_against_a_card():
    untested = set(gpus.RATES) - {card[1] for card in PUBLISHED}
    # The same SM as the next, renamed, or with rates that data sheets do not give a clock for.
    assert untested == {"5.0", "10.1", "10.3", "12.1"}


BARE = [
    "NVIDIA GeForce GTX 1650", "GeForce GTX 1660 Ti", "NVIDIA GeForce GTX 1650 Ti with Max-Q Design",
    "NVIDIA GeForce MX450", "NVIDIA GeForce MX550", "NVIDIA T400 4GB", "NVIDIA T500", "NVIDIA T600 Laptop GPU",
    "Quadro T1000", "NVIDIA T1200 Laptop GPU", "Quadro T2000",
]  # fmt: skip
WHOLE = [
    "Tesla T4", "NVIDIA T4G", "NVIDIA GeForce RTX 2060", "NVIDIA TITAN RTX", "Quadro RTX 4000",
    "Quadro RTX 6000", "",
]  # fmt: skip


@pytest.mark.parametrize("name", BARE)
def test_turing_without_tensor_cores_is_told_apart_by_name(name):
    assert gpus.peak("7.5", 1, 1.0, "fp16", name) == 128
    # DP4A: four products for one of FP32.
    assert gpus.peak("7.5", 1, 1.0, "int8", name) == 4 * gpus.peak("7.5", 1, 1.0, "fp32", name)
    facts = {**FACTS, "name": name, "compute_capability": "7.5"}
    assert gpus.rated(facts, "int8").macs_per_s == 256 * 108 * 1.41e9


@pytest.mark.parametrize("name", WHOLE)
def test_turing_with_tensor_cores_has_them(name):
    assert gpus.peak("7.5", 1, 1.0, "int8", name) == 1024
    assert gpus.peak("7.5", 1, 1.0, "fp16", name) == 512


def test_those_names_count_for_turing_alone():
    assert gpus.peak("8.6", 1, 1.0, "int8", "T1000") == 1024


def test_what_is_not_published_says_what_it_follows_from():
    marked = {capability for capability, row in gpus.RATES.items() if row.derived}
    assert marked == {"6.1", "7.0", "7.2", "10.0", "10.3", "12.1"}


@pytest.mark.parametrize("capability", gpus.RATES)
def test_narrower_is_no_slower(capability):
    row = gpus.rates(capability)
    assert row.source
    assert row.tf32 is None or row.fp32 <= row.tf32 <= (row.fp16 or 0) / 2
    assert row.geforce_tf32 is None or row.geforce_tf32 * 2 == row.tf32
    if capability not in ("6.1", "7.0", "10.3") and row.int8:
        assert row.int8 == 2 * (row.fp16 or 0)


@pytest.mark.parametrize(
    ("bits", "mhz", "published"),
    [(5120, 1215, 1555e9), (384, 10501, 1008e9), (256, 5001, 320e9)],
    ids=["A100 40GB", "RTX 4090", "T4"],
)
def test_published_bandwidths_come_out(bits, mhz, published):
    assert gpus.bandwidth(bits, mhz * 1e6) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("capability", "precision", "has"),
    [("5.3", "int8", "fp32, fp16"), ("6.2", "int8", "fp32, fp16"), ("5.2", "fp16", "fp32")],
)
def test_arithmetic_that_a_gpu_lacks_is_said(capability, precision, has):
    with pytest.raises(MissingError, match=f"{capability} has no {precision}.*got {has}"):
        gpus.peak(capability, 1, 1e9, precision)


def test_unknown_ones_are_named():
    with pytest.raises(ConfigError, match=r"'4\.2'.*5\.0, 5\.2"):
        gpus.peak("4.2", 1, 1e9, "int8")
    with pytest.raises(ConfigError, match=r"'fp8'.*fp32, tf32, fp16, int8"):
        gpus.peak("8.9", 1, 1e9, "fp8")


FACTS = {"name": "NVIDIA A100", "compute_capability": "8.0", "multiprocessors": 108, "clock_hz": 1.41e9,
         "memory_bus_bits": 5120, "memory_clock_hz": 1.215e9}  # fmt: skip


def test_a_card_is_rated_by_what_its_driver_says():
    device = gpus.rated(FACTS, "int8")
    assert device.macs_per_s == pytest.approx(312e12, rel=0.01)
    assert device.bytes_per_s == pytest.approx(1555e9, rel=0.01)


def test_shared_memory_has_no_rated_bandwidth():
    jetson = {**FACTS, "name": "Orin", "compute_capability": "8.7", "multiprocessors": 16, "clock_hz": 1.3e9,
              "memory_bus_bits": 256, "memory_clock_hz": 1.3e9}  # fmt: skip
    assert gpus.rated(jetson, "int8").bytes_per_s == 0


@pytest.mark.parametrize("capability", ["8.0", "8.7"])
def test_measured_copies_are_the_bandwidth(capability):
    facts = {**FACTS, "compute_capability": capability, "copy_bytes_per_s": 1.3e12}
    device = gpus.rated(facts, "int8")
    assert device.bytes_per_s == 1.3e12
    assert device.macs_per_s == gpus.peak(capability, 108, 1.41e9, "int8")
