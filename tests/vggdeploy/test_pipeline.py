"""The order of the stages: what is made once, what is kept, and what an accident leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import bundle, calibrating, dataset, graphs, inputs, pipeline, verification
from vggdeploy.contracts import Availability
from vggdeploy.errors import BundleError, ConfigError, DatasetError, MissingError
from vggdeploy.manifest import GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggdeploy.cache import Entry

    Options = Callable[..., pipeline.BuildOptions]

pytest.importorskip("openvino")
pytest.importorskip("torch")

STAGES = ["export", "collect", "calibrate", "round", "quantize", "compile", "reference", "bundle"]


def cached(result: dict[str, Any]) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in result["stages"]}


def test_second_build_makes_nothing_anew(
    tiny: Options, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    first = pipeline.build(tiny(out=out))
    assert [stage["name"] for stage in first["stages"]] == STAGES
    assert first["unchanged"] is False
    assert all(stage["seconds"] >= 0 for stage in first["stages"])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.delattr("vggdeploy.targets.openvino.OpenVINO.compile")
    monkeypatch.delattr("vggdeploy.targets.openvino.OpenVINO.open_graph")
    second = pipeline.build(tiny(out=out))
    assert all(cached(second).values())
    assert second["unchanged"] is True
    assert second["digest"] == first["digest"]
    assert second["engine_bytes"] == first["engine_bytes"] > 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_same_inputs_same_bytes(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, own_cache: Path, folder_contents: Any
) -> None:
    """Made in another cache, from the collection on."""
    pipeline.build(tiny(out=tmp_path / "again"))
    assert folder_contents(tiny_bundle) == folder_contents(tmp_path / "again")


def test_another_method_uses_export_and_collection_again(
    tiny: Options, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = pipeline.build(tiny(method="percentile", out=tmp_path / "bundle"))
    assert cached(result) == {
        "export": True, "collect": True, "calibrate": False, "round": False, "quantize": False,
        "compile": False, "reference": True, "bundle": False,
    }  # fmt: skip


def test_other_images_use_the_export_again(
    tiny: Options, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = pipeline.build(tiny(seed=5, out=tmp_path / "bundle"))
    assert cached(result)["export"] is True
    assert cached(result)["collect"] is False


def test_probes_are_not_calibration_images(
    tiny: Options, tiny_bundle: Path, digits_folder: Path
) -> None:
    probes = bundle.open_bundle(tiny_bundle).probes()
    assert len(probes.images) == inputs.PROBES
    calibration = dataset.scan(digits_folder).choose(16, 0)
    recipe = bundle.open_bundle(tiny_bundle).preprocess
    used = {image.tobytes() for image in calibration.pixels(recipe)}
    assert not used & {image.tobytes() for image in probes.images}


def test_place_of_another_bundle_is_refused_without_force(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, folder_contents: Any
) -> None:
    out = tmp_path / "bundle"
    pipeline.build(tiny(out=out))
    before = folder_contents(out)
    with pytest.raises(BundleError, match=r"other inputs.*--force"):
        pipeline.build(tiny(method="minmax", out=out))
    assert folder_contents(out) == before
    pipeline.build(tiny(method="minmax", out=out, force=True))
    assert bundle.open_bundle(out).manifest["build"]["method"] == "minmax"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize("force", [False, True])
def test_place_that_is_no_bundle_is_never_replaced(
    tiny: Options, tmp_path: Path, force: bool
) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="no bundle"):
        pipeline.build(tiny(out=out, force=force))
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("force", "words"), [(False, "exists"), (True, "is not what an export")])
def test_an_export_replaces_nothing_that_came_meanwhile(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    force: bool, words: str,
) -> None:  # fmt: skip
    out, export = tmp_path / "graph", calibrating.Job.export

    def slow(job: calibrating.Job) -> Entry:
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        return export(job)

    monkeypatch.setattr(calibrating.Job, "export", slow)
    with pytest.raises(ConfigError, match=words):
        pipeline.export_graph(tiny(out=out, force=force))
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_foreign_graph_builds_and_agrees(
    slim_bundle: Path, slim_onnx: Path, digits_folder: Path, tmp_path: Path
) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copyfile(slim_onnx.parent / name, tmp_path / "in" / name)
    out = tmp_path / "bundle"
    foreign = pipeline.BuildOptions(
        model=tmp_path / "in/model.onnx",
        preprocess="demo",
        calib_data=str(digits_folder),
        calib_images=16,
        out=out,
    )
    assert pipeline.build(foreign)["left_in_high_precision"] == []
    judged = verification.verify(out)
    assert judged["parity"]["top1_agreement"] >= 0.99
    layers = json.loads((out / "layers.json").read_text())
    expected = json.loads((slim_bundle / "layers.json").read_text())["total"]
    assert layers["total"]["macs"] == expected["macs"]
    assert layers["total"]["params"] == expected["params"]


@pytest.mark.parametrize("flag", [{"arch": "vgg16"}, {"num_classes": 10}])
def test_foreign_graph_takes_no_architecture(slim_onnx: Path, flag: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--model"):
        pipeline.build(pipeline.BuildOptions(model=slim_onnx, **flag))


def test_images_are_needed_where_there_are_none(tiny: Options) -> None:
    with pytest.raises(DatasetError, match="--calib-data"):
        pipeline.build(tiny(calib_data=None))


@pytest.mark.parametrize("count", [0, -1, 49])
def test_more_images_than_there_are(tiny: Options, count: int, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"got {count} of 48, expected 1 to 48"):
        pipeline.build(tiny(calib_images=count, out=tmp_path / "bundle"))


def test_float_target_needs_no_calibration(tiny: Options, tmp_path: Path) -> None:
    result = pipeline.build(tiny(target="ov-fp32", out=tmp_path / "bundle"))
    assert [stage["name"] for stage in result["stages"]] == [
        "export", "compile", "reference", "bundle"
    ]  # fmt: skip
    assert result["calibration_images"] == 0
    assert not (tmp_path / "bundle/calibration.json").exists()


def test_calibrate_alone_writes_the_bundles_table(
    tiny: Options, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = pipeline.calibrate(tiny(out=tmp_path / "table.json"))
    assert Path(result["table"]).read_bytes() == (tiny_bundle / "calibration.json").read_bytes()
    with pytest.raises(ConfigError, match="--force"):
        pipeline.calibrate(tiny(out=tmp_path / "table.json"))


def test_labels_of_another_networks_classes_are_left_out(
    tiny: Options, tmp_path: Path, digits_folder: Path
) -> None:
    """An accuracy of nothing would pass any bound on its drop."""
    assert bundle_of(tiny, tmp_path / "own", digits_folder).probes().labels is not None
    many = tmp_path / "many"
    shutil.copytree(digits_folder, many)
    for extra in range(3):
        (many / f"0{extra}").mkdir()  # sorted in front, so that the last three classes are none
    assert bundle_of(tiny, tmp_path / "other", many).probes().labels is None


def bundle_of(tiny: Options, out: Path, data: Path) -> bundle.Bundle:
    pipeline.build(tiny(out=out, calib_data=str(data)))
    return bundle.open_bundle(out)


def test_bfloat16_that_is_not_there_is_called_by_its_flag(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vggdeploy.targets.openvino.OpenVINO.runs_on",
        lambda target, device: Availability(target.precision != "bf16", "no BF16", "none"),
    )
    with pytest.raises(
        MissingError, match="--calib-precision bf16 cannot be had here: got no BF16"
    ):
        pipeline.build(tiny(out=tmp_path / "bundle", calib_precision="bf16"))


def test_a_changed_environment_makes_a_new_bundle(
    tiny: Options, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    pipeline.build(tiny(out=out))
    monkeypatch.setattr("vggdeploy.cache.environment", lambda: "another")
    with pytest.raises(BundleError, match="other inputs"):
        pipeline.build(tiny(out=out))
    result = pipeline.build(tiny(out=out, force=True))
    assert result["unchanged"] is False
    assert not any(cached(result).values())


def test_float_target_does_not_depend_on_calibration(tiny: Options, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    pipeline.build(tiny(target="ov-fp32", out=out))
    result = pipeline.build(tiny(target="ov-fp32", out=out, method="minmax"))
    assert result["unchanged"] is True


@pytest.mark.parametrize(("cpu_isa", "others"), [("vnni", 127), ("avx2", 64)])
def test_weights_that_would_saturate_are_smaller(
    tiny: Options, tmp_path: Path, cpu_isa: str, others: int
) -> None:
    """Those of the convolution that reads the signed image for every CPU, the other convolutions'
    for one without VNNI; products read floats."""
    pipeline.build(tiny(out=tmp_path / "bundle", cpu_isa=cpu_isa))
    model = graphs.read(tmp_path / "bundle" / GRAPH)
    largest = {
        name.removesuffix(".weight.quantized"): int(
            np.abs(value.const_value.numpy().astype(np.int32)).max()
        )
        for name, value in model.graph.initializers.items()
        if name.endswith(".weight.quantized")
    }
    assert largest.pop("features.0") == 64
    assert {name for name, top in largest.items() if top != others} <= {
        f"classifier.{index}" for index in (0, 3, 6)
    }
    assert {largest[f"classifier.{index}"] for index in (0, 3, 6)} == {127}


@pytest.mark.parametrize(("images", "chosen", "probes"), [(10, 5, 5), (48, 24, 16), (40, 20, 16)])
def test_a_small_folder_is_shared(
    tiny: Options, tmp_path: Path, digits_folder: Path, images: int, chosen: int, probes: int
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in sorted(digits_folder.rglob("*.png"))[:images]:
        shutil.copyfile(file, data / f"{file.parent.name}-{file.name}")
    result = pipeline.build(tiny(calib_data=str(data), calib_images=None, out=tmp_path / "bundle"))
    assert result["calibration_images"] == chosen
    assert len(bundle.open_bundle(tmp_path / "bundle").probes().images) == probes
