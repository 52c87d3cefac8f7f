"""A report as Markdown: the page's own words and figures, and nothing of a result is markup."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
import report_page
import report_results as made

from vggdeploy.report import markdown, model, page, reading
from vggdeploy.report.markdown import escape

if TYPE_CHECKING:
    from pathlib import Path


def of(tmp_path: Path, *found: dict[str, Any]) -> str:
    return markdown.render(model.report(reading.read(made.written(tmp_path, *found))))


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of every table."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append([])
        inside = True
        found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


SEVERAL = [made.full(), made.full("fp32", 1, 0.0061), made.compare(), made.tune()]


@pytest.mark.parametrize("found", [[made.full()], [made.failed()], SEVERAL])
def test_tables_are_whole(tmp_path, found):
    text = of(tmp_path, *found)
    for rows in tables(text):
        assert len({len(row) for row in rows}) == 1
        assert all(re.fullmatch(r"-{3}|--:", cell) for cell in rows[1])
        assert len(rows) > 2


def test_verdict_comes_first(tmp_path):
    text = of(tmp_path, made.failed())
    assert text.index("✗ Fail") < text.index("Emulated") < text.index("## Parity")


def test_headings_are_in_order(tmp_path):
    levels = [len(h) for h in re.findall(r"^(#+) ", of(tmp_path, *SEVERAL), re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("found", [[made.full()], SEVERAL])
def test_it_has_every_figure_of_the_page(tmp_path, found):
    pytest.importorskip("jinja2")
    given = reading.read(made.written(tmp_path, *found))
    root = report_page.parse(page.render(model.report(given)))
    text = re.sub(r"\\(.)", r"\1", markdown.render(model.report(given)))
    missing = [e.text for e in root.all("data") if e.text not in text]
    assert not missing


def test_same_results_same_text(tmp_path):
    assert of(tmp_path, *SEVERAL) == of(tmp_path, *SEVERAL)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"), ("<script>", r"\<script\>"), ("`x`", r"\`x\`"), ("*a* _b_", r"\*a\* \_b\_"),
        ("[a](b)", r"\[a\](b)"), ("# a", r"\# a"), ("- a", r"\- a"), ("a & b", r"a \& b"),
        ("https://x.y", "https&#58;//x.y"), ("www.x.y", "www&#46;x.y"), ("1. a", "1\\. a"),
        ("@name", r"\@name"), ("plain words", "plain words"), ("~~a~~", r"\~\~a\~\~"),
        ("+ a", r"\+ a"), ("back\\slash", r"back\\slash"),
    ],
)  # fmt: skip
def test_texts_are_escaped(text, escaped):
    assert escape(text) == escaped


def test_names_of_bundles_break_no_table(tmp_path):
    run = made.full()
    evil = "a|b`c<script>\n| d | e |\n# f"
    for part in ("build", "verify", "bench"):
        run[part]["bundle"] = evil
    run["bench"]["advice"] = ["run `x` | y"]
    run["bench"].update(stable=False, unstable_because=[evil])
    text = of(tmp_path, run)
    spans = r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)"
    assert not re.search(r"(?<!\\)<script", re.sub(spans, "", text))
    assert r"\<script\>" in text
    for rows in tables(text):
        assert len({len(row) for row in rows}) == 1
    assert "``run `x` | y``" in text
    assert not re.search(r"^\| d \|", text, re.MULTILINE)
    assert not re.search(r"^# f", text, re.MULTILINE)
