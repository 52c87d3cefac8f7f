"""LoadGen over a quick runner: its logs, its verdict, its seeds; and errors that must not crash it.

LoadGen has a clock of its own: nothing here depends on how fast anything is.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy.benchmarks import mlperf, mlperf_log, statistics
from vggdeploy.benchmarks.mlperf import Plan
from vggdeploy.contracts import Runner, TensorSpec
from vggdeploy.errors import MissingError, ResultError

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = {
    # mlperf.conf of the package; the same in every rule set of this LoadGen's version.
    "6.0.17": (2085463073848966840, 2747215439041700203, 16159082839903944936),
}


class Quick(Runner):
    """Ends every query at once, in a thread of its own where it is started; keeps its batches."""

    def __init__(self, batch: int = 1) -> None:
        super().__init__()
        self.name = "quick"
        self.input = TensorSpec("image", (batch, 3, 2, 2))
        self.outputs = (TensorSpec("scores", (batch, 2)),)
        self.seen: list[list[int]] = []
        self._threads: list[threading.Thread] = []

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: Any) -> Any:
        self.seen.append([int(image.max()) for image in batch])
        return {"scores": np.zeros((len(batch), 2), np.float32)}

    def _begin(self, batch: Any, done: Any) -> None:
        outputs = self._infer(batch)
        if len(self.seen) % 2:
            done(outputs)
            return
        thread = threading.Thread(target=done, args=(outputs,))
        thread.start()
        self._threads.append(thread)

    def _drain(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class Slow(Quick):
    """One query at a time, each of 10 ms at least, which whoever begins it waits for."""

    def _begin(self, batch: Any, done: Any) -> None:
        time.sleep(0.01)
        done(self._infer(batch))


IMAGES = [np.full((1, 3, 2, 2), index, np.float32) for index in range(16)]


@pytest.fixture(autouse=True)
def loadgen() -> Any:
    return pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")


@pytest.mark.parametrize(
    ("scenario", "name", "size"),
    [
        ("latency", "SingleStream", 1),
        ("multistream", "MultiStream", 8),
        ("throughput", "Offline", 3),
        ("server", "Server", 1),
    ],
)
def test_every_scenario_is_driven_over_the_same_runner(
    tmp_path: Path, scenario: Any, name: str, size: int
) -> None:
    plan = Plan(scenario, 0.1, batch=size, expected_s=1e-3, rate=200.0, bound_s=10.0)
    with Quick(size) as runner:
        found, said = mlperf.run(runner, IMAGES, plan, tmp_path / "logs")
    assert said["scenario"] == name
    assert said["result"] in ("VALID", "INVALID")
    assert (said["full"], said["min_seconds"]) == (False, 0.1)
    assert said["logs"] == str(tmp_path / "logs")
    assert {"mlperf_log_summary.txt", "mlperf_log_detail.txt"} <= {
        file.name for file in (tmp_path / "logs").iterdir()
    }
    assert len(found.seconds) == len(runner.seen) > 0
    assert found.started == sorted(found.started)
    assert all(value >= 0 for value in found.seconds)
    assert all(len(batch) == size for batch in runner.seen)
    version = said["loadgen"].split()[0]
    if version in SEEDS:
        assert tuple(said["seeds"].values()) == SEEDS[version]
    samples = {index for batch in runner.seen for index in batch}
    # As many as LoadGen drew, from the whole library; of 20 queries some are alike.
    assert samples <= set(range(16))
    assert len(samples) >= 8
    if name == "Offline":
        # 200 a second for a tenth of a second, and LoadGen's tenth more; the last batch is filled.
        assert len(runner.seen) == -(-22 // 3)
        assert said["samples_per_s"] > 0
    else:
        assert said["queries"] == len(runner.seen)
        assert said["percentiles_s"]["50"] <= said["percentiles_s"]["99"]


def test_the_same_seeds_ask_for_the_same_images(tmp_path: Path) -> None:
    seen = []
    for turn in range(2):
        with Quick() as runner:
            plan = Plan("throughput", 0.1, rate=500.0)
            mlperf.run(runner, IMAGES, plan, tmp_path / str(turn))
        seen.append(runner.seen)
    assert seen[0] == seen[1]
    assert seen[0] != sorted(seen[0])


def test_what_a_servers_queries_wait_for_others_is_in_their_latency(tmp_path: Path) -> None:
    """200 a second come where 100 can end, so the last of 0.5 s waits for about as long; LoadGen,
    which counts from when it was to come, says the same."""
    plan = Plan("server", 0.5, rate=200.0, bound_s=10.0)
    with Slow() as runner:
        found, said = mlperf.run(runner, IMAGES, plan, tmp_path / "logs")
    p99 = statistics.percentile(sorted(found.seconds), 99)
    assert p99 > 0.2
    assert p99 == pytest.approx(said["percentiles_s"]["99"], rel=0.1)


def settings(loadgen: Any, **changes: Any) -> Any:
    plan = Plan(**{"scenario": "latency", "seconds": 5.0, **changes})
    return mlperf._System(loadgen, Quick(), IMAGES, plan, lambda: 0.0).settings()


def test_rules_are_loadgens_own(loadgen: Any) -> None:
    full = settings(loadgen, full=True)
    assert full.min_duration_ms == 600_000
    assert full.single_stream_target_latency_percentile == 0.9
    assert settings(loadgen, full=True, seconds=900.0).min_duration_ms == 900_000
    many = settings(loadgen, scenario="multistream", full=True)
    assert (many.min_query_count, many.multi_stream_samples_per_query) == (662, 8)
    assert many.multi_stream_target_latency_percentile == 0.99
    assert settings(loadgen, scenario="throughput", full=True).min_query_count == 24_576
    served = settings(loadgen, scenario="server", rate=7.0, bound_s=0.25)
    assert (served.server_target_qps, served.server_target_latency_ns) == (7.0, 250_000_000)
    assert served.server_target_latency_percentile == 0.99


def test_short_runs_are_as_long_as_asked(loadgen: Any) -> None:
    short = settings(loadgen, seconds=0.5, expected_s=0.04)
    assert (short.min_duration_ms, short.min_query_count) == (500, 1)
    assert short.single_stream_expected_latency_ns == 20_000_000


PROGRAM = """
import signal, sys, threading, _thread
# What runs in the background is born deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {here!r})
from pathlib import Path
from test_mlperf import IMAGES, Quick, Slow
from vggdeploy.benchmarks import mlperf
from vggdeploy.errors import RunnerError, VggdeployError

