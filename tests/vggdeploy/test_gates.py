"""Gates: every bound met, not met and without a figure; and what is refused to be judged."""

import copy
import json
import math

import numpy as np
import pytest

from vggdeploy import gates, parity, policy
from vggdeploy.errors import ConfigError, ResultError
from vggdeploy.policy import Policy

SYSTEM = {"cpu": "EPYC", "isa": ["avx2"], "cores": 2, "libraries": {"openvino": "2026.4"}}
BUILD = {"kind": "build", "digest": "d" * 64, "target": "ov-int8", "engine_bytes": 1000}
VERIFY = {
    "kind": "verify",
    "system": SYSTEM,
    "digest": "d" * 64,
    "target": "ov-int8",
    "engine_bytes": 1000,
    "execution": "native",
    "note": "",
    "judged": "data",
    "parity": {
        "n": 400,
        "top1_agreement": 0.98,
        "cosine_min": 0.97,
        "sqnr_db": 25.0,
        "sqnr_ci95": [24.8, 25.2],
    },
    "accuracy": {"n": 400, "top1": 0.71, "gained": 1, "lost": 3, "drop": 0.005},
}
SAMPLES = [0.040 + 0.00001 * float(i - 209) for i in np.random.default_rng(0).permutation(420)]
BENCH = {
    "kind": "bench",
    "system": SYSTEM,
    "digest": "d" * 64,
    "target": "ov-int8",
    "scenario": "latency",
    "batch": 1,
    "model": {"name": "vgg16"},
    "engine_bytes": 1000,
    "resident_bytes": 500_000_000,
    "unstable_because": [],
    "samples_s": SAMPLES,
    "started_s": [0.041 * i for i in range(420)],
    "measured_seconds": 17.2,
    "partial": False,
    "latency_s": {"p50": 0.040, "p99": 0.04206},
    "throughput_ips": 25.0,
    "throughput_ci95": [24.9, 25.1],
    "throughput_queries": 130,
    "device": {"device": "CPU"},
    "budget": {"macs": 15_470_264_320, "utilisation": 0.8},
    "energy": {"joules_per_image": 0.6},
}
EXACT = {
    "min_cosine": ("verify", 0.97, math.nextafter(0.97, 1)),
    "max_engine_bytes": ("any", 1000, 999),
    "max_resident_bytes": ("bench", 500_000_000, 499_999_999),
    "max_energy": ("bench", 0.6, math.nextafter(0.6, 0)),
}
"""For each bound of an exact figure: the kind that has it, the figure, which is a bound that it just
meets, and one that is missed by a hair."""

SAMPLED = {
    "min_agreement": ("verify", 0.98, 0.95, 0.98, 0.999),
    "max_drop": ("verify", 0.005, 0.03, 0.005, -0.1),
    "min_top1": ("verify", 0.71, 0.6, 0.71, 0.8),
    "min_sqnr": ("verify", 25.0, 24.7, 25.0, 25.3),
    "max_p50": ("bench", 0.040, 0.045, 0.040, 0.035),
    "max_p99": ("bench", 0.04206, 0.045, 0.04206, 0.035),
    "min_throughput": ("bench", 25.0, 24.0, 25.0, 26.0),
    "min_utilisation": ("bench", 0.8, 0.7, 0.8, 0.9),
}
"""For each bound of a sampled figure: the kind that has it, the figure, and a bound that all of its
interval meets, one within it, and one that all of it misses."""

BOUNDS = {**EXACT, **SAMPLED}
SPEED = ["max_p50", "max_p99", "min_throughput", "min_utilisation", "max_energy"]


def changed(result, **changes):
    return {**copy.deepcopy(result), **changes}


def judged(results, **bounds):
    """The only criterion of a gate."""
    (criterion,) = gates.judge(results, Policy(**bounds)).criteria
    return criterion


