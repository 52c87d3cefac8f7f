"""What a result says beyond its figures: the commands that it advises."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vggdeploy import benching, cli
from vggdeploy.benchmarks import outcome
from vggdeploy.benchmarks.options import BenchOptions

BUNDLE = Path("my bundles/vgg16")


def understood(command: str) -> BenchOptions:
    """The options that a shell and the command line make of a command."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("vggdeploy", "bench")
    context = typer.main.get_command(cli.app).commands[name].make_context(name, words)  # type: ignore[attr-defined]
    assert context.params["bundle"] == BUNDLE
    return benching.options(context.params)


@pytest.mark.parametrize(
    ("options", "advice", "changes"),
    [
        ({}, "--seconds 30", {"seconds": 30.0}),
        ({"seconds": 30.0}, "--seconds 30", {"seconds": 90.0}),
        ({"device": "GPU.1", "seconds": 9.0}, "--queries 30", {"queries": 30}),
        ({"precision": 0.005, "seconds": 60.0}, "--seconds 300", {"seconds": 300.0}),
        ({"tuned": False, "batch": 4, "batches": (1, 2)}, "--seconds 30", {"seconds": 30.0}),
        ({"scenario": "throughput", "free_batch": False}, "--queries 30", {"queries": 30}),
        ({"scenario": "throughput"}, "--queries 30", {"queries": 30}),
        ({"scenario": "multistream", "queries": 9}, "--queries 368", {"queries": 368}),
        (
            {"scenario": "server", "rate": 16.0, "seed": 3, "queries": 400},
            "--rate 6.4",
            {"rate": 6.4},
        ),
        ({"scenario": "server", "p99_bound": 0.125}, "--rate 6.4", {"rate": 6.4}),
    ],
)
def test_an_advised_command_measures_the_same_but_for_the_advice(
    options: dict[str, Any], advice: str, changes: dict[str, Any]
) -> None:
    free = "batch" not in options
    chosen = BenchOptions(**{"tuned": True, "free_batch": free, **options})
    found = understood(outcome.command(BUNDLE, chosen, advice))
    # A single image is one whether or not it was asked for, but where tuning may choose.
    same = {"free_batch": chosen.free_batch if chosen.scenario == "throughput" else True}
    if chosen.batch != 1:
        same = {"free_batch": False}
    assert found == replace(chosen, **same, **changes)


def test_loadgen_is_advised_a_whole_run_and_no_number_of_queries() -> None:
    chosen = BenchOptions(mlperf=True, tuned=True, device="GPU", logs=Path("logs"))
    for advice in ("--queries 30", "--seconds 30", "--full"):
        command = outcome.command(BUNDLE, chosen, advice)
        assert command == "vggdeploy bench 'my bundles/vgg16' --device GPU --mlperf --full"
        assert understood(command).full


def test_what_is_no_flag_is_a_command_by_itself() -> None:
    assert outcome.command(BUNDLE, BenchOptions(), "sensors") == "sensors"
