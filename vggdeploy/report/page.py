"""A report as one HTML page that needs nothing else: no network, no script, no other file.

Everything that comes from a result is escaped, by the template or by `svg`; the content security
policy lets the page's own style sheet through, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vggdeploy import errors
from vggdeploy.report import drawing, head, svg
from vggdeploy.report.document import MARKS, Judged, text_of
from vggdeploy.report.figures import Figure

if TYPE_CHECKING:
    from vggdeploy.report.document import Drawing, Report

_HERE = Path(__file__).parent
_TEMPLATE = "page.html.j2"


def require() -> None:
    """Make sure, before any long work, that a page can be made.

    Raises:
        MissingError: when jinja2 is not installed.
    """
    errors.require_package("jinja2", "report", "an HTML report")


def render(report: Report) -> str:
    """The page. The same report gives the same text.

    Raises:
        MissingError: when jinja2 is not installed.
    """
    require()
    import jinja2
    from markupsafe import Markup

    style = (_HERE / "style.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = _number
    environment.tests["figure"] = lambda cell: isinstance(cell, Figure)
    environment.tests["judged"] = lambda cell: isinstance(cell, Judged)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        # Our own file, and the hash in the policy is of these very bytes.
        style=Markup(style),
        policy=policy(style),
        draw=_draw,
        legend=drawing.legend,
        word=head.word,
        marks=MARKS,
    )


def policy(style: str) -> str:
    """The content security policy of a page with one style sheet and nothing else (CSP level 2)."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _number(value: float) -> str:
    """A number whole, as JSON spells it."""
    return json.dumps(value)


def _draw(shown: Drawing) -> svg.Svg:
    return drawing.draw(shown.plot, shown.name, shown.title, text_of(shown.finding).strip())