def test_every_bound_is_tested_here():
    assert sorted(BOUNDS) == sorted(policy.BOUNDS)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_bound_is_met_to_the_last_digit(name):
    kind, figure, missed = EXACT[name]
    found = judged([VERIFY, BENCH], **{name: figure})
    assert (found.verdict, found.value, found.interval) == ("pass", figure, None)
    found = judged([VERIFY, BENCH], **{name: missed})
    assert (found.name, found.bound, found.value, found.verdict) == (name, missed, figure, "fail")
    assert found.execution == ("native" if kind == "verify" else "")


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sampled_bound_needs_the_whole_interval(name):
    _, figure, met, between, missed = SAMPLED[name]
    found = judged([VERIFY, BENCH], **{name: met})
    assert (found.verdict, found.value, found.note) == ("pass", figure, "")
    low, high = found.interval
    assert low < figure < high
    found = judged([VERIFY, BENCH], **{name: missed})
    assert (found.verdict, found.interval) == ("fail", (low, high))
    found = judged([VERIFY, BENCH], **{name: between})
    assert (found.verdict, found.interval) == ("inconclusive", (low, high))
    assert low <= between <= high
    assert f"{low:.6g} to {high:.6g}" in found.note


@pytest.mark.parametrize(
    ("bounds", "unit", "least", "most"),
    [
        # Wilson's interval inverts the score test: z^2 p (1 - p) / d^2 with the bound's p.
        ({"min_agreement": 0.97}, "images", 1118, 1120),
        ({"min_sqnr": 24.95}, "images", 6000, 6500),  # (0.2 / 0.05)^2 times as many
        ({"max_p50": 0.04005}, "queries", 421, 10**6),
    ],
)
def test_what_would_decide_is_said_and_does(bounds, unit, least, most):
    found = judged([VERIFY, BENCH], **bounds)
    assert found.verdict == "inconclusive"
    count = found.needed[unit]
    assert least <= count <= most
    assert f"about {count:,} like these would decide" in found.note


def test_so_many_images_do_decide():
    needed = judged([VERIFY], min_agreement=0.97).needed["images"]
    for count, verdict in ((needed + 200, "pass"), (needed - 200, "inconclusive")):
        share = round(0.98 * count) / count
        more = changed(VERIFY, parity={**VERIFY["parity"], "n": count, "top1_agreement": share})
        assert judged([more], min_agreement=0.97).verdict == verdict


def test_a_figure_on_its_bound_is_never_decided():
    found = judged([VERIFY], min_agreement=0.98)
    assert (found.verdict, found.needed) == ("inconclusive", None)
    assert "too near to its bound" in found.note


def test_none_of_400_decided_otherwise_shows_99_percent_and_not_999_in_a_thousand():
    all_alike = changed(VERIFY, parity={**VERIFY["parity"], "top1_agreement": 1.0})
    assert judged([all_alike], min_agreement=0.99).verdict == "pass"
    found = judged([all_alike], min_agreement=0.999)
    assert found.verdict == "inconclusive"
    # n / (n + z^2) > 0.999
    assert found.needed["images"] == pytest.approx(3838, abs=5)


def test_images_behind_a_drop_that_nothing_shows():
    """Without any image decided otherwise a drop has an interval all the same."""
    same = changed(VERIFY, accuracy={**VERIFY["accuracy"], "gained": 0, "lost": 0, "drop": 0.0})
    assert judged([same], max_drop=0.01).verdict == "pass"
    assert judged([same], max_drop=0.005).verdict == "inconclusive"


def test_one_image_has_no_interval_of_its_noise():
    one = changed(VERIFY, parity={**VERIFY["parity"], "n": 1, "sqnr_ci95": None})
    assert judged([one], min_sqnr=20).verdict == "inconclusive"
    assert judged([one], min_sqnr=30).verdict == "inconclusive"