class Broken({base}):
    def _infer(self, batch):
        if len(self.seen) == 20:
            {what}
        return super()._infer(batch)

plan = mlperf.Plan({scenario!r}, {seconds}, rate={rate}, bound_s=1.0)
with Broken() as runner:
    try:
        found, said = mlperf.run(runner, IMAGES, plan, Path({logs!r}))
    except VggdeployError as error:
        print("error", error)
        raise SystemExit(error.exit_code)
print(found.partial, len(found.seconds) == len(runner.seen) >= 20, said["result"])
raise SystemExit(130)
"""


@pytest.mark.parametrize(
    ("scenario", "base", "seconds", "rate"),
    [
        ("latency", "Quick", 600.0, 100.0),
        ("server", "Quick", 600.0, 100.0),
        # All have come by then, and most wait.
        ("server", "Slow", 0.1, 1000.0),
        ("throughput", "Quick", 600.0, 100.0),
    ],
)
@pytest.mark.parametrize(
    ("what", "said", "code"),
    [
        (
            "_thread.interrupt_main()",
            "True True INVALID",
            130,
        ),
        (
            "raise RunnerError('gone', got=0, expected=1, fix='mend it')",
            "error gone: got 0, expected 1 -- mend it",
            2,
        ),
    ],
    ids=["ctrl-c", "error"],
)
def test_a_run_that_ends_early_ends_the_process_in_order(
    tmp_path: Path,
    scenario: str,
    base: str,
    seconds: float,
    rate: float,
    what: str,
    said: str,
    code: int,
) -> None:
    """In the middle of ten minutes: LoadGen has no way to stop, and crashes in its destructors."""
    from pathlib import Path as Place

    program = PROGRAM.format(
        here=str(Place(__file__).parent),
        what=what,
        scenario=scenario,
        base=base,
        seconds=seconds,
        rate=rate,
        logs=str(tmp_path / "logs"),
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == said, done.stderr
    assert done.returncode == code, done.stderr


def test_without_loadgen_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingError, match=r"pip install 'vggdeploy\[mlperf\]'"):
        mlperf.available()


SUMMARY = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.

================================================
Additional Stats
================================================
Result is : VALID
"""

