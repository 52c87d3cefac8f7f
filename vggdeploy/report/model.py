"""Results to what a report says: the head, then the sections in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy import __version__
from vggdeploy.report import accuracy, facts, head, latency, roofline, speed
from vggdeploy.report.document import Report
from vggdeploy.report.measured import measured

if TYPE_CHECKING:
    from vggdeploy.report.reading import Given


def report(given: Given) -> Report:
    """All that the results say, whatever form of page will show it.

    Raises:
        ResultError: when a result lacks what its kind must have, or holds what cannot be.
    """
    found = measured(given)
    heads = tuple(head.head(subject, found) for subject in given.subjects)
    verdict, summary = head.summary(heads) if heads else ("none", ("A comparison alone.",))
    sections = facts.present(
        [
            facts.comparison(given),
            accuracy.section(given),
            latency.section(found),
            roofline.section(found),
            roofline.layer_section(found),
            speed.throughput(found, given),
            speed.tuning(given),
            speed.energy(found),
            facts.building(given),
            facts.machine(given),
            facts.digests(given),
        ]
    )
    if len(heads) == 1:
        title, subtitle = heads[0].name, heads[0].target
        machine = next((one.node.text("system", "cpu", default="") for one in found), "")
        subtitle = " on ".join(filter(None, (subtitle, machine)))
    else:
        title = f"{len(heads)} bundles side by side" if heads else "Comparison of two bundles"
        subtitle = "; ".join(subject.title for subject in given.subjects)
    return Report(
        title,
        verdict,
        subtitle,
        summary,
        heads,
        sections,
        __version__,
        head.glance(heads) if len(heads) > 1 else None,
    )
