"""Which precision observes activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vggdeploy import observers
from vggdeploy.cache import Cache
from vggdeploy.contracts import Availability
from vggdeploy.errors import ConfigError, MissingError
from vggdeploy.targets.openvino import OpenVINO

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openvino")


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINO, "runs_on", lambda target, device: Availability(True))


@pytest.mark.usefixtures("with_bf16")
@pytest.mark.parametrize(("gain", "precision"), [(2.0, "bf16"), (1.05, "fp32"), (0.55, "fp32")])
def test_bfloat16_observes_where_it_is_faster(
    store: Cache, monkeypatch: pytest.MonkeyPatch, gain: float, precision: str
) -> None:
    monkeypatch.setattr(observers, "gain", lambda store: gain)
    assert observers.choose("auto", store).precision == precision
    for asked in ("fp32", "bf16"):
        assert observers.choose(asked, store).precision == asked


def test_where_there_is_none_nothing_is_measured(
    store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        OpenVINO,
        "runs_on",
        lambda target, device: Availability(target.precision != "bf16", "no BF16", "none"),
    )
    monkeypatch.setattr(observers, "gain", lambda store: pytest.fail("it was measured"))
    assert observers.choose("auto", store).precision == "fp32"
    with pytest.raises(MissingError, match="no BF16"):
        observers.choose("bf16", store)


def test_another_precision_is_refused(store: Cache) -> None:
    with pytest.raises(ConfigError, match=r"'int4'.*auto, fp32 or bf16"):
        observers.choose("int4", store)


def test_what_was_measured_is_remembered(store: Cache) -> None:
    if not OpenVINO("ov-bf16", "bf16", None).runs_on("CPU").ok:
        pytest.skip("this CPU has no bfloat16")
    first = observers.gain(store)
    assert 0.05 < first < 50
    assert observers.gain(store) == first
