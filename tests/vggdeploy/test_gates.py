"""Gates: every bound met, not met and without a figure; and what is refused to be judged."""

import copy
import json
import math
from dataclasses import fields

import pytest

from vggdeploy import gates
from vggdeploy.errors import ConfigError, ResultError
from vggdeploy.gates import Policy

SYSTEM = {"cpu": "EPYC", "isa": ["avx2"], "cores": 2, "libraries": {"openvino": "2026.4"}}
BUILD = {"kind": "build", "digest": "d" * 64, "engine_bytes": 1000}
VERIFY = {
    "kind": "verify",
    "system": SYSTEM,
    "digest": "d" * 64,
    "engine_bytes": 1000,
    "execution": "native",
    "note": "",
    "judged": "data",
    "parity": {"n": 400, "top1_agreement": 0.98, "cosine_min": 0.97, "sqnr_db": 25.0},
    "accuracy": {"top1": 0.71, "drop": 0.004},
}
BENCH = {
    "kind": "bench",
    "system": SYSTEM,
    "digest": "d" * 64,
    "engine_bytes": 1000,
    "unstable_because": [],
    "samples_s": [0.040] * 368,
    "partial": False,
    "latency_s": {"p50": 0.040, "p99": 0.050},
    "throughput_ips": 25.0,
    "budget": {"utilisation": 0.8},
}
# For each bound: the kind whose figure it is held against, the figure, one that is met by exactly
# that figure, and one that is missed by a hair.
BOUNDS = {
    "min_agreement": ("verify", 0.98, math.nextafter(0.98, 1)),
    "max_drop": ("verify", 0.004, math.nextafter(0.004, 0)),
    "min_top1": ("verify", 0.71, math.nextafter(0.71, 1)),
    "min_cosine": ("verify", 0.97, math.nextafter(0.97, 1)),
    "min_sqnr": ("verify", 25.0, math.nextafter(25.0, 99)),
    "max_p50": ("bench", 0.040, math.nextafter(0.040, 0)),
    "max_p99": ("bench", 0.050, math.nextafter(0.050, 0)),
    "min_throughput": ("bench", 25.0, math.nextafter(25.0, 99)),
    "min_utilisation": ("bench", 0.8, math.nextafter(0.8, 1)),
    "max_engine_bytes": ("any", 1000, 999),
}
SPEED = ["max_p50", "max_p99", "min_throughput", "min_utilisation"]


def changed(result, **changes):
    return {**copy.deepcopy(result), **changes}


def test_every_bound_is_tested_here():
    assert list(BOUNDS) == [field.name for field in fields(Policy)]


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_met_to_the_last_digit(name):
    kind, figure, missed = BOUNDS[name]
    found = gates.judge([VERIFY, BENCH], Policy(**{name: figure}))
    assert (found.verdict, found.criteria[0].value) == ("pass", figure)
    found = gates.judge([VERIFY, BENCH], Policy(**{name: missed}))
    assert (found.verdict, found.criteria[0].value) == ("fail", figure)
    how = "native" if kind == "verify" else ""
    assert found.criteria == (gates.Criterion(name, float(missed), figure, "fail", execution=how),)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_without_a_figure_is_inconclusive(name):
    kind, figure, _ = BOUNDS[name]
    others = {"verify": [BUILD, BENCH], "bench": [BUILD, VERIFY], "any": []}[kind]
    found = gates.judge(others, Policy(**{name: figure}))
    assert (found.verdict, found.criteria[0].value) == ("inconclusive", None)


@pytest.mark.parametrize("name", ["max_drop", "min_top1"])
def test_accuracy_without_labels_is_inconclusive(name):
    unlabelled = changed(VERIFY, accuracy=None)
    found = gates.judge([unlabelled], Policy(**{name: BOUNDS[name][1]}))
    assert found.verdict == "inconclusive"


def test_the_engines_size_is_in_any_result():
    for result in (BUILD, VERIFY, BENCH):
        assert gates.judge([result], Policy(max_engine_bytes=1000)).verdict == "pass"


