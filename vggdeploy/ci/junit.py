"""A gate as JUnit XML: one test case a criterion.

There is no one schema. What is written is valid by both that CI servers go by, the one of Jenkins'
xUnit plugin (junit-10.xsd) and the older one of Ant's reports (windyroad's JUnit.xsd): a suite with
properties, test cases, system-out and system-err in that order, all its attributes, times in
decimal seconds, and a timestamp without a zone, which is UTC.

A missed bound is a ``failure``, and what could not be told an ``error``, with ``inconclusive`` as
its type. Both make a test red in Jenkins and GitLab, which ``skipped`` would not; and GitLab counts
errors apart from failures, as JUnit means it: a test that has no outcome, not one that has a bad
one. A case's name and class name carry no figure, so that servers know it again in the next run.

XML has no form for most control characters: `text.clean` leaves none.
"""

from __future__ import annotations

import datetime
import platform
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import vggdeploy
from vggdeploy import gate_table
from vggdeploy.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vggdeploy.gates import Verdicts

PACKAGE = "vggdeploy"

_ELEMENTS = {"fail": "failure", "inconclusive": "error"}


def render(verdicts: Verdicts, when: datetime.datetime | None = None) -> str:
    """A gate as JUnit XML.

    Args:
        verdicts: what was judged.
        when: the time of the report, with its zone; now if not given.
    """
    moment = (when or datetime.datetime.now(datetime.timezone.utc)).astimezone(
        datetime.timezone.utc
    )
    found = [criterion.verdict for criterion in verdicts.criteria]
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": clean(verdicts.target or PACKAGE),
            "package": PACKAGE,
            "id": "0",
            "hostname": clean(platform.node() or "localhost"),
            "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}",
            "tests": str(len(found)),
            "failures": str(found.count("fail")),
            "errors": str(found.count("inconclusive")),
            "skipped": "0",
            "time": "0.000",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _facts(verdicts).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": clean(value)})
    class_name = ".".join(filter(None, (PACKAGE, verdicts.target)))
    for criterion in verdicts.criteria:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"name": criterion.name, "classname": clean(class_name), "time": "0.000"},
        )
        if criterion.verdict in _ELEMENTS:
            said = clean(gate_table.sentence(criterion))
            # Some servers show the attribute, and some the text.
            wrong = {"message": said, "type": criterion.verdict}
            ElementTree.SubElement(case, _ELEMENTS[criterion.verdict], wrong).text = said
    doubts = (*verdicts.unstable, *verdicts.cautions)
    ElementTree.SubElement(suite, "system-out").text = _lines(gate_table.text(verdicts).split("\n"))
    ElementTree.SubElement(suite, "system-err").text = _lines(doubts)
    ElementTree.indent(root)
    encoded: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return encoded.decode("utf-8") + "\n"


def _facts(verdicts: Verdicts) -> dict[str, str]:
    facts = {
        "verdict": verdicts.verdict,
        "digest": verdicts.digest,
        "execution": verdicts.execution,
        "judged": verdicts.judged,
        "images": verdicts.images if verdicts.judged else None,
        "vggdeploy": vggdeploy.__version__,
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(map(clean, lines))