def test_utilisation_is_as_sure_as_the_rate_that_it_is_of():
    queue = changed(BENCH, scenario="throughput")
    low, high = judged([queue], min_utilisation=0.7).interval
    assert (low, high) == pytest.approx((0.8 * 24.9 / 25, 0.8 * 25.1 / 25))
    server = changed(BENCH, scenario="throughput", throughput_ci95=None)
    assert judged([server], min_utilisation=0.7).verdict == "inconclusive"


def test_what_would_decide_a_rate_is_what_lengthens_its_queue():
    """Beside latency that is time: so many queries more would be of the other loop."""
    found = judged([BENCH], min_throughput=24.95)
    assert found.verdict == "inconclusive"
    # (0.1 / 0.05)^2 times 130 queries of 1 image at 25 a second.
    count = found.needed["queries"]
    assert count == pytest.approx(520, abs=2)
    assert f"130 queries leave 24.9 to 25.1: about {count} like these" in found.note
    assert found.note.endswith("decide (20.8 s): bench with --seconds 21")
    queue = changed(BENCH, scenario="throughput")
    assert f"bench with --queries {count}" in judged([queue], min_throughput=24.95).note


def test_a_rate_without_an_interval_decides_nothing():
    server = changed(BENCH, scenario="server", throughput_ci95=None)
    for bound in (20, 30):
        found = judged([server], min_throughput=bound)
        assert found.verdict == "inconclusive"
        assert "bench with --scenario throughput" in found.note


# --- beside a baseline


def slower(times):
    return changed(
        BENCH,
        samples_s=[times * value for value in SAMPLES],
        latency_s={"p50": times * 0.040, "p99": times * 0.04206},
        throughput_ips=25.0 / times,
        throughput_ci95=[24.9 / times, 25.1 / times],
        engine_bytes=round(1000 * times),
        resident_bytes=round(500_000_000 * times),
        energy={"joules_per_image": 0.6 * times},
        budget={**BENCH["budget"], "utilisation": 0.8 / times},
    )


@pytest.mark.parametrize(
    "metric",
    ["p50", "p99", "throughput", "utilisation", "engine_bytes", "resident_bytes", "energy"],
)
def test_how_many_times_worse_than_the_baseline(metric):
    def verdict(times):
        found = gates.judge([slower(times)], Policy(max_ratio={metric: 1.05}), baseline=[BENCH])
        (criterion,) = found.criteria
        assert criterion.name == f"max_ratio.{metric}"
        assert criterion.value == pytest.approx(times, rel=1e-3)
        return criterion.verdict

    assert [verdict(times) for times in (0.9, 1.0, 1.2)] == ["pass", "pass", "fail"]


def test_accuracy_beside_the_baseline():
    worse = changed(
        VERIFY, parity={**VERIFY["parity"], "top1_agreement": 0.5, "sqnr_db": 22.0,
                        "sqnr_ci95": [21.8, 22.2]},
    )  # fmt: skip
    ratios = {"agreement": 1.05, "sqnr": 1.26}
    assert gates.judge([VERIFY], Policy(max_ratio=ratios), baseline=[VERIFY]).verdict == "pass"
    found = gates.judge([worse], Policy(max_ratio=ratios), baseline=[VERIFY])
    assert [c.verdict for c in found.criteria] == ["fail", "fail"]
    agreement, noise = (c.value for c in found.criteria)
    assert agreement == pytest.approx(0.98 / 0.5)
    assert noise == pytest.approx(10**0.3)  # 3 dB is twice the power of noise


def test_a_ratio_within_its_interval_is_inconclusive():
    rng = np.random.default_rng(1)
    noisy = [
        changed(BENCH, samples_s=(0.04 * rng.lognormal(0, 0.3, 40)).tolist()) for _ in range(2)
    ]
    (found,) = gates.judge(noisy[:1], Policy(max_ratio={"p50": 1.02}), baseline=noisy[1:]).criteria
    assert found.verdict == "inconclusive"
    assert found.needed["queries"] > 40
    assert f"s): bench both with --queries {found.needed['queries']}" in found.note


