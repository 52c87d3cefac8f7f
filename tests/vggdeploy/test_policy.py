"""The policy: what flags, settings and a target's table come to, and what is refused."""

import pytest

from vggdeploy import config, policy
from vggdeploy.errors import ConfigError
from vggdeploy.policy import METRICS, Policies, Policy

TARGETS = ("ov-int8", "trt-int8")


def split(gate):
    return policy.split({"target": "ov-int8", "gate": gate}, TARGETS, "vggdeploy.toml")


def test_tables_below_gate_come_apart():
    table = {
        "min_agreement": 0.9,
        "max_ratio": {"p99": 1.1},
        "targets": {"trt-int8": {"min_sqnr": 30, "max_ratio": {"p50": 1.2}}},
    }
    rest, ratios, targets = split(table)
    assert rest == {"target": "ov-int8", "gate": {"min_agreement": 0.9}}
    assert ratios == {"p99": 1.1}
    assert targets == {"trt-int8": {"min_sqnr": 30, "max_ratio": {"p50": 1.2}}}
    assert split(0.9)[0]["gate"] == 0.9  # another's to refuse


def test_a_flag_comes_before_a_targets_table_and_that_before_the_rest():
    found = Policies(
        {"min_agreement": 0.9, "max_p50": 0.1, "max_ratio": {"p99": 1.1, "p50": 1.1}},
        {"max_p50"},
        {"trt-int8": {"min_agreement": 0.8, "max_p50": 0.2, "max_ratio": {"p50": 1.2}}},
    )
    assert found.of("trt-int8") == Policy(
        min_agreement=0.8, max_p50=0.1, max_ratio={"p99": 1.1, "p50": 1.2}
    )
    assert found.of("ov-int8") == Policy(
        min_agreement=0.9, max_p50=0.1, max_ratio={"p99": 1.1, "p50": 1.1}
    )
    assert Policies({}).of("ov-int8") == policy.DEFAULT


def test_a_ratio_by_flag_leaves_the_others_of_a_target():
    found = Policies(
        {"max_ratio": {"p99": 1.1}},
        targets={"trt-int8": {"max_ratio": {"p50": 1.02, "sqnr": 1.3}}},
        ratios={"sqnr": 1.1},
    )
    assert found.of("trt-int8").max_ratio == {"p99": 1.1, "p50": 1.02, "sqnr": 1.1}
    assert found.of("ov-int8").max_ratio == {"p99": 1.1, "sqnr": 1.1}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"max_ratio": {"p98": 1.1}}, r"\[gate\], max_ratio: unknown key: got 'p98'.*'p9?[0-9]+'"),
        ({"max_ratio": {"drop": 1.1}}, "unknown key: got 'drop'"),
        ({"max_ratio": 1.1}, "max_ratio is wrong"),
        ({"max_ratio": {"p99": 0}}, r"max_ratio\.p99 is wrong: got 0, expected above 0"),
        ({"max_ratio": {"p99": "1.1"}}, r"max_ratio\.p99 is wrong"),
        ({"targets": {"trt_int8": {}}}, "unknown key: got 'trt_int8'.*perhaps 'trt-int8'"),
        ({"targets": {"trt-int8": {"min_snqr": 30}}}, "'min_snqr'.*perhaps 'min_sqnr'"),
        (
            {"targets": {"trt-int8": {"min_agreement": 99}}},
            r"\[gate.targets.trt-int8\].*above 0 and below 1",
        ),
        ({"targets": {"trt-int8": 30}}, "gate.targets.trt-int8 is wrong"),
        ({"targets": 30}, "gate.targets is wrong"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(gate, message):
    with pytest.raises(ConfigError, match=message) as caught:
        split(gate)
    assert "vggdeploy.toml" in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("key", ["min_agreement", "min_top1"])
def test_a_share_of_1_is_what_no_sample_shows(key):
    with pytest.raises(ConfigError, match="below 1: no number of images"):
        policy.make({key: 1.0})
    assert policy.make({"min_cosine": 1.0}).min_cosine == 1.0


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_throughput": 0}, "got 0, expected above 0"),
        ({"min_cosine": -1}, "expected above -1 and at most 1"),
        ({"max_drop": 1}, "expected above -1 and below 1"),
        ({"min_sqnr": -1e29}, "expected above -2000"),
        ({"min_utilisation": 5}, "got 5, expected above 0 and below 4; divide percent by 100"),
        ({"min_agreement": 0}, "expected above 0 and below 1; divide percent by 100"),
        ({"max_p50": 10**400}, r"got 10+\.\.\.0+, expected a number below 1e\+30"),
        ({"max_ratio": {"p50": 10**400}}, "expected a number below"),
    ],
)
def test_what_every_figure_keeps_is_no_bound(bounds, message):
    with pytest.raises(ConfigError, match=message):
        policy.make(bounds)
    assert policy.make({"min_sqnr": -5, "max_drop": -0.01, "min_cosine": -0.5})


def test_ratios_by_flag():
    assert policy.ratios(["p99=1.05", "throughput = 1.1"]) == {"p99": 1.05, "throughput": 1.1}
    for word in ("p99", "p99=", "p99=much", "=1.1="):
        with pytest.raises(ConfigError, match="METRIC=RATIO"):
            policy.ratios([word])


def test_every_bound_has_its_figure():
    assert sorted(metric.bound for metric in METRICS.values()) == sorted(policy.BOUNDS)
    for metric in METRICS.values():
        assert metric.meets(2, 1) is metric.more_is_better
        assert metric.meets(1, 1)


def test_the_nearest_key_is_said():
    with pytest.raises(ConfigError, match="perhaps 'min_agreement'"):
        config.require_known("min_agrement", policy.BOUNDS, "here")
