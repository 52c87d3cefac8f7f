"""Reports in a real browser: headless Chromium, at a phone's and a desk's width, dark, light, print.

Skipped where playwright or Chromium is missing: `pip install playwright`, and Chromium from the
system's packages, or at the path that `VGGDEPLOY_CHROMIUM` names.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import report_results as made

from vggdeploy import report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("jinja2")
playwright = pytest.importorskip("playwright.sync_api")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = (360, 1600)
LONG = "a-bundle-whose-name-has-no-place-to-break-" * 4


def crowded() -> list[dict[str, Any]]:
    """Results with names too long, and three bundles side by side."""
    found = [made.full(), made.failed("fp32"), made.full()]
    for place, run in enumerate(found):
        for part in ("build", "verify", "bench", "gate"):
            run[part]["digest"] = f"{place:064x}"
            run[part]["bundle"] = LONG
        run["bench"]["system"]["cpu"] = LONG
        run["bench"]["budget"]["layers"][0]["name"] = LONG
    return found


CASES = {
    "full": lambda: [made.full()],
    "failed": lambda: [made.failed()],
    "several": lambda: [
        made.full(), made.full("fp32", 1, 0.0061), made.compare(), made.tune(),
    ],
    "crowded": crowded,
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    places = [os.environ.get("VGGDEPLOY_CHROMIUM"), *map(shutil.which, NAMES)]
    place = next(filter(None, places), None)
    if place is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name it in "
                    "VGGDEPLOY_CHROMIUM")  # fmt: skip
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=place, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for name, make in CASES.items():
        folder: Path = tmp_path_factory.mktemp(name)
        report.write(made.written(folder, *make()), folder / "report.html", None)
        found[name] = (folder / "report.html").as_uri()
    return found


@pytest.fixture
def opened(browser: Any, addresses: dict[str, str]) -> Iterator[Any]:
    """Opens a report; at the end, nothing must have been said on the console or asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(name: str, width: int = 1600, scheme: str = "light", **more: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(addresses[name])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) <= set(addresses.values()), "the page asks for nothing but itself"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_it_opens_and_nothing_hangs_over(opened: Any, name: str, width: int, scheme: str) -> None:
    page = opened(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Nor is anything cut off, but inside what scrolls.
    cut = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(e => {
            const box = e.getBoundingClientRect();
            return box.width && !e.closest('.scroll, .skip') && !(e instanceof SVGElement &&
                e.tagName !== 'text') && (box.right > width + 0.5 || box.left < -0.5);
        }).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))""",
        width,
    )
    assert cut == []


@pytest.mark.parametrize("name", ["full", "several"])
@pytest.mark.parametrize("width", WIDTHS)
def test_labels_of_plots_stay_apart(opened: Any, name: str, width: int) -> None:
    """No text of a plot lies on another."""
    page = opened(name, width)
    over = page.evaluate(
        """() => [...document.querySelectorAll('figure svg[role=img]')].flatMap(plot => {
            const texts = [...plot.querySelectorAll('text')].map(e =>
                [e.textContent, e.getBoundingClientRect()]);
            return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([_, b]) =>
                a.left < b.right - 1 && b.left < a.right - 1 &&
                a.top + 3 < b.bottom - 3 && b.top + 3 < a.bottom - 3
            ).map(([other]) => one + ' / ' + other));
        })"""
    )
    assert over == []


CONTRAST = """() => {
    const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v =>
        v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] === 1) return c;
        }
        return [255, 255, 255];
    };
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement;
        if (!walk.currentNode.textContent.trim() || e.closest('title, desc, style')) continue;
        const style = getComputedStyle(e);
        const ink = rgb(e instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), e.tagName, e.textContent.slice(0, 30)]);
    }
    return found;
}"""


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["failed", "several"])
def test_every_text_has_contrast(opened: Any, name: str, scheme: str, media: str) -> None:
    page = opened(name, 1600, scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert len(found) > 200
    assert [row for row in found if row[0] < 4.5] == []


def test_dark_is_dark_and_print_is_on_white(opened: Any) -> None:
    page = opened("full", scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(23, 24, 27)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


def test_print_cuts_nothing_off(opened: Any) -> None:
    """On A4 with the margins of the style sheet, 178 mm wide."""
    page = opened("several", round(178 / 25.4 * 96))
    page.emulate_media(media="print")
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.scroll')].filter(e =>
            e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_keyboard(opened: Any) -> None:
    """The skip link comes first and is seen then; sections, tables and their scrolling follow."""
    page = opened("full", 360)
    focused = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.className") == "skip"
    assert page.evaluate(f"{focused}.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.closest('main') !== null")
    for _ in range(40):
        assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
        if page.evaluate(f"{focused}.tagName") == "SUMMARY":
            break
        page.keyboard.press("Tab")
    details = page.evaluate_handle(f"{focused}.parentElement")
    page.keyboard.press("Enter")
    assert details.evaluate("e => e.open")
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.className") == "scroll"


def test_a_screen_reader_hears_plots_and_landmarks(opened: Any) -> None:
    page = opened("full")
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("navigation", name="Sections").count() == 1
    regions = [region.get_attribute("id") for region in page.get_by_role("region").all()]
    assert regions[:3] == ["verdict", "parity", "latency"]
    for title in ("Roofline", "Histogram of latency", "Time of each layer, and its floor"):
        (image,) = page.get_by_role("img", name=title).all()
        assert image.evaluate("e => e.querySelector('desc').textContent.length") > 40
    assert page.get_by_role("table", name="Percentiles of latency").count() == 1


def test_the_policy_stops_scripts_and_foreign_styles(
    browser: Any, addresses: dict[str, str], tmp_path: Path
) -> None:
    """Even were something to slip through: the browser itself refuses it."""
    from pathlib import Path
    from urllib.parse import unquote, urlparse

    text = Path(unquote(urlparse(addresses["full"]).path)).read_text("utf-8")
    slipped = "<script>document.title = 'owned'</script><style>h1 { color: red }</style>"
    (tmp_path / "x.html").write_text(text.replace("<main", f"{slipped}<main", 1), "utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "x.html").as_uri())
    assert page.title() != "owned"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    page.close()


def test_zoomed_to_twice_the_size(opened: Any) -> None:
    """WCAG 1.4.4: text of twice the size on a phone still fits."""
    page = opened("failed", 360)
    page.evaluate("document.documentElement.style.setProperty('font-size', '200%')")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
