"""The README against the code: its budget table, its commands, its targets, its presets."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from vggdeploy import budget, config, preprocess, targets, topology
from vggdeploy.cli import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("row", budget.budget(topology.vgg()).layers, ids=lambda row: row.name)
def test_budget_row(row):
    output = "x".join(map(str, row.output))
    assert (
        f"| {row.name} | {row.kind} | {output} | {row.params:,} | {row.macs:,} "
        f"| {row.receptive_field} | {row.intensity:.1f} |" in README
    )


def test_totals():
    for network in (topology.vgg(), topology.alexnet()):
        assert f"{topology.total_params(network):,}" in README
        assert f"{topology.total_macs(network):,}" in README


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name):
    assert f"| `{name}` |" in README


@pytest.mark.parametrize("name", targets.REGISTRY)
def test_every_target_is_named(name):
    assert f"`{name}`" in README


def test_preprocessing_example_is_the_imagenet_preset():
    example = preprocess.from_mapping(tomllib.loads(BLOCKS[0]), where="README")
    assert example == preprocess.PRESETS["imagenet"]


def test_settings_example_is_taken():
    takes = {"build": ["target", "calib_images"], "gate": ["min_agreement", "max_drop"]}
    found = config.defaults(tomllib.loads(BLOCKS[1]), takes, "README")
    assert found["build"] == {"target": "ov-int8", "calib_images": 256}
    assert found["gate"] == {"min_agreement": 0.995, "max_drop": 0.005}


@pytest.mark.parametrize("goal", ["demo", "test", "check", "figures"])
def test_make_goals_exist(goal):
    assert re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_nothing_is_left_to_be_filled_in():
    assert not re.search(r"\b[A-Z]+_TABLE\b|TODO|TBD", README)
