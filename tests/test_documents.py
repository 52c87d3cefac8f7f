"""The README and the guides against the code: commands, flags, targets, presets, the budget."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from vggdeploy import budget, config, gpus, limits, policy, preprocess, targets, topology
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
    takes = {
        "build": {"target": "text", "calib_images": "whole"},
        "gate": {"min_agreement": "number", "max_drop": "number"},
    }
    settings, ratios, by_target = policy.split(tomllib.loads(BLOCKS[1]), targets.REGISTRY, "README")
    found = config.defaults(settings, takes, "README")
    assert found["build"] == {"target": "ov-int8", "calib_images": 256}
    assert found["gate"] == {"min_agreement": 0.99, "max_drop": 0.01}
    assert ratios == {"p50": 1.05, "engine_bytes": 1.01}
    assert by_target == {"ov-int8-w4": {"min_agreement": 0.98}}


@pytest.mark.parametrize("goal", ["demo", "test", "test-cuda", "check", "figures", "overhead"])
def test_make_goals_exist(goal):
    assert re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_nothing_is_left_to_be_filled_in():
    assert not re.search(r"\b[A-Z]+_TABLE\b|TODO|TBD", README)


GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]


def vggdeploy_lines(page):
    """What follows `vggdeploy` in a page's code blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4,}vggdeploy +(.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_flags_exist(page):
    group = typer.main.get_command(app)
    for words in vggdeploy_lines(page):
        command = group.commands[words[0]]
        if inner := getattr(command, "commands", None):
            command = inner[words[1]]
        known = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert set(flags) <= known, words
        for flag, value in itertools.pairwise(words):
            if flag == "--target":
                assert value in targets.REGISTRY


@pytest.mark.parametrize(
    ("page", "commands"),
    [
        ("jetson.md", {"build", "verify", "gate", "compile", "bench", "doctor"}),
        ("rtx.md", {"build", "verify", "compile", "bench", "doctor"}),
        ("dla.md", {"build", "compile", "verify", "bench", "calibrate"}),
        ("tensorrt-versions.md", {"compile"}),
        ("ci.md", {"build", "compile", "verify", "bench", "gate", "baseline"}),
        ("trust.md", {"bundle", "verify", "bench", "gate", "tune", "compile"}),
    ],
)
def test_guides_show_the_commands(page, commands):
    """What the test above holds to the code is there at all."""
    assert {words[0] for words in vggdeploy_lines(ROOT / "docs" / page)} == commands


def test_every_command_of_a_group_is_in_the_guide():
    shown = {
        words[1] for words in vggdeploy_lines(ROOT / "docs" / "trust.md") if words[0] == "bundle"
    }
    group = typer.main.get_command(app).commands["bundle"]
    assert shown == set(group.commands)


def test_the_limits_of_the_guide_are_those_of_the_code():
    page = " ".join((ROOT / "docs" / "trust.md").read_text(encoding="utf-8").split())
    for words in (
        f"a manifest of {limits.MANIFEST_BYTES >> 20} MiB",
        f"{limits.BUNDLE_FILES} files and {limits.BUNDLE_BYTES // 10**9} GB in a bundle",
        f"{limits.PACKED_RATIO} times in unpacking",
        f"other JSON of a bundle {limits.JSON_BYTES >> 20} MiB",
        f"results {limits.RESULT_BYTES >> 20} MiB",
        f"settings {limits.TOML_BYTES >> 10} KiB",
        f"a calibration cache {limits.TRT_CACHE_BYTES >> 20} MiB",
        f"a header of {limits.SAFETENSORS_HEADER_BYTES >> 20} MiB and {limits.TENSORS:,} tensors",
        f"a graph of {(limits.ONNX_BYTES + 1) >> 30} GiB with {limits.ONNX_PARTS:,} parts",
        f"2^{limits.ELEMENTS.bit_length() - 1} elements",
        f"{limits.PIXELS:,} pixels",
    ):
        assert words in page, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_files_and_modules_exist(page):
    text = page.read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"vggdeploy\[([\w,-]+)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(
        r"`((?:vggdeploy|benchmarks|calib|export|tests|docs)/[\w./]+\.\w+)`", text
    ):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m (vggdeploy[\w.]+)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_every_guide_is_linked_from_the_readme():
    for guide in GUIDES:
        assert f"(docs/{guide.name})" in README


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.7", "8.9", "11.0", "12.0", "12.1"])
def test_capabilities_of_the_guides_are_in_the_table_of_rates(capability):
    assert capability in gpus.RATES
    assert any(f"| {capability} |" in page.read_text(encoding="utf-8") for page in GUIDES)
