"""Settings files: which one applies, what it may hold, and what wins."""

import pytest

from vggdeploy import config
from vggdeploy.errors import ConfigError

BUILD = {"target": "text", "calib_images": "whole", "seed": "whole", "json": "text"}
GATE = {"min_agreement": "number", "max_drop": "number", "json": "text"}
COMMANDS = {"build": {**BUILD, "force": "switch", "tags": "texts"}, "gate": GATE}
COMMANDS["run"] = {**BUILD, **GATE}


def write(folder, own=None, shared=None):
    for name, text in ((config.OWN, own), (config.SHARED, shared)):
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def defaults(**settings):
    return config.defaults(settings, COMMANDS, "vggdeploy.toml")


def test_without_a_file_there_are_no_settings(tmp_path):
    assert config.load(tmp_path) == ({}, "")
    write(tmp_path, shared='[project]\nname = "x"\n')
    assert config.load(tmp_path) == ({}, "")


def test_an_empty_file_of_its_own_wins_too(tmp_path):
    write(tmp_path, own="", shared='[tool.vggdeploy]\ntarget = "ov-int8"\n')
    assert config.load(tmp_path) == ({}, str(tmp_path / "vggdeploy.toml"))


def test_settings_do_not_vanish_where_their_place_is_taken(tmp_path):
    (tmp_path / "vggdeploy.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="cannot be read: got a link to nothing"):
        config.load(tmp_path)
    (tmp_path / "vggdeploy.toml").unlink()
    (tmp_path / "vggdeploy.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: got no plain file"):
        config.load(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path):
    (tmp_path / config.OWN).write_bytes(b"\xef\xbb\xbfseed = 1\n")
    assert config.load(tmp_path)[0] == {"seed": 1}


def test_a_key_of_parts_without_end_is_refused_before_it_is_read(tmp_path):
    """Of 100,000 parts Python's reader makes all that they begin with: 12 GB."""
    quoted = "a" + '."\u2028#"' * 200
    for text in (
        quoted + " = 1",
        "a" + ".a" * 200 + " = 1",
        "[a" + '."="' * 200 + "]",
        'x = {"#" = 1, a' + ".a" * 200,
    ):
        write(tmp_path, own=f"target = 'ov-int8'\n{text}\n")
        with pytest.raises(ConfigError, match="got a line of more than 128 dots"):
            config.load(tmp_path)
    write(tmp_path, own="# " + "." * 200 + "\nbatch = 4\n")
    assert config.load(tmp_path)[0]["batch"] == 4


@pytest.mark.parametrize(
    "digits", ["0x" + "f" * 40_000, "9" * 40_000, "0x8" + "0" * 15, str(-(2**63) - 1)]
)
@pytest.mark.parametrize("form", ["seed = {}", "[gate]\nmax_drop = [1, {{ x = {} }}]"])
def test_a_whole_number_beyond_64_bits_is_refused(tmp_path, form, digits):
    write(tmp_path, own=form.format(digits))
    with pytest.raises(ConfigError, match="got a whole number of more than 64 bits, expected TOML"):
        config.load(tmp_path)


def test_whole_numbers_of_64_bits_are_taken(tmp_path):
    write(tmp_path, own=f"a = {2**63 - 1}\nb = {-(2**63)}\n")
    assert config.load(tmp_path)[0] == {"a": 2**63 - 1, "b": -(2**63)}


def test_a_value_in_tables_in_tables_is_refused_as_any_other(tmp_path):
    write(tmp_path, own="[build]\nseed" + ".a" * 100 + " = 1\n")
    settings, _ = config.load(tmp_path)
    with pytest.raises(ConfigError, match=r"\[build\] seed is wrong: got \{'a'"):
        defaults(**settings)


def test_settings_that_cannot_be_looked_for_do_not_vanish(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.lstat", denied)
    with pytest.raises(ConfigError, match=r"vggdeploy\.toml cannot be read: got .*denied"):
        config.load(tmp_path)


def test_pyproject_has_them_in_its_tool_table(tmp_path):
    write(
        tmp_path,
        shared='[tool.vggdeploy]\ntarget = "ov-int8"\n[tool.vggdeploy.gate]\nmax_drop = 1\n',
    )
    expected = {"target": "ov-int8", "gate": {"max_drop": 1}}
    assert config.load(tmp_path) == (expected, str(tmp_path / "pyproject.toml"))


def test_a_file_of_its_own_wins(tmp_path):
    write(tmp_path, own="seed = 1\n", shared="[tool.vggdeploy]\nseed = 2\ntarget = 'x'\n")
    assert config.load(tmp_path) == ({"seed": 1}, str(tmp_path / "vggdeploy.toml"))


@pytest.mark.parametrize("text", ["seed = ", "seed 1", "[gate", "\x00"])
@pytest.mark.parametrize("place", ["own", "shared"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(tmp_path, place, text):
    write(tmp_path, **{place: text})
    name = config.OWN if place == "own" else config.SHARED
    with pytest.raises(ConfigError, match=f"settings file .*{name} cannot be read"):
        config.load(tmp_path)


def test_a_file_in_another_encoding_is_an_error(tmp_path):
    (tmp_path / config.OWN).write_bytes("# é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\nvggdeploy = 3", "[tool]\nvggdeploy = []"])
def test_a_tool_table_that_is_none_is_an_error(tmp_path, text):
    write(tmp_path, shared=text)
    with pytest.raises(ConfigError, match=r"pyproject\.toml"):
        config.load(tmp_path)


def test_a_key_goes_to_every_command_that_takes_it():
    assert defaults(seed=7, min_agreement=0.9) == {
        "build": {"seed": 7},
        "gate": {"min_agreement": 0.9},
        "run": {"seed": 7, "min_agreement": 0.9},
    }


def test_a_commands_own_table_wins_in_either_order():
    expected = {"build": {"seed": 2}, "gate": {}, "run": {"seed": 1}}
    assert defaults(seed=1, build={"seed": 2}) == expected
    assert defaults(build={"seed": 2}, seed=1) == expected


def test_the_gates_table_holds_for_run_too():
    found = defaults(max_drop=0.5, gate={"max_drop": 0.01})
    assert (found["gate"], found["run"]) == ({"max_drop": 0.01}, {"max_drop": 0.01})


def test_runs_own_table_wins_over_the_gates_in_either_order():
    tables = {"gate": {"max_drop": 0.01}, "run": {"max_drop": 0.02}}
    for order in (("gate", "run"), ("run", "gate")):
        found = defaults(**{name: tables[name] for name in order})
        assert found["gate"] == {"max_drop": 0.01}
        assert found["run"] == {"max_drop": 0.02}, order


def test_only_the_bounds_of_the_gates_table_hold_for_run():
    # Else two commands would write their results to one file.
    assert defaults(gate={"json": "gate.json"})["run"] == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calib_image": 3}, "unknown key: got 'calib_image', expected perhaps 'calib_images'"),
        ({"calib-images": 3}, "unknown key: got 'calib-images', expected perhaps 'calib_images'"),
        ({"zzz": 3}, "unknown key: got 'zzz', expected one of calib_images, force, json"),
        ({"buld": {"seed": 1}}, "unknown table: got 'buld', expected perhaps 'build'"),
        (
            {"gate": {"max_dorp": 1}},
            r"unknown key in \[gate\]: got 'max_dorp', expected perhaps 'max_drop'",
        ),
        ({"build": {"max_drop": 1}}, r"unknown key in \[build\]: got 'max_drop'"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_known(settings, said):
    with pytest.raises(ConfigError, match=r"^vggdeploy\.toml: " + said):
        defaults(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gate": 3}, r"gate is wrong: got 3, expected a table \[gate\]"),
        (
            {"gate": {"max_drop": "0.1"}},
            r"\[gate\] max_drop is wrong: got '0.1', expected a number",
        ),
        ({"gate": {"max_drop": True}}, r"\[gate\] max_drop is wrong: got True, expected a number"),
        (
            {"build": {"force": "yes"}},
            r"\[build\] force is wrong: got 'yes', expected true or false",
        ),
        ({"force": 1}, "force is wrong: got 1, expected true or false"),
        ({"seed": 1.5}, "seed is wrong: got 1.5, expected a whole number"),
        ({"seed": False}, "seed is wrong: got False, expected a whole number"),
        ({"target": 3}, "target is wrong: got 3, expected text"),
        ({"target": ""}, "target is wrong: got '', expected text in quotes, not empty"),
        ({"tags": "a"}, "tags is wrong: got 'a', expected a list of texts"),
        ({"tags": ["a", 1]}, "tags is wrong: got .*, expected a list of texts"),
    ],
)
def test_nothing_is_made_of_a_value_of_another_kind(settings, said):
    with pytest.raises(ConfigError, match=r"^vggdeploy\.toml: " + said):
        defaults(**settings)


def test_a_whole_number_is_a_number_too():
    assert defaults(max_drop=1)["gate"] == {"max_drop": 1}
    assert defaults(tags=[], force=True)["build"] == {"tags": [], "force": True}