DETAIL = """
:::MLLOG {"key": "loadgen_version", "value": "6.0.17 @ d61"}
:::MLLOG {"key": "effective_scenario", "value": "Server"}
:::MLLOG {"key": "effective_qsl_rng_seed", "value": 1}
:::MLLOG {"key": "effective_sample_index_rng_seed", "value": 2}
:::MLLOG {"key": "effective_schedule_rng_seed", "value": 3}
:::MLLOG {"key": "a message that is
:::MLLOG {"key": "result_validity", "value": "INVALID"}
:::MLLOG {"key": "early_stopping_result", "value": " * Early stopping 90.0th percentile estimate: 2000000  * Early stopping 99.0th percentile estimate: 3500000"}
:::MLLOG {"key": "result_query_count", "value": 190}
:::MLLOG {"key": "result_completed_samples_per_sec", "value": 187.5}
:::MLLOG {"key": "result_mean_latency_ns", "value": 3000000}
:::MLLOG {"key": "result_50.00_percentile_latency_ns", "value": 2000000}
:::MLLOG {"key": "result_99.90_percentile_latency_ns", "value": 9000000}
:::MLLOG {"key": "num_errors", "value": 2}
"""


def test_logs_are_read(tmp_path: Path) -> None:
    (tmp_path / mlperf_log.SUMMARY).write_text(SUMMARY)
    (tmp_path / mlperf_log.DETAIL).write_text(DETAIL)
    assert mlperf_log.parse(tmp_path) == {
        "scenario": "Server",
        "result": "INVALID",
        "because": ["Performance constraints satisfied", "Early stopping satisfied"],
        "percentiles_s": {"50": 0.002, "99.9": 0.009},
        "mean_s": 0.003,
        "early_stopping_s": {"90": 0.002, "99": 0.0035},
        "samples_per_s": 187.5,
        "queries": 190,
        "seeds": {"qsl": 1, "sample_index": 2, "schedule": 3},
        "loadgen": "6.0.17 @ d61",
        "errors": 2,
    }


def test_percentiles_of_queries_come_before_those_of_samples(tmp_path: Path) -> None:
    (tmp_path / mlperf_log.SUMMARY).write_text(SUMMARY)
    entry = ':::MLLOG {"key": "result_50.00_percentile_per_query_latency_ns", "value": 16000000}\n'
    mean = ':::MLLOG {"key": "result_mean_query_latency_ns", "value": 17000000}\n'
    (tmp_path / mlperf_log.DETAIL).write_text(DETAIL + entry + mean)
    found = mlperf_log.parse(tmp_path)
    assert found["percentiles_s"] == {"50": 0.016}
    assert found["mean_s"] == 0.017


@pytest.mark.parametrize(
    ("summary", "detail", "said"),
    [
        (SUMMARY, "", "not of a whole run"),
        ("", DETAIL, "not of a whole run"),
        (SUMMARY.replace("INVALID", "VALID"), DETAIL, "'VALID' in .*'INVALID' in"),
        (None, DETAIL, "left no mlperf_log_summary.txt"),
    ],
)
def test_logs_of_anything_else(tmp_path: Path, summary: str | None, detail: str, said: str) -> None:
    if summary is not None:
        (tmp_path / mlperf_log.SUMMARY).write_text(summary)
    (tmp_path / mlperf_log.DETAIL).write_text(detail)
    with pytest.raises(ResultError, match=said):
        mlperf_log.parse(tmp_path)
