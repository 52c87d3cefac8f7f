"""The page of a report: well-formed, whole figures, escaped, the same every time, never huge."""

# ruff: noqa: RUF001 - the signs that a person reads, not those of code.

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_page
import report_results as made

from vggdeploy import report
from vggdeploy.report import model, page, reading

pytest.importorskip("jinja2")

EVIL = '<script>alert("1")</script><b onload=x>&\'`|\u202e\x00\ud800'


def page_of(tmp_path: Path, *found: dict[str, Any]) -> str:
    return page.render(model.report(reading.read(made.written(tmp_path, *found))))


def several() -> list[dict[str, Any]]:
    return [made.full(), made.full("fp32", 1, 0.0061), made.compare(), made.tune()]


CASES = {
    "as it is": lambda: [made.run()],
    "full": lambda: [made.full()],
    "failed": lambda: [made.failed()],
    "several": several,
    "bench": lambda: [made.bench()],
    "verify": lambda: [made.run()["verify"]],
    "build": lambda: [made.run()["build"]],
    "gate": lambda: [made.run()["gate"]],
    "tune": lambda: [made.tune()],
    "compare": lambda: [made.compare()],
    "two batches": lambda: [made.bench(), {**made.bench(seed=2), "batch": 8}],
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return CASES[request.param]()


def at(result: Any, pointer: str) -> Any:
    """What a percent-encoded JSON Pointer (RFC 6901, section 6) names."""
    for key in pointer.split("/")[1:]:
        key = urllib.parse.unquote(key, errors="surrogatepass")
        key = key.replace("~1", "/").replace("~0", "~")
        result = result[int(key)] if isinstance(result, list) else result[key]
    return result


def test_well_formed_with_unique_ids_that_are_there(tmp_path, case):
    root = report_page.parse(page_of(tmp_path, *case))
    ids = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in root.all():
        for name in ("aria-labelledby", "aria-describedby"):
            for named in element.attributes.get(name, "").split():
                assert named in ids, named
        if element.tag == "a":
            assert element.attributes["href"].removeprefix("#") in ids


def test_headings_are_in_order_and_landmarks_named(tmp_path, case):
    root = report_page.parse(page_of(tmp_path, *case))
    levels = [int(e.tag[1]) for e in root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(root.all("main")) == len(root.all("header")) == len(root.all("footer")) == 1
    assert root.all("nav")[0].attributes["aria-label"]
    assert all("aria-labelledby" in e.attributes for e in root.all("section"))
    assert root.all("html")[0].attributes["lang"] == "en"
    first = root.all("a")[0]
    assert first.attributes["href"] == "#main"
    assert root.all("section")[0].attributes["id"] == "verdict"


def test_every_plot_has_words_and_a_table(tmp_path, case):
    root = report_page.parse(page_of(tmp_path, *case))
    figures = root.all("figure")
    plots = [e for e in root.all("svg") if e.attributes.get("role") == "img"]
    assert len(plots) == len(figures)
    for figure in figures:
        (plot,) = (e for e in figure.all("svg") if e.attributes.get("role") == "img")
        title, words = plot.all("title")[0].text, plot.all("desc")[0].text
        assert len(title) > 5
        assert re.search(r"\d", words), "the alternative says what was found"
        (table,) = figure.all("table")
        assert table.within("details")
        assert table.all("tr")[1:], "rows"
        assert figure.all("figcaption")[0].text == title
    for e in root.all("svg"):
        if not e.within("svg"):
            assert e.attributes.get("role") == "img" or e.attributes["aria-hidden"] == "true"


def test_tables_have_captions_and_scopes(tmp_path, case):
    root = report_page.parse(page_of(tmp_path, *case))
    for table in root.all("table"):
        assert table.all("caption")[0].text
        columns = list(table.all("thead")[0].all("th", "td"))
        assert all(cell.attributes["scope"] == "col" for cell in columns)
        for row in table.all("tbody")[0].all("tr"):
            cells = row.all("th", "td")
            assert len(cells) == len(columns)
            assert cells[0].tag == "th"
            assert cells[0].attributes["scope"] == "row"
            assert cells[0].text.strip()


def test_figures_are_the_jsons_own(tmp_path, case):
    """Each figure says where it is from, and is that number to the last digit."""
    paths = made.written(tmp_path, *case)
    root = report_page.parse(page.render(model.report(reading.read(paths))))
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    shown = [e for e in root.all("data") if "data-pointer" in e.attributes]
    assert shown
    for e in shown:
        expected = at(results[int(e.attributes["data-file"])], e.attributes["data-pointer"])
        assert json.loads(e.attributes["value"]) == expected
        assert type(json.loads(e.attributes["value"])) is type(expected)


MUST = [
    "/build/engine_bytes", "/build/stages/0/seconds", "/verify/parity/n",
    "/verify/parity/top1_agreement", "/verify/parity/cosine_mean", "/verify/parity/cosine_min",
    "/verify/parity/sqnr_db", "/verify/parity/kl_mean", "/verify/parity/max_abs",
    "/verify/accuracy/top1", "/verify/accuracy/top5", "/verify/accuracy/reference_top1",
    "/verify/accuracy/drop", "/verify/accuracy/ci95/0", "/verify/accuracy/ci95/1",
    "/verify/accuracy/mcnemar_p", "/bench/latency_s/p50", "/bench/latency_s/p90",
    "/bench/latency_s/p99", "/bench/latency_s/mean", "/bench/latency_s/min", "/bench/latency_s/max",
    "/bench/ci95/p50/0", "/bench/ci95/p90/1", "/bench/early_stopping/p90", "/bench/throughput_ips",
    "/bench/throughput_requests", "/bench/throughput_by_batch/5/images_per_s",
    "/bench/warmup/queries", "/bench/measured_seconds", "/bench/budget/macs",
    "/bench/budget/achieved_macs_per_s", "/bench/budget/peak_macs_per_s",
    "/bench/budget/utilisation", "/bench/budget/bytes", "/bench/budget/peak_bytes_per_s",
    "/bench/budget/compute_floor_s", "/bench/budget/memory_floor_s",
    "/bench/budget/layers/15/seconds", "/bench/budget/layers/15/floor_s",
    "/bench/budget/layers/15/macs", "/bench/budget/layers/15/bytes",
    "/bench/budget/layers/15/intensity", "/bench/budget/layers/15/share",
    "/bench/energy/joules_per_image", "/bench/energy/net_joules_per_image", "/bench/energy/watts",
    "/bench/energy/idle_watts", "/bench/temperature_c/before/k10temp%20Tctl",
    "/bench/temperature_c/after/k10temp%20Tctl", "/bench/system/cores", "/bench/system/memory_bytes",
    "/gate/criteria/0/bound", "/gate/criteria/2/value",
]  # fmt: skip


def test_nothing_of_a_run_is_left_out(tmp_path):
    root = report_page.parse(page_of(tmp_path, made.full()))
    shown = {e.attributes.get("data-pointer") for e in root.all("data")}
    assert set(MUST) <= shown


UNITS = {
    "": 1, "s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1,
    "GB/s": 1e9, "MB/s": 1e6, "kB/s": 1e3, "B/s": 1, "GMAC": 1e9, "MMAC": 1e6, "kMAC": 1e3,
    "MAC": 1, "TMAC/s": 1e12, "GMAC/s": 1e9, "MMAC/s": 1e6, "kMAC/s": 1e3, "J": 1, "mJ": 1e-3,
    "µJ": 1e-6, "W": 1, "mW": 1e-3, "images/s": 1, "MAC/B": 1, "dB": 1, "×": 1, "°C": 1, "%": 0.01,
    "points": 0.01, "nat": 1, "GHz": 1e9, "MHz": 1e6,
}  # fmt: skip
SHOWN = re.compile(
    r"^(?P<bound>[<>]\s)?(?P<number>[−\d.,]+)(?:\s×\s10(?P<power>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?\s?(?P<unit>\S*)$"
)


def test_what_is_read_is_the_value_rounded(tmp_path, case):
    """The text of a figure is within half of its last digit of the value, in its unit."""
    root = report_page.parse(page_of(tmp_path, *case))
    powers = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    for e in root.all("data"):
        value = json.loads(e.attributes["value"])
        match = SHOWN.match(e.text)
        assert match, e.text
        digits = match["number"].replace(",", "").replace("−", "-")
        size = UNITS[match["unit"]] * 10 ** int((match["power"] or "0").translate(powers))
        last = 10 ** -len(digits.partition(".")[2]) * size
        read = float(digits) * size
        if match["bound"]:
            assert (value < read) == (match["bound"][0] == "<"), e.text
        else:
            assert math.isclose(read, value, rel_tol=1e-12, abs_tol=last * 0.5001), e.text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0419, "s", "41.9 ms"), (1.234, "s", "1.23 s"), (0.0009996, "s", "1.00 ms"),
        (0.00033, "s", "330 µs"), (0, "s", "0 ns"), (61.25, "s", "61.2 s"), (1234.5, "s", "1,234 s"),
        (138_600_000, "B", "139 MB"), (15_470_264_320, "MAC", "15.5 GMAC"),
        (1, "share", "100.00%"), (0.99999, "share", "> 99.99%"), (0.995, "share", "99.50%"),
        (0.00001, "share", "< 0.01%"), (0.9999999, "cosine", "> 0.999999"), (1, "cosine", "1.000000"),
        (-0.0049, "points", "−0.49 points"), (-0.000001, "points", "0.00 points"),
        (8.05e-5, "nat", "8.1 × 10⁻⁵ nat"), (0, "nat", "0 nat"), (0.0004, "p", "< 0.001"),
        (1_234_567, "count", "1,234,567"), (0.6588, "part", "65.9%"), (1.034, "part", "103%"),
        (0.607, "times", "0.607 ×"), (54.436, "dB", "54.4 dB"), (2_445_406_000, "Hz", "2.45 GHz"),
    ],
)  # fmt: skip
def test_rounding(value, unit, text):
    from vggdeploy.report.figures import show

    assert show(value, unit).replace("\N{NO-BREAK SPACE}", " ") == text


