"""Mixed precision to a bound on the drop: what is kept, what is refused, what is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import budget, building, bundle, dataset, inputs, mixed, pipeline, verification
from vggdeploy.cli import main
from vggdeploy.contracts import Silent
from vggdeploy.errors import EXIT_GATE, BoundError, ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Options = Callable[..., pipeline.BuildOptions]

pytest.importorskip("openvino")
pytest.importorskip("torch")

RANKING = tuple("abcdefgh")


def judge(harm: dict[str, float], seen: list[frozenset[str]] | None = None) -> mixed.Drop:
    """A drop that is the sum of what each layer that is not kept does."""

    def drop(kept: Collection[str]) -> float:
        if seen is not None:
            seen.append(frozenset(kept))
        return sum(value for name, value in harm.items() if name not in kept)

    return drop


@pytest.mark.parametrize("needed", range(1, 8))
def test_the_shortest_head_is_found(needed: int) -> None:
    harm = dict.fromkeys(RANKING[:needed], 1.0)
    seen: list[frozenset[str]] = []
    assert mixed.fewest(RANKING, judge(harm, seen), 0.5) == RANKING[:needed]
    # Seven heads are searched by three questions, after the first, and each kept layer but the
    # last asked for by one more.
    assert len(seen) <= 1 + 3 + needed - 1


def test_layers_that_can_be_spared_are_left_out() -> None:
    # b and c rank high and do no harm together with the others.
    assert mixed.fewest(RANKING, judge({"a": 1.0, "d": 1.0}), 0.5) == ("a", "d")


def test_the_least_damaging_is_spared_first() -> None:
    # c is needed; of a and b either can be spared, and not both.
    harm = {"a": 0.3, "b": 0.3, "c": 1.0}
    assert mixed.fewest(RANKING, judge(harm), 0.4) == ("a", "c")


def test_no_mix_will_do() -> None:
    assert mixed.fewest(RANKING, judge({"h": 1.0}), 0.5) is None
    assert mixed.fewest(("a",), judge({"a": 1.0}), 0.5) is None


@pytest.fixture(scope="module")
def built(spoilt: Options, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The spoilt network with at most 70% of its images decided otherwise."""
    out = tmp_path_factory.mktemp("mixed") / "bundle"
    return pipeline.build(spoilt(out=out, max_drop=0.7, sensitivity_images=8, cpu_isa="avx2"))


def test_exactly_the_spoilt_layer_is_kept(built: dict[str, Any]) -> None:
    said = built["mixed"]
    assert said["kept"] == ["features.8"]
    assert said["drop"] <= 0.7 < said["int8_drop"]
    assert said["images"] == 32
    assert said["judged"] == "agreement"  # the labels are not of a network with random weights
    assert said["max_drop"] == 0.7
    assert said["measured_latency_s"] > 0
    assert said["int8_latency_s"] > 0
    assert said["estimated_latency_s"] > 0
    assert built["left_in_high_precision"] == [["features.8", "kept in high precision"]]
    assert json.loads(json.dumps(built, allow_nan=False)) == built


