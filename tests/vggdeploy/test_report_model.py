"""What a report says: verdicts first, what weakens them, bundles side by side, machines apart."""

# ruff: noqa: RUF001 - the signs that a person reads, not those of code.

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import report_results as made

from vggdeploy.errors import ResultError
from vggdeploy.report import markdown, model, page, reading
from vggdeploy.report.document import text_of
from vggdeploy.report.plots import Axis, Bars, Ecdf, Lines, Roofline, ticks_of

if TYPE_CHECKING:
    from pathlib import Path


def of(tmp_path: Path, *found: dict[str, Any]) -> Any:
    return model.report(reading.read(made.written(tmp_path, *found)))


def section(said: Any, name: str) -> Any:
    return next(section for section in said.sections if section.name == name)


def words(section: Any) -> str:
    joined = " ".join(text_of(finding) for finding in section.findings)
    return joined.replace("\N{NO-BREAK SPACE}", " ")


def drawings(section: Any) -> list[Any]:
    return [drawing for block in section.blocks for drawing in block.drawings]


def test_the_verdict_of_a_run(tmp_path):
    said = of(tmp_path, made.full())
    assert said.verdict == "pass"
    assert text_of(said.summary) == "All 3 bounds are met. Judged on 200 images."
    assert said.glance is None
    assert said.title == "slim-ov-int8"


def test_a_failure_names_its_bounds_and_what_weakens_it(tmp_path):
    said = of(tmp_path, made.failed())
    assert said.verdict == "fail"
    assert text_of(said.summary) == (
        "1 of 3 bounds is not met: top-1 agreement. Judged on 200 images, by emulation."
    )
    kinds = [notice.kind for notice in said.heads[0].notices]
    assert kinds == ["emulated", "judged", "partial", "unstable", "peak", "caution"]
    unstable = said.heads[0].notices[3]
    assert unstable.details == (
        "the CPU was 61% busy with others", "the clock fell from 3.4 to 2.1 GHz",
    )  # fmt: skip
    assert unstable.commands == ("cpupower frequency-set -g performance",)
    assert said.heads[0].notices[4].details == ("features.2",)
    rows = said.heads[0].criteria[0].rows
    assert rows[2][0] == "p99 of latency, at most (the measurement was unstable)"
    verdicts = [row[1].text for row in rows]
    assert verdicts == ["✗ fail (emulated)", "✓ pass", "? inconclusive"]


def test_a_bound_comes_with_its_interval_and_a_ratio_with_its_metric(tmp_path):
    run = made.full()
    run["gate"]["criteria"][0].update(
        name="max_ratio.p50", value=1.02, bound=1.05, interval=[1.01, 1.03]
    )
    row = of(tmp_path, run).heads[0].criteria[0].rows[0]
    assert row[0] == "p50 beside the baseline's, at most"
    assert text_of(row[3]) == "1.01\xa0× to 1.03\xa0×"
    run["gate"]["criteria"][0]["interval"] = None
    assert of(tmp_path, run).heads[0].criteria[0].rows[0][3] == ""


def test_no_gate_no_verdict(tmp_path):
    said = of(tmp_path, made.bench())
    assert said.verdict == "none"
    assert text_of(said.summary) == "No gate was given; what was found of speed is below."


def test_results_of_one_bundle_are_one_subject_in_any_order(tmp_path):
    run = made.full()
    apart = [run["gate"], run["bench"], run["verify"], run["build"]]
    said = of(tmp_path, *apart)
    whole = of(tmp_path, run)
    assert len(said.heads) == 1
    assert [s.name for s in said.sections] == [s.name for s in whole.sections]
    assert said.heads[0].keys[0].cell.value == run["bench"]["latency_s"]["p50"]


def test_bundles_stand_side_by_side_with_ratios_to_the_first(tmp_path):
    first, second = made.full(), made.full("fp32", 1, 0.0061)
    said = of(tmp_path, first, second)
    assert [head.letter for head in said.heads] == ["A", "B"]
    assert said.glance.columns[1:] == ("A: slim-ov-int8, ov-int8", "B: slim-ov-fp32, ov-fp32")
    row = next(row for row in said.glance.rows if row[0] == "median latency")
    expected = second["bench"]["latency_s"]["p50"] / first["bench"]["latency_s"]["p50"]
    assert row[2][2].value == expected
    assert text_of(said.summary) == "By bundle: A pass, B pass."


