"""What each step is worth: the steps that run, and all of it for real on a few layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggdeploy import cli, results
from vggdeploy.benchmarks import ablation
from vggdeploy.contracts import DIALECTS, Silent
from vggdeploy.inputs import BuildOptions


def test_steps_whose_name_holds_a_word() -> None:
    assert list(ablation.chosen("openvino", "damping")) == [
        "the default, damping 0.001",
        "the default, damping 0.1",
    ]
    assert ablation.chosen("tensorrt", "") == ablation.STEPS


@pytest.mark.parametrize(
    ("flags", "said"), [(["--dialect", "onnx"], "dialect: got 'onnx'"), (["--only", "zz"], "'zz'")]
)
def test_unknown(flags: list[str], said: str, capsys: Any) -> None:
    assert cli.main(flags, program=ablation.app) == 2
    assert said in capsys.readouterr().err


def test_for_real(foreign: list[str], digits_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "ablation.json"
    flags = [*foreign, "--calib-data", str(digits_folder), "--calib-images", "16"]
    flags += ["--json", str(out), "--only", "default"]
    assert cli.main(flags, program=ablation.app) == 0
    result = results.read(out)
    assert (result["calibration_images"], result["judged_images"]) == (16, 32)
    found = {row["step"]: row["sqnr_db"] for row in result["steps"]}
    assert list(found) == list(ablation.chosen("openvino", "default"))
    assert all(15 < value < 60 for value in found.values())
    assert len(set(found.values())) > 2


def test_what_bfloat16_saw_is_kept_apart(
    foreign: list[str], digits_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    seen = {}
    for precision in ("fp32", "bf16"):
        options = BuildOptions(
            model=Path(foreign[1]), preprocess=foreign[3], calib_data=str(digits_folder),
            calib_images=8, calib_precision=precision, out=tmp_path / "none",
        )  # fmt: skip
        ablation.quantized(options, DIALECTS["openvino"], Silent())
        job = ablation.job(options, Silent())
        entry = job.collect(job.export())
        assert entry.cached
        seen[precision] = entry.digest
    assert seen["fp32"] != seen["bf16"]


def test_observed_in_bfloat16(foreign: list[str], tmp_path: Path) -> None:
    """8 bits of significand: a relative error of half a step, 2 to the power of -8, at most."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    source, out = foreign[1], tmp_path / "narrow.onnx"
    ablation.in_bfloat16(Path(source), out)
    for before, after in zip(
        onnx.load(source).graph.initializer, onnx.load(str(out)).graph.initializer, strict=True
    ):
        old, new = (onnx.numpy_helper.to_array(tensor) for tensor in (before, after))
        if old.ndim > 1:
            assert (old != new).any()
        np.testing.assert_allclose(new, old, rtol=2.0**-8, atol=0)
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    wide, narrow = (
        runtime.InferenceSession(str(path)).run(None, {"image": image})[0] for path in (source, out)
    )
    error = np.linalg.norm(wide - narrow) / np.linalg.norm(wide)
    assert 1e-4 < error < 2e-2