def test_the_engine_is_as_good_as_was_judged(
    built: dict[str, Any], spoilt: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 7-bit weights no CPU's sums saturate, and without dynamic quantization of what matrix
    products read, the engine does what the graph says."""
    monkeypatch.setattr("vggdeploy.targets.openvino._DYNAMIC_GROUPS", {"int8": 0})
    judged = building.Build(spoilt(max_drop=0.7), Silent()).judged
    assert judged is not None
    assert len(judged) == built["mixed"]["images"] == 32
    for index, sample in enumerate(judged.samples):
        shutil.copyfile(sample.path, tmp_path / f"{index}.png")
    verified = verification.verify(Path(built["bundle"]), data=str(tmp_path))
    assert verified["parity"]["n"] == 32
    # The same images as were judged. One may fall the other way.
    drop = 1 - verified["parity"]["top1_agreement"]
    assert drop == pytest.approx(built["mixed"]["drop"], abs=1.5 / 32)


def test_the_bundle_says_what_was_kept(built: dict[str, Any]) -> None:
    import onnx

    opened = bundle.open_bundle(Path(built["bundle"]))
    assert opened.manifest["build"]["kept"] == ["features.8"]
    model = onnx.load(opened.path / "model.onnx")
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert [name for name in sorted(floats) if name.endswith(".weight")] == ["features.8.weight"]
    plain = 8 * 8 * 9
    layers = {layer["name"]: layer for layer in opened.budget()["layers"]}
    assert layers["features.8"]["weight_bytes"] == 4 * plain + 4 * 8
    assert layers["features.6"]["weight_bytes"] == 8 * 4 * 9 + 4 * 8


def test_second_build_judges_nothing(
    built: dict[str, Any], spoilt: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.targets.openvino.OpenVINO.open_graph", None)
    options = spoilt(out=Path(built["bundle"]), max_drop=0.7, sensitivity_images=8, cpu_isa="avx2")
    again = pipeline.build(options)
    assert again["unchanged"] is True
    assert again["mixed"] == built["mixed"]
    assert all(stage["cached"] for stage in again["stages"])


def test_what_is_kept_is_part_of_what_a_quantized_graph_depends_on(tiny: Options) -> None:
    job = building.Build(tiny(), Silent())
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    assert job.dialect is not None
    quantized = [
        job.quantize(graph, table, None, job.dialect, keep) for keep in ((), ("features.3",))
    ]
    assert quantized[0].digest != quantized[1].digest
    assert [job.left(entry) for entry in quantized] == [
        [], [["features.3", "kept in high precision"]]
    ]  # fmt: skip


def test_another_bound_is_another_bundle(built: dict[str, Any], spoilt: Options) -> None:
    options = spoilt(out=Path(built["bundle"]), cpu_isa="avx2", sensitivity_images=8)
    keys = {building.Build(replace(options, max_drop=bound, force=True), Silent()).key
            for bound in (None, 0.7, 0.6)}  # fmt: skip
    assert len(keys) == 3


def test_int8_within_the_bound_keeps_nothing(
    tiny: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vggdeploy import console
    from vggdeploy.terminal import Terminal

    result = pipeline.build(tiny(out=tmp_path / "bundle", max_drop=1.0))
    assert result["mixed"]["kept"] == []
    assert result["mixed"]["trials"] == 1
    assert result["mixed"]["measured_latency_s"] is None
    assert result["left_in_high_precision"] == []
    assert "sensitivity" not in [stage["name"] for stage in result["stages"]]
    console.show_build(Terminal(), result)
    assert "nothing: INT8 is within the bound" in capsys.readouterr().err


def test_a_build_without_a_bound_says_nothing_of_it(tiny_bundle: Path) -> None:
    assert bundle.open_bundle(tiny_bundle).manifest["build"]["kept"] == []


def test_no_mix_reaches_the_bound(
    spoilt: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even a single layer in INT8 is too much, the build ends, and leaves nothing."""
    monkeypatch.setattr("vggdeploy.mixed.fewest", lambda ranking, drop, bound: None)
    with pytest.raises(BoundError, match=r"within 0\.5: got .* alone quantized") as caught:
        pipeline.build(spoilt(out=tmp_path / "bundle", max_drop=0.5, sensitivity_images=8))
    assert caught.value.exit_code == EXIT_GATE == 1
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("bound", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_bounds_that_are_no_shares(tiny: Options, tmp_path: Path, bound: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        pipeline.build(tiny(out=tmp_path / "bundle", max_drop=bound))


@pytest.mark.parametrize(("bound", "least"), [(0.03, 34), (0.02, 50), (0.005, 200)])
def test_too_few_images_for_the_bound(
    tiny: Options, tmp_path: Path, bound: float, least: int
) -> None:
    with pytest.raises(DatasetError, match=rf"got 32 of 48.*expected {least} or more"):
        pipeline.build(tiny(out=tmp_path / "bundle", max_drop=bound))


def test_just_enough_images(tiny: Options) -> None:
    job = building.Build(tiny(max_drop=1 / 32), Silent())
    assert job.judged is not None
    assert len(job.judged) == 32
    assert not {s.path for s in job.judged.samples} & {s.path for s in job.images.samples}
    with pytest.raises(DatasetError, match="expected 33 or more"):
        building.Build(tiny(max_drop=1 / 33), Silent())


def test_a_small_folder_keeps_enough_to_judge_by(tiny: Options) -> None:
    job = building.Build(tiny(calib_images=None, max_drop=1 / 24), Silent())
    assert job.judged is not None
    assert len(job.judged) == len(job.images) == 24


def test_no_image_is_held_out(tiny: Options) -> None:
    with pytest.raises(DatasetError, match="got 0 of 48"):
        building.Build(tiny(calib_images=48, max_drop=0.5), Silent())


def test_a_large_pool_is_not_judged_whole(tiny: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "JUDGED", 10)
    for bound, count in ((0.5, 10), (0.05, 20)):
        judged = building.Build(tiny(max_drop=bound), Silent()).judged
        assert judged is not None
        assert len(judged) == count


def test_a_float_target_has_nothing_to_keep(tiny: Options) -> None:
    with pytest.raises(ConfigError, match=r"--max-drop.*ov-fp32, which quantizes none"):
        building.Build(tiny(target="ov-fp32", max_drop=0.5), Silent())


class _Case:
    """A judge's job: images whose scores are known."""

    def __init__(self, folder: Path, labels: list[int]) -> None:
        from PIL import Image

        for index, label in enumerate(labels):
            (folder / str(label)).mkdir(exist_ok=True, parents=True)
            Image.new("RGB", (4, 4)).save(folder / str(label) / f"{index}.png")
        self.judged = dataset.scan(folder)


@pytest.mark.parametrize(
    ("right", "judged", "drop"),
    [
        # 8 of 10 labels are the float network's own: two of those are lost, one is found.
        (8, "labels", 0.1),
        # 4 are: labels of another network. Three images have another best class.
        (4, "agreement", 0.3),
    ],
)
def test_labels_are_believed_where_the_float_network_does(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: int, judged: str,
    drop: float,
) -> None:  # fmt: skip
    # Class 0 or 1 for the float network's best class, 1 for images that it is wrong on.
    case = _Case(tmp_path / "images", [0] * right + [1] * (10 - right))
    job = building.Build(tiny(max_drop=0.5), Silent())
    job.judged = case.judged
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    best = {"model": np.zeros(10, int), "trial": np.zeros(10, int)}
    best["trial"][[0, 1]] = 2  # lost where they were right
    best["trial"][9] = 1  # found
    scores = {name: np.eye(3, dtype=np.float32)[classes] for name, classes in best.items()}

    def known(onnx: Path, *_: Any) -> Any:
        return iter(scores[onnx.stem][:, None])

    monkeypatch.setattr("vggdeploy.sensitivity.float_scores", known)
    assert job.dialect is not None
    made = mixed._Judge(job, graph, table, None, job.dialect, tmp_path, graph)
    assert made.judged == judged
    assert made.drop(()) == pytest.approx(drop)
    made.drop([])
    assert made.trials == 1


def test_the_estimate_is_a_roofline() -> None:
    rows = [
        {"name": "conv", "output": [8, 4, 4], "macs": 1000, "params": 10},
        {"name": "fc", "output": [5], "macs": 100, "params": 100},
    ]
    rates = {"int8": budget.Device(100.0, 50.0), "fp32": budget.Device(25.0, 50.0)}
    assert mixed.estimate(rows, "int8", (), rates) == pytest.approx(1000 / 100 + 100 / 50)
    assert mixed.estimate(rows, "int8", ["conv"], rates) == pytest.approx(1000 / 25 + 100 / 50)
    assert mixed.estimate(rows, "int8", ["fc"], rates) == pytest.approx(1000 / 100 + 400 / 50)


def test_command(
    spoilt: Options, built: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = spoilt()
    flags = [
        "build", "--weights", options.weights, "--preprocess", options.preprocess,
        "--calib-data", options.calib_data, "--calib-images", "16", "--out", "bundle",
        "--weight-rounding", "nearest", "--cpu-isa", "avx2", "--sensitivity-images", "8",
    ]  # fmt: skip
    assert main([*flags, "--max-drop", "0.001"]) == 2
    assert "expected 1000 or more" in " ".join(capsys.readouterr().err.split())
    assert main([*flags, "--max-drop", "0.7", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["mixed"]["kept"] == ["features.8"]
    assert "kept in high precision" in err
    assert "32 held-out images" in err
    assert "times INT8's" in err


def test_the_bound_of_a_run_is_its_gates(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Too small a bound for the images at hand, but a run does not mix for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vggdeploy.benchmarks.peak.SECONDS", 0.01)
    options = tiny()
    flags = [
        "run", "--weights", options.weights, "--preprocess", options.preprocess, "--calib-data",
        options.calib_data, "--calib-images", "16", "--out", "bundle", "--seconds", "0.05",
    ]  # fmt: skip
    assert main([*flags, "--max-drop", "0.001", "--json", "-"]) in (0, 1)
    result = json.loads(capsys.readouterr().out)
    assert result["build"]["mixed"] is None
    (criterion,) = result["gate"]["criteria"]
    assert criterion["name"] == "max_drop"
    shutil.rmtree("bundle")
