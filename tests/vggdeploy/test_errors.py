"""The error tree: one line that says what, got, expected and the fix; and exit codes."""

import pytest

from vggdeploy import errors

KINDS = [
    errors.ConfigError,
    errors.DatasetError,
    errors.WeightsError,
    errors.ModelError,
    errors.CalibrationError,
    errors.BundleError,
    errors.ResultError,
    errors.BoundError,
    errors.RunnerError,
    errors.MissingError,
    errors.PartialError,
]


def test_a_message_has_its_four_parts_in_order():
    error = errors.ConfigError("the batch is wrong", got=0, expected="1 or more", fix="mend it")
    assert str(error) == "the batch is wrong: got 0, expected 1 or more -- mend it"
    assert (error.what, error.got, error.expected, error.fix) == (
        "the batch is wrong",
        0,
        "1 or more",
        "mend it",
    )


@pytest.mark.parametrize("left_out", ["got", "expected", "fix"])
def test_no_part_can_be_left_out(left_out):
    parts = {"got": 1, "expected": 2, "fix": "mend it"}
    del parts[left_out]
    with pytest.raises(TypeError, match=f"'{left_out}'"):
        errors.VggdeployError("broken", **parts)


@pytest.mark.parametrize(
    ("got", "shown"),
    [
        (False, "False"),
        (0, "0"),
        (None, "nothing"),
        ("", "nothing"),
        (TimeoutError(), "TimeoutError"),
        (OSError("gone"), "gone"),
    ],
)
def test_what_was_got_is_shown_where_it_says_nothing_too(got, shown):
    error = errors.VggdeployError("broken", got=got, expected="more", fix="mend it")
    assert str(error) == f"broken: got {shown}, expected more -- mend it"


def test_a_vendors_many_lines_become_one():
    vendor = RuntimeError("first\n\n  second\r\n\tthird")
    error = errors.ModelError(
        "the graph\nfails", got=vendor, expected="a\ngraph", fix="look\nat it"
    )
    assert str(error) == "the graph fails: got first second third, expected a graph -- look at it"
    assert len(str(error).splitlines()) == 1


def test_a_missing_thing_ends_in_3_a_bound_in_1_and_ctrl_c_in_130():
    codes = {errors.MissingError: 3, errors.BoundError: 1, errors.PartialError: 130}
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {
        kind.__name__: codes.get(kind, 2) for kind in KINDS
    }
    assert (errors.EXIT_OK, errors.EXIT_GATE) == (0, 1)
    assert errors.VggdeployError.exit_code == errors.EXIT_INPUT == 2
    assert errors.EXIT_MISSING == 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_direct_child_and_drawn_in_the_tree(kind):
    assert kind.__bases__ == (errors.VggdeployError,)
    assert kind.__name__ in errors.__doc__


def test_the_tree_draws_no_kind_that_is_not_there():
    drawn = {
        line.split()[1]
        for line in errors.__doc__.splitlines()
        if line.strip().startswith(("├──", "└──"))
    }
    assert drawn == {kind.__name__ for kind in KINDS}


def test_a_missing_package_names_the_command_that_installs_it():
    error = errors.missing_package("openvino", "openvino", "the target ov-int8")
    assert isinstance(error, errors.MissingError)
    assert "the target ov-int8 needs the package openvino: got none installed" in str(error)
    assert error.fix == "pip install 'vggdeploy[openvino]'"
