"""Reports: results as one HTML page that needs nothing else, and as Markdown.

`reading` checks and groups results by bundle, `model` says what they show as data (`document`,
`plots`), and `page` and `markdown` give that its form; `drawing` draws, with `svg`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, results
from vggdeploy.errors import ConfigError
from vggdeploy.report import markdown, model, page, reading

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = "report.html"
_MARKDOWN_ENDINGS = (".md", ".markdown")
_PAGE_ENDINGS = (".html", ".htm")


def check(path: Path | None, force: bool, flag: str) -> None:
    """Make sure, before any work, that a report can be made and written.

    Raises:
        ConfigError: when the file exists and `force` is not given, or is of no kind of report.
        MissingError: when a page is asked for and jinja2 is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in (*_PAGE_ENDINGS, *_MARKDOWN_ENDINGS):
        raise ConfigError(
            f"a report cannot be written to {path}",
            got=f"the ending {path.suffix!r}",
            expected=", ".join((*_PAGE_ENDINGS, *_MARKDOWN_ENDINGS)),
            fix=f"give {flag} another name",
        )
    results.refuse_overwrite(str(path), force, flag=flag)
    if not _is_markdown(path):
        page.require()


def write(
    paths: Sequence[Path],
    out: Path | None,
    markdown_out: Path | None,
    *,
    force: bool = False,
    json: str | None = None,
) -> dict[str, Any]:
    """Report on result files.

    Args:
        paths: results of build, verify, bench, gate, run, tune or compare.
        out: the page; ``report.html`` where neither is given.
        markdown_out: the same as Markdown.
        force: whether files that are there may be replaced.
        json: where the caller will write what this returns.

    Returns:
        ``html`` and ``markdown`` (None for what was not written), ``verdict`` (None without a
        gate), and ``bundles``: ``digest``, ``bundle``, ``target`` and ``verdict`` of each.

    Raises:
        ConfigError: when one file would be two things, or exists and `force` is not given.
        ResultError: when a result cannot be shown.
        MissingError: when jinja2 is not installed.
    """
    if out is None and markdown_out is None:
        out = Path(PAGE)
    results.require_apart(paths, {"--out": out, "--markdown": markdown_out, "--json": json})
    check(out, force, "--out")
    check(markdown_out, force, "--markdown")
    given = reading.read(paths)
    made = model.report(given)
    for path in (out, markdown_out):
        if path is not None:
            _write(made, path)
    return {
        "kind": "report",
        "html": str(out) if out and not _is_markdown(out) else None,
        "markdown": next((str(p) for p in (markdown_out, out) if p and _is_markdown(p)), None),
        "verdict": None if made.verdict == "none" else made.verdict,
        "bundles": [
            {
                "digest": subject.digest,
                "bundle": subject.bundle,
                "target": subject.target,
                "verdict": None if head.verdict == "none" else head.verdict,
            }
            for subject, head in zip(given.subjects, made.heads, strict=True)
        ],
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """Report on one result that was just made.

    Raises:
        ResultError: when it cannot be shown.
        MissingError: when jinja2 is not installed.
    """
    _write(model.report(reading.from_result(result, "this run")), path)


def _write(made: Any, path: Path) -> None:
    render = markdown.render if _is_markdown(path) else page.render
    atomic.write_text(path, render(made))


def _is_markdown(path: Path) -> bool:
    return path.suffix.lower() in _MARKDOWN_ENDINGS


__all__ = ["check", "write", "write_result"]
