"""What a person sees: in a log, a line now and then in place of a bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vggdeploy.terminal import Terminal, duration


@pytest.mark.parametrize(
    ("seconds_an_item", "lines"),
    [(1.0, ["looking 10/25", "looking 20/25"]), (0.1, []), (12.0, ["looking 1/2", "looking 2/2"])],
)
def test_a_log_hears_every_ten_seconds(monkeypatch, seconds_an_item, lines):
    now = [0.0]
    monkeypatch.setattr("vggdeploy.terminal.time.perf_counter", lambda: now[0])
    log = io.StringIO()
    terminal = Terminal(Console(file=log))
    total = 25 if seconds_an_item < 12 else 2
    seen = []
    for item in terminal.track(range(total), total, "looking"):
        seen.append(item)
        now[0] += seconds_an_item
    assert seen == list(range(total))
    assert log.getvalue().splitlines() == lines


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.50 s"), (0.0381, "38.10 ms"), (2.5e-5, "25.0 us"), (1, "1.00 s")]
)
def test_durations_are_in_the_unit_that_suits_them(value, text):
    assert duration(value) == text