@pytest.mark.parametrize("side", ["now", "then"])
def test_a_ratio_of_what_one_side_lacks_is_inconclusive(side):
    lacking = {
        "sqnr": changed(VERIFY, parity={**VERIFY["parity"], "n": 1, "sqnr_ci95": None}),
        "throughput": changed(BENCH, throughput_ci95=None),
        "p99": changed(BENCH, samples_s=SAMPLES[:367]),
    }
    for name, lame in lacking.items():
        whole = VERIFY if name == "sqnr" else BENCH
        now, then = (lame, whole) if side == "now" else (whole, lame)
        found = gates.judge([now], Policy(max_ratio={name: 2.0}), baseline=[then])
        assert found.verdict == "inconclusive", name
        assert found.criteria[0].note.startswith("the baseline: ") == (side == "then")


def test_a_ratio_at_the_top_is_told_by_both_intervals():
    def alike(images):
        return changed(VERIFY, parity={**VERIFY["parity"], "n": images, "top1_agreement": 1.0})

    for bound, verdict in ((1.005, "inconclusive"), (1.01, "pass")):
        bounds = Policy(max_ratio={"agreement": bound})
        found = gates.judge([alike(400)], bounds, baseline=[alike(10_000)])
        assert found.verdict == verdict


@pytest.mark.parametrize("metric", ["p50", "p99", "throughput", "utilisation", "energy"])
@pytest.mark.parametrize("times", [0.5, 1.8])
def test_beside_an_unstable_baseline_nothing_is_told(metric, times):
    then = changed(BENCH, unstable_because=["a busy CPU"])
    found = gates.judge([slower(times)], Policy(max_ratio={metric: 1.05}), baseline=[then])
    assert found.verdict == "inconclusive"
    assert "the baseline was measured unstable" in found.criteria[0].note
    size = gates.judge([BENCH], Policy(max_ratio={"engine_bytes": 1.05}), baseline=[then])
    assert size.verdict == "pass"


def test_beside_a_baseline_that_judged_the_probes_nothing_is_told():
    then = changed(VERIFY, note="the probes were judged, not photos")
    for bound in (0.5, 2.0):
        found = gates.judge([VERIFY], Policy(max_ratio={"sqnr": bound}), baseline=[then])
        assert found.verdict == "inconclusive"
        assert found.criteria[0].note == "the baseline: the probes were judged, not photos"


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"images_sha256": "e" * 64}, "judged other images"),
        ({"judged": "probes"}, "judged other images"),
        ({"model": {"name": "vgg19"}}, "is of another network"),
    ],
)
def test_a_verification_is_held_against_one_of_the_same(differs, said):
    now = changed(VERIFY, images_sha256="d" * 64, model={"name": "vgg16"})
    bounds = Policy(min_sqnr=20, max_ratio={"sqnr": 1.1, "agreement": 1.1})
    assert gates.judge([now], bounds, baseline=[now]).verdict == "pass"
    found = gates.judge([now], bounds, baseline=[changed(now, **differs)])
    assert [(c.verdict, c.note) for c in found.criteria if "max_ratio" in c.name] == [
        ("inconclusive", f"the baseline {said}: make one of what is judged here")
    ] * 2
    assert next(c for c in found.criteria if c.name == "min_sqnr").verdict == "pass"
    # What an older baseline does not say is not held against it.
    assert gates.judge([now], bounds, baseline=[VERIFY]).verdict == "pass"


def test_an_emulated_baseline_is_a_caution():
    then = changed(VERIFY, execution="emulated")
    found = gates.judge([VERIFY], Policy(max_ratio={"sqnr": 1.1}), baseline=[then])
    assert found.verdict == "pass"
    assert found.cautions == ("the baseline was emulated, and this is native",)
    found = gates.judge([VERIFY], Policy(min_sqnr=20), baseline=[then])
    assert found.cautions == ("nothing is held against the baseline: no max_ratio is asked for",)
    assert gates.judge([VERIFY], Policy(min_sqnr=20)).cautions == ()