def test_the_verdict_is_the_worst():
    met, missed, absent = {"min_agreement": 0.9}, {"min_sqnr": 30}, {"max_p50": 1}
    assert gates.judge([VERIFY], Policy(**met)).verdict == "pass"
    assert gates.judge([VERIFY], Policy(**met, **absent)).verdict == "inconclusive"
    found = gates.judge([VERIFY], Policy(**met, **absent, **missed))
    assert found.verdict == "fail"
    assert {c.name: c.verdict for c in found.criteria} == {
        "min_agreement": "pass",
        "max_p50": "inconclusive",
        "min_sqnr": "fail",
    }
    assert gates.judge([VERIFY], Policy()).verdict == "inconclusive", (
        "nothing asked, nothing passed"
    )


@pytest.mark.parametrize("name", SPEED)
def test_unstable_speed_never_passes_and_may_fail(name):
    unstable = changed(BENCH, unstable_because=["p99 is twice the median"])
    _, figure, missed = BOUNDS[name]
    found = gates.judge([unstable], Policy(**{name: figure}))
    assert (found.verdict, found.criteria[0].value) == ("inconclusive", figure)
    assert found.unstable == ("p99 is twice the median",)
    assert gates.judge([unstable], Policy(**{name: missed})).verdict == "fail"


def test_unstable_speed_says_nothing_about_accuracy():
    unstable = changed(BENCH, unstable_because=["drift"])
    policy = Policy(min_agreement=0.98, max_engine_bytes=1000)
    assert gates.judge([VERIFY, unstable], policy).verdict == "pass"


@pytest.mark.parametrize("figure", [math.nan, math.inf, "0.99", True, 10**400, -2e30])
@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "max_engine_bytes"])
def test_a_figure_that_cannot_be_is_refused(name, figure):
    def spoil(value):
        return {k: spoil(v) if isinstance(v, dict) else figure for k, v in value.items()}

    parts = ("accuracy", "latency_s", "budget")
    results = [
        {k: spoil(v) if k in parts else v for k, v in result.items()} for result in (VERIFY, BENCH)
    ]
    results[0]["parity"] = {**spoil(VERIFY["parity"]), "n": 400}
    results[1]["throughput_ips"] = figure
    with pytest.raises(ResultError, match="is wrong: got"):
        gates.judge(results, Policy(**{name: BOUNDS[name][1]}))


@pytest.mark.parametrize("name", ["min_agreement", "min_top1", "min_cosine", "max_drop"])
def test_a_share_above_1_is_refused(name):
    shares = changed(
        VERIFY,
        parity={"n": 1, "top1_agreement": 1.01, "cosine_min": 1.01, "sqnr_db": 1},
        accuracy={"top1": 1.01, "drop": 1.01},
    )
    with pytest.raises(ResultError, match=r"is wrong: got 1\.01"):
        gates.judge([shares], Policy(**{name: 0.5}))


def test_a_run_is_judged_by_its_parts():
    run = {"kind": "run", "build": BUILD, "verify": VERIFY, "bench": BENCH}
    policy = Policy(min_agreement=0.98, max_p50=0.04, max_engine_bytes=1000)
    found = gates.judge([run], policy)
    assert (found.verdict, found.execution) == ("pass", "native")
    assert len(found.criteria) == 3


def test_a_run_that_emulated_has_no_speed():
    emulated = changed(VERIFY, execution="emulated")
    run = {"kind": "run", "build": BUILD, "verify": emulated, "bench": None}
    found = gates.judge([run], Policy(min_agreement=0.98))
    assert (found.verdict, found.execution) == ("pass", "emulated")
    assert found.criteria[0].execution == "emulated"
    found = gates.judge([run], Policy(min_agreement=0.98, max_p50=0.04))
    assert found.verdict == "inconclusive"
    assert [c.verdict for c in found.criteria] == ["pass", "inconclusive"]


def test_no_engine_has_no_size():
    found = gates.judge([changed(BUILD, engine_bytes=0)], Policy(max_engine_bytes=1000))
    (criterion,) = found.criteria
    assert (criterion.verdict, criterion.value) == ("inconclusive", None)
    assert "no engine yet" in criterion.note


def test_results_of_different_bundles_are_refused():
    with pytest.raises(
        ResultError, match=r"different bundles: got verify of d+\.\.\., bench of e+"
    ):
        gates.judge([VERIFY, changed(BENCH, digest="e" * 64)], Policy(min_agreement=0.9))


