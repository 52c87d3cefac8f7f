"""Forms of JSON that others may have written: what a value must look like before it is used.

A form is one of

- a type: ``str``, ``bool``, ``dict``, ``int`` (no bool), ``float`` (whole numbers too);
- ``None`` for null, and ``ABSENT`` for a key that is left out;
- ``[form]``, a list of such values;
- ``{"key": form}``, an object that has these keys and may have others;
- ``{str: form}``, an object of such values under any keys;
- a function of a value that says whether it is right;
- a tuple of forms, any of which will do.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

ABSENT = object()

_MOST = 1 << 63
"""No size, count or duration is as large."""


def count(value: object) -> bool:
    """A whole number that counts something."""
    return type(value) is int and 0 <= value < _MOST


def positive(value: object) -> bool:
    """A whole number above 0."""
    return type(value) is int and 0 < value < _MOST


def at(value: Any, path: Sequence[str]) -> Any:
    """What is there under these keys, one inside the other; None where one of them is not."""
    for key in path:
        value = value.get(key) if hasattr(value, "get") else None
    return value


def misfit(value: object, form: Any) -> str | None:
    """The first part of `value` that is not of `form`, by where it stands and what it is, such as
    ``layers[3].macs -1``; None where all is."""
    wrong = _misfit(value, form)
    return None if wrong is None else wrong.removeprefix(".").strip()


def _misfit(value: object, form: Any) -> str | None:
    if isinstance(form, tuple):
        # Of several forms the last one tells most of what is wrong.
        found = [_misfit(value, each) for each in form]
        return None if None in found else found[-1]
    if isinstance(form, list) and isinstance(value, list):
        parts = ((f"[{place}]", each, form[0]) for place, each in enumerate(value))
    elif isinstance(form, dict) and isinstance(value, dict) and str in form:
        parts = ((f"[{key!r:.40}]", each, form[str]) for key, each in value.items())
    elif isinstance(form, dict) and isinstance(value, dict):
        parts = ((f".{key}", value.get(key, ABSENT), each) for key, each in form.items())
    elif _is(value, form):
        return None
    else:
        return f" {'left out' if value is ABSENT else reprlib.repr(value)}"
    return next(
        (f"{where}{wrong}" for where, each, inner in parts if (wrong := _misfit(each, inner))), None
    )


def _is(value: object, form: Any) -> bool:
    if form is float:
        return type(value) in (int, float)
    if isinstance(form, type):
        return type(value) is form
    if callable(form):
        return bool(form(value))
    return value is form