def test_a_ratio_without_a_baseline_is_inconclusive():
    for baseline in (None, [VERIFY]):
        found = gates.judge([BENCH], Policy(max_ratio={"p50": 1.1}), baseline=baseline)
        assert found.verdict == "inconclusive"
        assert "baseline" in found.criteria[0].note


def test_a_baseline_of_another_machine_or_scenario_is_refused():
    other = changed(BENCH, system={**SYSTEM, "cpu": "Xeon"})
    bounds = Policy(max_ratio={"p50": 1.1})
    with pytest.raises(ResultError, match="different machines"):
        gates.judge([BENCH], bounds, baseline=[other])
    assert gates.judge([BENCH], bounds, baseline=[other], across_machines=True).cautions
    # Its accuracy is of no machine.
    assert gates.judge(
        [BENCH, VERIFY], Policy(max_ratio={"agreement": 1.1}), baseline=[VERIFY, other]
    )
    with pytest.raises(ResultError, match="different batch"):
        gates.judge([BENCH], bounds, baseline=[changed(BENCH, batch=8)])
    gpu = changed(BENCH, device={"device": "GPU"})
    with pytest.raises(ResultError, match="different device: got GPU and CPU"):
        gates.judge([BENCH], bounds, baseline=[gpu])
    found = gates.judge([BENCH], bounds, baseline=[gpu], across_machines=True)
    assert found.cautions == ("different devices: GPU and CPU",)


def serving(rate, *, found):
    said = {"rate": rate, "found": found, "p99_bound_s": 0.1 if found else None}
    return changed(BENCH, scenario="server", server=said, throughput_ips=rate, throughput_ci95=None)


def test_servers_are_judged_under_one_load():
    bounds = Policy(max_ratio={"p50": 1.1, "p99": 1.1, "energy": 1.1, "resident_bytes": 1.1})
    alike = gates.judge([serving(5.0, found=False)], bounds, baseline=[serving(5.0, found=False)])
    assert alike.verdict == "pass"
    with pytest.raises(ResultError, match=r"arrivals a second: got 20\.0 and 5\.0"):
        gates.judge([serving(5.0, found=False)], bounds, baseline=[serving(20.0, found=False)])
    with pytest.raises(ResultError, match="different ways to the arrivals"):
        gates.judge([serving(5.0, found=True)], bounds, baseline=[serving(5.0, found=False)])
    # The slower build has the same percentiles, at a quarter of the load.
    apart = gates.judge([serving(5.0, found=True)], bounds, baseline=[serving(20.0, found=True)])
    assert [c.verdict for c in apart.criteria] == ["inconclusive"] * 2 + ["pass", "inconclusive"]
    assert "5 and 20 a second were found: bench both with --rate 5" in apart.criteria[0].note


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_without_a_figure_is_inconclusive(name):
    kind, figure, *_ = BOUNDS[name]
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
    _, figure, met, *_, missed = (*BOUNDS[name][:2], *BOUNDS[name][1:])
    met = met if name in EXACT else SAMPLED[name][2]
    found = gates.judge([unstable], Policy(**{name: met}))
    assert (found.verdict, found.criteria[0].value) == ("inconclusive", figure)
    assert found.unstable == ("p99 is twice the median",)
    assert gates.judge([unstable], Policy(**{name: missed})).verdict == "fail"


def test_unstable_speed_says_nothing_about_accuracy():
    unstable = changed(BENCH, unstable_because=["drift"])
    bounds = Policy(min_agreement=0.95, max_engine_bytes=1000)
    assert gates.judge([VERIFY, unstable], bounds).verdict == "pass"