def test_the_worst_verdict_is_the_reports(tmp_path):
    worse = made.failed("fp32")
    assert of(tmp_path, made.full(), worse).verdict == "fail"
    assert of(tmp_path, made.full(), made.run("fp32")).verdict == "inconclusive"


def test_what_a_run_did_not_measure_is_said(tmp_path):
    run = made.run()
    run.update(bench=None, not_benched="trt-int8 needs a GPU")
    said = of(tmp_path, run)
    assert said.heads[0].notices[0].details == ("trt-int8 needs a GPU",)
    assert "latency" not in [section.name for section in said.sections]


def test_parity_is_told_in_a_sentence(tmp_path):
    assert words(section(of(tmp_path, made.full()), "parity")) == (
        "The engine decides as its reference on 100.00% of 200 images, with 54.4 dB of signal to "
        "noise in the scores; it is right on 98.00%, the reference on 98.00%: no difference is "
        "shown (McNemar p 1.000)."
    )
    assert "a difference is shown (McNemar p 0.031)" in words(
        section(of(tmp_path, made.failed()), "parity")
    )


def test_without_labels_there_is_no_accuracy(tmp_path):
    run = made.full()
    run["verify"]["accuracy"] = None
    parity = section(of(tmp_path, run), "parity")
    assert not drawings(parity)
    assert "no labels" in text_of(parity.blocks[0].text[0])


def test_absent_figures_say_so_or_are_left_out(tmp_path):
    bench = made.run()["bench"]
    said = of(tmp_path, bench)
    assert words(section(said, "energy")) == "No energy was recorded: the machine does not tell."
    assert words(section(said, "layers")) == "No result tells the layers' times apart."
    assert words(section(said, "throughput")).endswith(
        "No result has throughput at several batches."
    )
    table = section(said, "latency").blocks[0].tables[0]
    assert table.columns == ("latency", "measured")
    names = [s.name for s in said.sections]
    assert not {"tuning", "comparison", "build", "parity"} & set(names)


OPTIONAL = [
    "ci95", "early_stopping", "started_s", "throughput_by_batch", "warmup", "measured_seconds",
    "partial", "energy", "temperature_c", "advice", "mlperf", "settings", "samples_s", "device",
    "throughput_ips", "throughput_requests", "budget", "system", "unstable_because", "stable",
    "engine_bytes", "scenario", "bundle", "target",
]  # fmt: skip


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("key", OPTIONAL)
def test_any_optional_key_may_be_missing_or_null(tmp_path, key, null):
    bench = made.bench()
    if null:
        bench[key] = None
    else:
        del bench[key]
    assert of(tmp_path, bench).sections


@pytest.mark.parametrize("key", ["peak_bytes_per_s", "memory_floor_s", "achieved_macs_per_s",
                                 "utilisation", "bytes", "layers", "peak_check", "bound",
                                 "peak_from", "peak_macs_per_s"])  # fmt: skip
def test_any_figure_of_the_budget_may_be_null(tmp_path, key):
    bench = made.bench()
    bench["budget"][key] = None
    assert of(tmp_path, bench).sections


@pytest.mark.parametrize("key", ["intensity", "floor_s", "macs", "bytes", "share", "kind", "bound",
                                 "precision", "of_floor"])  # fmt: skip
def test_any_figure_of_a_layer_but_its_time_may_be_null(tmp_path, key):
    bench = made.bench()
    for layer in bench["budget"]["layers"]:
        layer[key] = None
    assert of(tmp_path, bench).sections


@pytest.mark.parametrize("key", ["seconds", "floor_s"])
def test_a_layer_that_took_no_time_has_no_rate(tmp_path, key):
    bench = made.bench()
    bench["budget"]["layers"][1][key] = 1e-320
    name = bench["budget"]["layers"][1]["name"]
    said = of(tmp_path, bench)
    plot = drawings(section(said, "roofline"))[0].plot
    assert (name in {point.name for point in plot.points}) == (key == "floor_s")
    assert all(ticks_of(axis) for axis in (plot.x, plot.y))
    page.render(said)
    assert "inf" not in markdown.render(said).split()


