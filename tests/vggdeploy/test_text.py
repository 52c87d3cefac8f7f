"""Text of others is shown without controlling the terminal that it is shown on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from vggdeploy import text
from vggdeploy.errors import BundleError
from vggdeploy.terminal import Terminal

PAINTS = "evil\x1b[2A\x1b[31mtrusted\x9b2K\r\n\x08\u202e\u200f\ud800"
SHOWN = "evil�[2A�[31mtrusted�2K  ����"


def test_control_characters_are_replaced_one_by_one() -> None:
    assert text.printable(PAINTS) == SHOWN
    for kept in ("", "plain text", "ü é 漢 █ … 👩‍👩‍👧"):
        assert text.printable(kept) == kept


@pytest.mark.parametrize("length", [text.LONGEST, text.LONGEST + 1])
def test_clean_text_ends(length: int) -> None:
    cut = length > text.LONGEST
    assert text.clean("\x1b" * length) == "�" * text.LONGEST + "…" * cut


def test_an_error_says_others_words_without_their_controls() -> None:
    error = BundleError(f"bundle {PAINTS}", got=PAINTS, expected=PAINTS, fix=PAINTS)
    assert str(error).count("evil�[2A�[31mtrusted�2K") == 4
    assert not set(str(error)) & set("\x1b\x9b\x08\r\n\u202e")
    long = "x" * 1000
    assert long in str(BundleError("it", got=long, expected="less", fix="cut it"))


def test_a_terminal_is_not_controlled() -> None:
    page = io.StringIO()
    terminal = Terminal(Console(file=page, width=400))
    terminal.line(PAINTS)
    terminal.table((PAINTS, "two\nlines"), [(PAINTS, Text(PAINTS))], title=PAINTS)
    for _ in terminal.track([1], 1, PAINTS):
        pass
    said = page.getvalue()
    assert not set(said) & set("\x1b\x9b\x08\r\u202e")
    assert said.count("evil�[2A") == 5
    assert [line.split()[-1] for line in said.splitlines() if line.endswith(("two", "lines"))] == [
        "two", "lines",
    ]  # fmt: skip


def test_what_is_shown_is_no_markup() -> None:
    page = io.StringIO()
    terminal = Terminal(Console(file=page, width=100))
    terminal.table(("[red]a", "[/]"), [("[b]", "[/nothing]")], title="[/title]")
    for word in ("[red]a", "[/]", "[b]", "[/nothing]", "[/title]"):
        assert word in page.getvalue()
