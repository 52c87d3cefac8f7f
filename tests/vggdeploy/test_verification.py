"""verify(): what is judged, against what, and what is said when that is not what was asked for."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from vggdeploy import bundle, demo, execution, inputs, pipeline, targets, topology
from vggdeploy.errors import BundleError, DatasetError, VggdeployError, WeightsError
from vggdeploy.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggdeploy.contracts import RunOptions

pytest.importorskip("openvino")
pytest.importorskip("torch")


@pytest.fixture
def moved(slim: Callable[..., Any], slim_bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle whose weights lay in a folder of their own, and those weights."""
    weights = tmp_path / "weights.safetensors"
    shutil.copyfile(demo.CHECKPOINT, weights)
    pipeline.build(slim(weights=str(weights), out=tmp_path / "bundle"))
    return tmp_path / "bundle", weights


def test_probes_are_judged_without_data(slim_bundle: Path) -> None:
    result = verify(slim_bundle)
    assert result["judged"] == "probes"
    assert result["note"] == ""
    assert result["execution"] == "native"
    assert result["parity"]["n"] == result["accuracy"]["n"] == inputs.PROBES
    assert result["parity"]["top1_agreement"] == 1
    assert result["parity"]["cosine_min"] > 0.99
    assert result["digest"] == bundle.open_bundle(slim_bundle).manifest["digest"]
    json.dumps(result, allow_nan=False)


def test_every_name_that_scripts_rely_on(slim_bundle: Path) -> None:
    result = verify(slim_bundle)
    assert set(result["parity"]) == {
        "n", "top1_agreement", "cosine_mean", "cosine_min", "sqnr_db", "sqnr_ci95", "kl_mean", "max_abs"
    }  # fmt: skip
    assert set(result["accuracy"]) == {
        "n", "top1", "top5", "reference_top1", "gained", "lost", "drop", "drop_ci95", "ci95", "mcnemar_p"
    }  # fmt: skip


def test_data_is_judged_with_its_labels(slim_bundle: Path, heldout_folder: Path) -> None:
    result = verify(slim_bundle, data=str(heldout_folder))
    assert result["judged"] == "data"
    assert result["note"] == ""
    assert result["parity"]["n"] == result["accuracy"]["n"] == 24
    # The demo network is right on 99% of digits it has not seen.
    assert result["accuracy"]["top1"] >= 22 / 24
    assert result["accuracy"]["reference_top1"] >= 22 / 24
    assert result["parity"]["top1_agreement"] == 1


def test_flat_folder_has_no_accuracy(
    slim_bundle: Path, heldout_folder: Path, tmp_path: Path
) -> None:
    for path in sorted(heldout_folder.rglob("*.png"))[:3]:
        shutil.copyfile(path, tmp_path / path.name)
    result = verify(slim_bundle, data=str(tmp_path))
    assert result["accuracy"] is None
    assert result["parity"]["n"] == 3


def test_wrong_labels_lower_the_accuracy_and_not_the_parity(
    slim_bundle: Path, heldout_folder: Path, tmp_path: Path
) -> None:
    for label in range(10):
        shutil.copytree(heldout_folder / str(label), tmp_path / str((label + 1) % 10))
    result = verify(slim_bundle, data=str(tmp_path))
    assert result["accuracy"]["top1"] <= 2 / 24
    assert result["parity"]["top1_agreement"] == 1


def test_probes_and_a_note_where_the_source_is_gone(
    moved: tuple[Path, Path], heldout_folder: Path
) -> None:
    path, weights = moved
    weights.unlink()
    result = verify(path, data=str(heldout_folder))
    assert result["judged"] == "probes"
    assert result["parity"]["n"] == inputs.PROBES
    assert "the probes were judged" in result["note"]
    assert str(weights) in result["note"]


def test_probes_and_a_note_where_the_source_is_another(
    moved: tuple[Path, Path],
    heldout_folder: Path,
    random_weights: Callable[..., Path],
) -> None:
    path, weights = moved
    random_weights(topology.vgg("vgg16", width_divisor=8), weights)
    result = verify(path, data=str(heldout_folder))
    assert result["judged"] == "probes"
    assert "is not what the bundle was built from" in result["note"]


def test_reference_is_found_where_it_is_now(
    moved: tuple[Path, Path], heldout_folder: Path, tmp_path: Path
) -> None:
    path, weights = moved
    weights.rename(tmp_path / "elsewhere.safetensors")
    result = verify(path, data=str(heldout_folder), reference=tmp_path / "elsewhere.safetensors")
    assert result["judged"] == "data"
    assert result["note"] == ""


def test_wrong_reference_is_an_error_and_no_note(
    slim_bundle: Path,
    heldout_folder: Path,
    tmp_path: Path,
    random_weights: Callable[..., Path],
) -> None:
    other = random_weights(topology.vgg("vgg16", width_divisor=8), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="not what the bundle was built from"):
        verify(slim_bundle, data=str(heldout_folder), reference=other)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.safetensors", "does not exist: got nothing there"),
        ("nope", "does not exist: got nothing there"),
        ("folder.pth", "is no file: got a folder"),
        ("notes.txt", "cannot be the reference of vgg16: got a file of the ending '.txt'"),
    ],
)
def test_a_reference_that_is_none_is_told_by_its_flag(
    slim_bundle: Path, heldout_folder: Path, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError) as caught:
        verify(slim_bundle, data=str(heldout_folder), reference=tmp_path / name)
    line = str(caught.value)
    assert line.startswith(f"--reference {tmp_path / name} {said}, expected the file")
    assert "--weights" not in line