def test_roofline_points_are_the_layers(tmp_path):
    bench = made.bench()
    plot = drawings(section(of(tmp_path, bench), "roofline"))[0].plot
    assert isinstance(plot, Roofline)
    layer = bench["budget"]["layers"][1]
    point = next(point for point in plot.points if point.name == layer["name"])
    assert point.x == layer["intensity"]
    assert point.y == layer["macs"] / layer["seconds"]
    assert (plot.peak, plot.bandwidth) == (
        bench["budget"]["peak_macs_per_s"], bench["budget"]["peak_bytes_per_s"],
    )  # fmt: skip
    for name, low, high, values in (
        ("x", plot.x.low, plot.x.high, [p.x for p in plot.points]),
        ("y", plot.y.low, plot.y.high, [p.y for p in plot.points] + [plot.peak]),
    ):
        assert low < min(values) <= max(values) < high, name


def test_a_layer_of_another_precision_has_a_roof_of_its_own(tmp_path):
    bench = made.bench()
    layer = bench["budget"]["layers"][1]
    layer["peak_macs_per_s"] = bench["budget"]["peak_macs_per_s"] / 2
    table = drawings(section(of(tmp_path, bench), "roofline"))[0].table
    row = next(row for row in table.rows if row[0] == layer["name"])
    assert row[4].value == layer["macs"] / layer["seconds"] / layer["peak_macs_per_s"]


def test_bars_are_the_layers_in_order_on_one_scale(tmp_path):
    first, second = made.full(), made.full("fp32", 1, 0.0061)
    found = [d.plot for d in drawings(section(of(tmp_path, first, second), "layers"))]
    assert all(isinstance(plot, Bars) for plot in found)
    assert found[0].x == found[1].x
    layers = first["bench"]["budget"]["layers"]
    assert [(bar.name, bar.value, bar.floor) for bar in found[0].bars] == [
        (layer["name"], layer["seconds"], layer["floor_s"]) for layer in layers
    ]


def test_a_deep_network_shows_its_slowest_layers_and_lists_all(tmp_path):
    bench = made.bench()
    layers = bench["budget"]["layers"]
    bench["budget"]["layers"] = [
        {**layers[i % 16], "name": f"layer.{i}", "seconds": 1e-6 * (i + 1)} for i in range(150)
    ]
    (drawing,) = drawings(section(of(tmp_path, bench), "layers"))
    assert [bar.name for bar in drawing.plot.bars] == [f"layer.{i}" for i in range(110, 150)]
    assert len(drawing.table.rows) == 150
    assert "40 slowest of 150" in drawing.note


def test_throughput_against_batch_of_bench_and_tune(tmp_path):
    bench, tune = made.bench(), made.tune()
    (drawing,) = drawings(section(of(tmp_path, bench, tune), "throughput"))
    assert isinstance(drawing.plot, Lines)
    measured, tuned = drawing.plot.lines
    assert measured.points == tuple(
        (row["batch"], row["images_per_s"]) for row in bench["throughput_by_batch"]
    )
    best = {}
    for row in tune["tried"]:
        best[row["batch"]] = max(best.get(row["batch"], 0), row["images_per_s"])
    assert dict(tuned.points) == best


def test_tuning_marks_the_winner_in_words_too(tmp_path):
    table = section(of(tmp_path, made.tune()), "tuning").blocks[0].tables[0]
    assert table.marked == {4}
    assert text_of(table.rows[4][0]).endswith(": chosen")
    assert not any(text_of(row[0]).endswith("chosen") for row in table.rows[:4])


def test_tuning_without_a_winner(tmp_path):
    tune = {**made.tune(), "winner": None, "reason": "nothing keeps the bound"}
    assert "none will do (nothing keeps the bound)" in words(section(of(tmp_path, tune), "tuning"))


def test_a_comparison_names_both_sides(tmp_path):
    said = of(tmp_path, made.full(), made.full("fp32", 1), made.compare())
    assert words(section(said, "comparison")) == (
        "A is faster than B; its median latency is 0.610 × B's (95%: 0.590 × to 0.640 ×)."
    )
    alone = of(tmp_path, made.compare())
    assert "slim-ov-int8, ov-int8 is faster than slim-ov-fp32, ov-fp32" in words(
        section(alone, "comparison")
    )