def test_two_of_one_kind_are_refused():
    with pytest.raises(ResultError, match="two results of kind 'verify'"):
        gates.judge([VERIFY, VERIFY], Policy(min_agreement=0.9))


def test_kinds_without_figures_are_refused():
    with pytest.raises(ResultError, match="kind 'budget' has nothing to gate"):
        gates.judge([{"kind": "budget", "digest": "d"}], Policy(min_agreement=0.9))


@pytest.mark.parametrize(
    ("result", "missing"),
    [
        *((VERIFY, key) for key in ("digest", "execution", "parity", "accuracy")),
        *((BENCH, key) for key in ("digest", "unstable_because", "latency_s", "budget")),
        *(
            ({"kind": "run", "build": BUILD, "verify": VERIFY, "bench": BENCH}, key)
            for key in ("build",)
        ),
    ],
)
def test_a_result_that_lacks_a_part_is_an_error_and_no_crash(result, missing):
    lame = changed(result)
    del lame[missing]
    policy = Policy(min_agreement=0.9, max_drop=0.1, max_p50=1, min_utilisation=0.1)
    with pytest.raises(ResultError):
        gates.judge([lame], policy)


def test_a_figure_that_is_no_number_is_an_error_and_no_crash():
    with pytest.raises(ResultError):
        gates.judge([changed(BENCH, throughput_ips="fast")], Policy(min_throughput=1))


def test_without_any_bound_the_default_holds():
    assert gates.policy({}) == gates.policy(dict.fromkeys(BOUNDS)) == gates.DEFAULT
    assert Policy(min_agreement=0.99) == gates.DEFAULT
    assert gates.policy({"max_p50": 1, "min_top1": None}) == Policy(max_p50=1)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.9", [0.9]])
def test_a_bound_that_is_no_number_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"bound {name} is wrong"):
        gates.policy({name: value})


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_agreement": 99},
        {"min_agreement": -0.1},
        {"min_top1": 71.6},
        {"min_cosine": 1.01},
        {"max_drop": 2},
        {"max_p50": 0},
        {"max_p99": -1},
        {"max_engine_bytes": 0},
    ],
)
def test_a_bound_that_cannot_be_is_refused(bounds):
    with pytest.raises(ConfigError, match=f"bound {next(iter(bounds))} is wrong"):
        gates.policy(bounds)


def test_the_json_form_is_json():
    found = gates.judge([VERIFY, BENCH], Policy(min_agreement=0.98, max_p99=0.05))
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (said["kind"], said["verdict"], said["execution"]) == ("gate", "pass", "native")
    assert said["criteria"][0] == {
        "name": "min_agreement",
        "bound": 0.98,
        "value": 0.98,
        "verdict": "pass",
        "note": "",
        "execution": "native",
    }


def test_what_was_not_judged_does_not_pass():
    found = gates.judge([changed(VERIFY, note="the probes were judged")], Policy(min_agreement=0.9))
    assert found.verdict == "inconclusive"
    assert found.criteria[0].note == "the probes were judged"


def test_what_was_interrupted_never_passes():
    """Nor does it fail: what is missing might have changed it."""
    partial = changed(BENCH, partial=True, throughput_ips=None)
    for name in SPEED:
        for bound in BOUNDS[name][1:]:
            (criterion,) = gates.judge([partial], Policy(**{name: bound})).criteria
            assert (criterion.verdict, criterion.note) == (
                "inconclusive", "the measurement was interrupted"
            )  # fmt: skip
    with pytest.raises(ResultError, match="no usable 'partial'"):
        gates.judge([changed(BENCH, partial=None)], Policy(max_p50=1.0))


def test_a_99th_percentile_takes_368_samples():
    short = changed(BENCH, samples_s=[0.040] * 367)
    assert gates.judge([short], Policy(max_p99=0.06)).verdict == "inconclusive"
    assert "--queries 368" in gates.judge([short], Policy(max_p99=0.06)).criteria[0].note
    assert gates.judge([short], Policy(max_p99=0.04)).verdict == "fail"
    assert gates.judge([short], Policy(max_p50=0.06)).verdict == "pass"