@pytest.mark.parametrize("figure", [math.nan, math.inf, "0.99", True, 10**400, -2e30])
@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "max_engine_bytes"])
def test_a_figure_that_cannot_be_is_refused(name, figure):
    def spoil(value):
        return {k: spoil(v) if isinstance(v, dict) else figure for k, v in value.items()}

    parts = ("accuracy", "latency_s", "budget", "energy")
    results = [
        {k: spoil(v) if k in parts else v for k, v in result.items()} for result in (VERIFY, BENCH)
    ]
    results[0]["parity"] = {**spoil(VERIFY["parity"]), "n": 400}
    results[1] |= {"throughput_ips": figure, "resident_bytes": figure}
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
    bounds = Policy(min_agreement=0.95, max_p50=0.045, max_engine_bytes=1000)
    found = gates.judge([run], bounds)
    assert (found.verdict, found.execution) == ("pass", "native")
    assert len(found.criteria) == 3


def test_a_run_that_emulated_has_no_speed():
    emulated = changed(VERIFY, execution="emulated")
    run = {"kind": "run", "build": BUILD, "verify": emulated, "bench": None}
    found = gates.judge([run], Policy(min_agreement=0.95))
    assert (found.verdict, found.execution) == ("pass", "emulated")
    assert found.criteria[0].execution == "emulated"
    found = gates.judge([run], Policy(min_agreement=0.95, max_p50=0.045))
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
    with pytest.raises(ResultError, match="has nothing to gate: got kind 'budget'"):
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
    bounds = Policy(min_agreement=0.9, max_drop=0.1, max_p50=1, min_utilisation=0.1)
    with pytest.raises(ResultError):
        gates.judge([lame], bounds)


def test_a_figure_that_is_no_number_is_an_error_and_no_crash():
    with pytest.raises(ResultError):
        gates.judge([changed(BENCH, throughput_ips="fast")], Policy(min_throughput=1))


def test_without_any_bound_the_default_holds():
    assert policy.make({}) == policy.make(dict.fromkeys(BOUNDS)) == policy.DEFAULT
    assert Policy(min_agreement=0.99) == policy.DEFAULT
    assert policy.make({"max_p50": 1, "min_top1": None}) == Policy(max_p50=1)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, -1e30, True, "0.9", [0.9]])
def test_a_bound_that_is_no_number_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"bound {name} is wrong"):
        policy.make({name: value})


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
        {"min_throughput": 0},
        {"min_throughput": -5},
        {"min_utilisation": 0},
        {"min_agreement": 0},
        {"min_cosine": -1},
        {"max_drop": 1},
        {"max_drop": -1},
    ],
)
def test_a_bound_that_cannot_be_is_refused(bounds):
    with pytest.raises(ConfigError, match=f"bound {next(iter(bounds))} is wrong"):
        policy.make(bounds)


def test_the_json_form_is_json():
    found = gates.judge([VERIFY, BENCH], Policy(min_agreement=0.95, max_p99=0.05))
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (said["kind"], said["verdict"], said["execution"]) == ("gate", "pass", "native")
    assert said["criteria"][0] == {
        "name": "min_agreement",
        "bound": 0.95,
        "value": 0.98,
        "verdict": "pass",
        "interval": list(parity.wilson(392, 400)),
        "unit": "",
        "note": "",
        "needed": None,
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
    with pytest.raises(ResultError, match="a result of bench has no usable 'partial'"):
        gates.judge([changed(BENCH, partial=None)], Policy(max_p50=1.0))


def test_a_99th_percentile_takes_368_samples():
    short = changed(BENCH, samples_s=[0.040] * 367)
    assert gates.judge([short], Policy(max_p99=0.06)).verdict == "inconclusive"
    assert "--queries 368" in gates.judge([short], Policy(max_p99=0.06)).criteria[0].note
    assert gates.judge([short], Policy(max_p99=0.02)).verdict == "inconclusive"
    assert gates.judge([short], Policy(max_p50=0.06)).verdict == "pass"