def test_a_comparison_of_few_samples_claims_nothing(tmp_path):
    found = {**made.compare(), "ci95": None, "verdict": "no difference shown", "cautions": ["few"]}
    shown = section(of(tmp_path, found), "comparison")
    assert "no difference shown" in words(shown)
    assert "too few samples for an interval" in words(shown)
    assert text_of(shown.blocks[0].text[0]) == "Caution: few."


def test_rates_that_were_found_are_compared_without_an_interval(tmp_path):
    found = {**made.compare(), "metric": "rate", "ratio": 0.25, "ci95": None}
    shown = section(of(tmp_path, {**found, "verdict": "no difference shown"}), "comparison")
    assert "its rate of arrivals is 0.250 × " in words(shown)
    assert "(found by trials, with no interval)" in words(shown)


def test_layers_that_no_time_was_found_for_are_not_drawn(tmp_path):
    bench = made.bench()
    for layer in bench["budget"]["layers"]:
        layer.update(seconds=0.0, floor_s=0.0)
    said = of(tmp_path, bench)
    assert words(section(said, "layers")) == "No result tells the layers' times apart."


def test_one_batch_is_no_plot_and_no_sensor_no_table(tmp_path):
    bench = made.bench()
    bench["throughput_by_batch"] = bench["throughput_by_batch"][:1]
    bench["temperature_c"] = {"before": {}, "after": {}}
    bench.update(energy=None, energy_note="the sensor is locked", cautions=["hot"])
    said = of(tmp_path, bench)
    assert not drawings(section(said, "throughput"))
    assert words(section(said, "energy")) == "No energy was recorded: the sensor is locked."
    assert not section(said, "energy").blocks
    assert said.heads[0].notices[-1].details == ("hot",)


def test_settings_that_nobody_chose_are_the_backends(tmp_path):
    bench = made.bench()
    bench["settings"] = dict.fromkeys(bench["settings"])
    how = text_of(section(of(tmp_path, bench), "latency").blocks[0].text[0])
    assert how.startswith("Latency scenario, batch 1, CPU, the backend's own settings; ")


def test_machines_that_differ_are_marked_and_named(tmp_path):
    first, second = made.full(), made.full("fp32", 1)
    second["bench"]["system"]["cpu"] = "another"
    second["bench"]["system"]["libraries"]["numpy"] = "1.0"
    machine = section(of(tmp_path, first, second), "machine")
    assert "2 machines" in words(machine)
    assert "differ in cpu, numpy" in words(machine)
    marked = [
        table.rows[place][0] for table in machine.blocks[0].tables for place in sorted(table.marked)
    ]
    assert marked == ["cpu (differs)", "numpy (differs)"]
    assert machine.blocks[0].tables[0].columns == ("key", "machine 1 (A)", "machine 2 (B)")


def test_load_and_clock_of_the_moment_make_no_other_machine(tmp_path):
    first, second = made.full(), made.full("fp32", 1)
    for place, run in enumerate((first, second)):
        run["bench"]["system"]["load_average"] = [place, 1.0, 2.0]
        run["bench"]["system"]["frequency_hz"] = {"current": 2e9 + place, "max": 3e9}
    machine = section(of(tmp_path, first, second), "machine")
    assert words(machine) == "Measured on AMD EPYC, 2 cores."
    keys = [row[0] for row in machine.blocks[0].tables[0].rows]
    assert "frequency hz max" in keys
    assert "load average" not in keys


def test_gpus_are_shown_key_by_key(tmp_path):
    bench = made.bench()
    bench["system"]["gpus"] = [{"name": "RTX", "clock_hz": 2.5e9}]
    tables = section(of(tmp_path, bench), "machine").blocks[0].tables
    (gpus,) = (table for table in tables if table.caption == "GPUs")
    assert [tuple(map(text_of, row)) for row in gpus.rows] == [
        ("0 name", "RTX"), ("0 clock hz", "2.50\N{NO-BREAK SPACE}GHz"),
    ]  # fmt: skip


def test_two_measurements_of_a_bundle_have_names_of_their_own(tmp_path):
    said = of(tmp_path, made.bench(), {**made.bench(seed=2), "batch": 8})
    ecdf = drawings(section(said, "latency"))[0].plot
    assert isinstance(ecdf, Ecdf)
    assert [curve.letter for curve in ecdf.curves] == ["1", "2"]
    assert [curve.name.rsplit(", ", 1)[1] for curve in ecdf.curves] == ["batch 1", "batch 8"]


