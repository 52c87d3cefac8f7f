"""Forms of JSON: what does not fit is named by its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vggdeploy import forms
from vggdeploy.forms import ABSENT

FORM = {
    "name": str,
    "layers": [{"macs": forms.count, "kind": (ABSENT, str)}],
    "nodes": (ABSENT, None, {str: str}),
    "share": (ABSENT, float),
}
WHOLE: dict[str, Any] = {
    "name": "x",
    "layers": [{"macs": 0}, {"macs": 3, "kind": "conv", "more": []}],
    "nodes": {"a": "b"},
    "share": 1,
}


def test_what_fits_has_no_misfit() -> None:
    assert forms.misfit(WHOLE, FORM) is None
    assert forms.misfit({"name": "", "layers": [], "nodes": None, "more": 1}, FORM) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, "name 1"),
        ({"name": None}, "name None"),
        ({"layers": {}}, "layers {}"),
        ({"layers": [3]}, "layers[0] 3"),
        ({"layers": [{"macs": 1}, {"macs": -1}]}, "layers[1].macs -1"),
        ({"layers": [{"macs": True}]}, "layers[0].macs True"),
        ({"layers": [{"macs": 1.0}]}, "layers[0].macs 1.0"),
        ({"layers": [{"macs": 1 << 63}]}, "layers[0].macs 9223372036854775808"),
        ({"layers": [{}]}, "layers[0].macs left out"),
        ({"layers": [{"macs": 1, "kind": None}]}, "layers[0].kind None"),
        ({"nodes": {"a": 1}}, "nodes['a'] 1"),
        ({"nodes": []}, "nodes []"),
        ({"share": True}, "share True"),
        ({"share": "x" * 1000}, "share 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    assert forms.misfit({**WHOLE, **change}, FORM) == said


@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_another_kind_of_value_is_shown(value: object) -> None:
    assert forms.misfit(value, FORM) == repr(value)


def test_counts_are_whole_and_not_below_zero() -> None:
    for text in ("0", "1", str((1 << 63) - 1)):
        assert forms.count(json.loads(text)), text
        assert forms.positive(json.loads(text)) == (text != "0")
    for text in ("NaN", "Infinity", "-1", "0.5", "1e3", "true", '"1"', "null", "1" + "0" * 400):
        assert not forms.count(json.loads(text)), text
        assert not forms.positive(json.loads(text)), text