def test_reference_without_data_is_not_ignored(slim_bundle: Path, tmp_path: Path) -> None:
    """It names what is to be computed anew, and there is nothing to compute it on."""
    with pytest.raises(VggdeployError, match="--data"):
        verify(slim_bundle, reference=tmp_path / "none.safetensors")


def test_more_classes_than_the_network_has(tiny_bundle: Path, tmp_path: Path) -> None:
    for label in range(11):
        (tmp_path / f"class{label:02}").mkdir()
        Image.new("RGB", (8, 8), (label, 9, 9)).save(tmp_path / f"class{label:02}" / "a.png")
    with pytest.raises(DatasetError, match=r"more classes.*got 11.*10 at most"):
        verify(tiny_bundle, data=str(tmp_path))


def test_broken_image_is_named(slim_bundle: Path, heldout_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(heldout_folder, tmp_path / "data")
    victim = sorted((tmp_path / "data").rglob("*.png"))[11]
    victim.write_bytes(victim.read_bytes()[:-25])
    with pytest.raises(DatasetError, match=victim.name):
        verify(slim_bundle, data=str(tmp_path / "data"))


def test_altered_bundle_is_refused_before_it_runs(slim_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(slim_bundle, tmp_path / "bundle")
    content = bytearray((tmp_path / "bundle/model.bin").read_bytes())
    content[1000] ^= 1
    (tmp_path / "bundle/model.bin").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.bin has been altered"):
        verify(tmp_path / "bundle")


def test_float_target_is_nearly_exact(tiny: Callable[..., Any], tmp_path: Path) -> None:
    pipeline.build(tiny(target="ov-fp32", out=tmp_path / "bundle"))
    result = verify(tmp_path / "bundle")
    # float32 against float32, the order of sums apart.
    assert result["parity"]["sqnr_db"] > 90
    assert result["parity"]["top1_agreement"] == 1
    assert np.isfinite(result["parity"]["kl_mean"])


def test_foreign_graph_of_another_size_is_judged_on_data(
    small_graph: Callable[..., Any], heldout_folder: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    onnx.save(small_graph(), tmp_path / "foreign.onnx")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('size = [32, 32]\nresize = "stretch"\n')
    options = pipeline.BuildOptions(
        model=tmp_path / "foreign.onnx",
        preprocess=str(recipe),
        calib_data=str(heldout_folder),
        out=tmp_path / "bundle",
    )
    pipeline.build(options)
    result = verify(tmp_path / "bundle", data=str(heldout_folder))
    assert (result["judged"], result["note"]) == ("data", "")
    shutil.move(tmp_path / "foreign.onnx", tmp_path / "moved.onnx")
    result = verify(
        tmp_path / "bundle", data=str(heldout_folder), reference=tmp_path / "moved.onnx"
    )
    assert result["judged"] == "data"


def test_numbered_folders_that_move_are_said(
    slim_bundle: Path, heldout_folder: Path, tmp_path: Path
) -> None:
    for name in ("3", "7"):
        shutil.copytree(heldout_folder / name, tmp_path / "data" / name)
    result = verify(slim_bundle, data=str(tmp_path / "data"))
    assert result["classes"] == {"3": 0, "7": 1}
    assert any("'3' is class 0" in caution for caution in result["cautions"])
    whole = verify(slim_bundle, data=str(heldout_folder))
    assert not any("class folders" in caution for caution in whole["cautions"])


@pytest.mark.parametrize("kind", ["native", "emulated"])
def test_an_engine_that_takes_no_single_image_is_given_as_many_as_it_takes(
    slim_bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The probes in batches of 5, the last one filled up; an emulation takes any number."""
    opened = bundle.open_bundle(slim_bundle)
    build = {**opened.manifest["build"], "engine": {"batches": [5, 5, 8]}}
    batched = bundle.Bundle(slim_bundle, {**opened.manifest, "build": build})
    asked: list[int] = []

    class Watched(execution.Execution):
        kind = property(lambda self: chosen)

        def open(self, opened: bundle.Bundle, options: RunOptions) -> Any:
            asked.append(options.batch)
            return super().open(opened, options)

    chosen = kind
    expected = verify(slim_bundle)
    monkeypatch.setattr(bundle, "open_bundle", lambda *_: batched)
    how = Watched(targets.get(opened.target))
    monkeypatch.setattr(execution, "choose", lambda *_, **__: how)
    found = verify(slim_bundle)
    assert asked == [5 if kind == "native" else 1]
    assert found["parity"]["n"] == inputs.PROBES
    assert found["parity"]["sqnr_db"] == pytest.approx(expected["parity"]["sqnr_db"], abs=0.1)
    assert found["accuracy"] == expected["accuracy"]