def test_an_open_loop_says_how_queries_arrived(tmp_path):
    bench = {**made.bench(), "scenario": "server"}
    bench["server"] = {"rate": 120.0, "capacity": 200.0, "p99_bound_s": 0.01}
    how = text_of(section(of(tmp_path, bench), "latency").blocks[0].text[0])
    said = how.replace("\N{NO-BREAK SPACE}", " ")
    assert "arrived at 120 /s" in said
    assert "within 10.0 ms" in said


def broken(change: Any) -> dict[str, Any]:
    result = copy.deepcopy(made.full())
    change(result)
    return result


BROKEN = {
    "no digest": lambda r: r["verify"].pop("digest"),
    "no parity": lambda r: r["verify"].pop("parity"),
    "no latency": lambda r: r["bench"].pop("latency_s"),
    "no median": lambda r: r["bench"]["latency_s"].pop("p50"),
    "text for a number": lambda r: r["bench"]["latency_s"].update(p50="fast"),
    "true for a number": lambda r: r["bench"]["latency_s"].update(p50=True),
    "negative latency": lambda r: r["bench"]["samples_s"].__setitem__(3, -1.0),
    "text among samples": lambda r: r["bench"]["samples_s"].__setitem__(3, "x"),
    "huge": lambda r: r["bench"]["latency_s"].update(p50=10**400),
    "a list for an object": lambda r: r["bench"].update(budget=[1]),
    "an object for a list": lambda r: r["bench"].update(samples_s={}),
    "a number for text": lambda r: r["bench"].update(scenario=3),
    "agreement over 1": lambda r: r["verify"]["parity"].update(top1_agreement=1.5),
    "interval of one": lambda r: r["bench"]["ci95"].update(p50=[1.0]),
    "interval turned": lambda r: r["bench"]["ci95"].update(p50=[2.0, 1.0]),
    "unknown verdict": lambda r: r["gate"].update(verdict="perhaps"),
    "nameless layer": lambda r: r["bench"]["budget"]["layers"][2].pop("name"),
    "timeless layer": lambda r: r["bench"]["budget"]["layers"][2].pop("seconds"),
    "part of another kind": lambda r: r["bench"].update(kind="verify"),
    "no criteria name": lambda r: r["gate"]["criteria"][0].pop("name"),
    "kind is a list": lambda r: r.update(kind=["run"]),
    "batch 0": lambda r: r["bench"].update(batch=0),
    "system is text": lambda r: r["bench"].update(system="pc"),
    "stages are numbers": lambda r: r["build"].update(stages=[1]),
    "run of nothing": lambda r: [r.update(dict.fromkeys(("build", "verify", "bench", "gate")))],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_results_are_errors_of_one_line(tmp_path, name):
    with pytest.raises(ResultError) as caught:
        of(tmp_path, broken(BROKEN[name]))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.fix


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"schema": 2, "kind": "run"}, "another schema"),
        ({"schema": 1, "kind": "budget"}, "no result that a report shows: got kind 'budget'"),
        ({"schema": 1}, "no result"),
        ([], "no result"),
        ({"schema": 1, "kind": "bench", "digest": "x", "batch": 1, "latency_s": {"p50": 1e999}},
         "cannot be"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, result, words):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(result).replace("Infinity", "1e999"))
    with pytest.raises(ResultError, match=words):
        model.report(reading.read([path]))


def test_a_result_given_twice_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"given twice.*result-0\.json"):
        of(tmp_path, made.full(), made.full())


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 84, False), (0.0034, 0.0049, False), (1, 1000, True), (0.5, 3e5, True), (0.56, 1.05, True),
     (0, 1e-9, False), (1e-7, 1e9, True)],
)  # fmt: skip
def test_ticks_are_few_round_and_inside(low, high, log):
    found = ticks_of(Axis(low, high, "", "", log=log))
    assert 2 <= len(found) <= 6
    assert all(low - 1e-15 <= value <= high * (1 + 1e-9) for value in found)
    for value in found:
        assert float(f"{value:.2g}") == pytest.approx(value, rel=1e-9)