def evil(value: Any) -> Any:
    """Every text of a result made hostile, keys of free choice too; what has few values is kept."""
    if isinstance(value, dict):
        free = {"libraries", "before", "after", "classes"}
        return {
            key: {EVIL + k: evil(v) for k, v in inner.items()}
            if key in free and isinstance(inner, dict)
            else inner
            if key in ("kind", "verdict", "digest")
            else evil(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [evil(item) for item in value]
    return EVIL + value if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["failed", "several"])
def test_texts_of_results_are_never_markup(tmp_path, name):
    results = [evil(result) for result in CASES[name]()]
    plain = report_page.parse(page_of(tmp_path, *CASES[name]()))
    text = page_of(tmp_path, *results)
    assert "<script" not in text
    assert "<b " not in text
    assert "&lt;script&gt;" in text
    assert not set(text) & set("\u202e\x00\ud800")
    root = report_page.parse(text)
    assert {e.tag for e in root.all()} == {e.tag for e in plain.all()}
    known = {name for e in plain.all() for name in e.attributes}
    assert {name for e in root.all() for name in e.attributes} <= known


def test_hostile_file_names(tmp_path):
    path = tmp_path / '"><img src=x>.json'
    path.write_text(json.dumps({"schema": 1, **made.full()}))
    text = page.render(model.report(reading.read([path])))
    assert "<img" not in text
    assert "&lt;img" in text


def test_the_policy_lets_the_style_through_and_nothing_else(tmp_path):
    text = page_of(tmp_path, made.full())
    root = report_page.parse(text)
    (policy,) = (
        e.attributes["content"]
        for e in root.all("meta")
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    (style,) = root.all("style")
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not root.all("script", "link", "img", "iframe", "object")
    for e in root.all():
        assert not any(name.startswith("on") or name == "style" for name in e.attributes)
        assert not {"src", "srcset", "xlink:href"} & set(e.attributes)
    assert "url(" not in style.text
    assert "@import" not in style.text
    assert not re.search(r"https?://", text)


def test_same_results_same_bytes(tmp_path):
    assert page_of(tmp_path, *several()) == page_of(tmp_path, *several())


def test_a_hundred_thousand_samples_stay_small_and_exact(tmp_path):
    bench = made.bench()
    samples = made.samples(100_000, 3)
    samples[777] = 3.5
    ordered = np.sort(samples)
    bench["samples_s"], bench["started_s"] = samples, []
    # Of an even number, the median is the lower of the two in the middle.
    ranks = {p: float(np.percentile(ordered, p, method="inverted_cdf")) for p in (50, 90, 99)}
    bench["latency_s"].update(
        {f"p{p}": value for p, value in ranks.items()}, max=3.5, min=float(ordered[0])
    )
    bench["ci95"] = {}
    text = page_of(tmp_path, bench)
    assert len(text.encode()) < 200_000
    (drawing,) = (
        drawing
        for section in model.report(reading.read(made.written(tmp_path, bench))).sections
        for block in section.blocks
        for drawing in block.drawings
        if drawing.name.startswith("ecdf")
    )
    (curve,) = drawing.plot.curves
    assert len(curve.values) < 2500
    for share, exact in ((0.5, ranks[50]), (0.9, ranks[90]), (0.99, ranks[99])):
        first = next(v for v, s in zip(curve.values, curve.shares, strict=True) if s >= share)
        assert first == exact
    # Nowhere is the thinned curve further from the whole one than a column of a screen.
    column = (drawing.plot.x.high - drawing.plot.x.low) / 800
    for value, share in zip(curve.values, curve.shares, strict=True):
        assert share == np.searchsorted(ordered, value, side="right") / len(ordered)
    wide = np.diff(curve.values) > column
    assert np.diff(curve.shares)[wide].max() < 1.5e-5, "a wide step is between neighbours alone"
    beyond = int((ordered > drawing.plot.x.high).sum())
    assert f"{beyond} samples lie beyond the axis; the largest is 3.50" in text


def test_histogram_counts_every_sample(tmp_path):
    bench = made.bench()
    (drawing,) = (
        drawing
        for section in model.report(reading.read(made.written(tmp_path, bench))).sections
        for block in section.blocks
        for drawing in block.drawings
        if drawing.name.startswith("histogram")
    )
    plot = drawing.plot
    assert sum(plot.counts) == len(bench["samples_s"])
    for start, end, count in zip(plot.edges[:-1], plot.edges[1:], plot.counts, strict=True):
        inside = [s for s in bench["samples_s"] if start <= s < end]
        assert len(inside) == count
    assert [row[1].value for row in drawing.table.rows] == list(plot.counts)


@pytest.mark.parametrize("samples", [[0.004], [0.004] * 50, [0.004, 0.005], [0.0] * 3])
def test_few_or_equal_samples(tmp_path, samples):
    bench = made.bench()
    bench.update(samples_s=samples, ci95=None, early_stopping=None)
    bench["latency_s"] = dict.fromkeys(("p50", "p90", "p99", "mean", "min", "max"), samples[-1])
    report_page.parse(page_of(tmp_path, bench))


def contrast(first: str, second: str) -> float:
    """The contrast of two colours (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colours_have_contrast_in_both_themes_and_print():
    style = (Path(report.__file__).parent / "style.css").read_text("utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6});", block))
              for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]  # fmt: skip
    assert len(themes) == 3
    for theme in themes:
        assert set(theme) == set(themes[0])
        for name, colour in theme.items():
            if name not in ("paper", "shade", "rule"):
                assert contrast(colour, theme["paper"]) >= 4.5, name
                assert contrast(colour, theme["shade"]) >= 4.5, name
    print_theme = themes[2]
    assert print_theme == {**themes[0], "paper": "#ffffff"}


def test_series_have_dashes_besides_colours():
    from vggdeploy.report import svg

    style = (Path(report.__file__).parent / "style.css").read_text("utf-8")
    dashes = [
        re.search(rf"\.line\.series-{n} \{{ stroke-dasharray: ([\d ]+); \}}", style)
        for n in range(1, svg.SERIES)
    ]
    assert all(dashes)
    assert len({match[1] for match in dashes if match}) == svg.SERIES - 1


def test_the_example_is_of_this_style_and_small():
    example = Path(__file__).parents[2] / "docs/example-report.html"
    text = example.read_text("utf-8")
    assert len(text.encode()) < 200_000
    style = (Path(report.__file__).parent / "style.css").read_text("utf-8")
    assert style in text, "make it anew: vggdeploy report tests/vggdeploy/report_*.json"
    root = report_page.parse(text)
    names = ("report_fp32.json", "report_int8.json")
    results = [json.loads((made.HERE / name).read_text("utf-8")) for name in names]
    shown = [e for e in root.all("data") if "data-pointer" in e.attributes]
    assert len(shown) > 50
    for e in shown:
        expected = at(results[int(e.attributes["data-file"])], e.attributes["data-pointer"])
        assert json.loads(e.attributes["value"]) == expected
