"""What a CI server shows of a gate: JUnit XML, a job's summary, and annotations.

What can be wrong with where they go is said before any work; they are written when the gate has
been judged, whatever its verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy import atomic, config, results
from vggdeploy.ci import annotate, junit, summary
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from vggdeploy.gates import Verdicts

ANNOTATIONS = {"github": annotate.github}
"""How annotations are written, by the server that reads them. GitLab needs none: it shows the
failures of a JUnit report at the merge request."""


@dataclass(frozen=True)
class Outputs:
    """What a gate writes for a CI server; None is not written.

    Attributes:
        junit: a JUnit XML file, written whole.
        summary: a Markdown file, see `summary.write`.
        annotations: a key of `ANNOTATIONS`; they go to standard output.
    """

    junit: Path | None = None
    summary: Path | None = None
    annotations: str | None = None

    def check(
        self,
        force: bool,
        json: str | None,
        *,
        read: Iterable[Path | None] = (),
        written: Mapping[str, Path | None] | None = None,
    ) -> None:
        """Make sure, before any work, that all of it can be written.

        Args:
            force: whether files that are there may be replaced.
            json: where the result goes.
            read: files and bundles that the command reads.
            written: what else it writes, by flag.

        Raises:
            ConfigError: for a file that exists or cannot be written, one file that would be two
                things, or annotations that are unknown or would mix with the result.
        """
        if self.annotations is not None:
            config.require_known(self.annotations, ANNOTATIONS, "--annotations", "server")
            if json == results.STDOUT:
                raise ConfigError(
                    "--annotations and --json - both write to standard output",
                    got=f"--annotations {self.annotations} and --json -",
                    expected="JSON alone, or annotations alone",
                    fix="give --json a file",
                )
        files = {"--junit": self.junit, "--summary": self.summary}
        results.require_apart(
            [path for path in read if path is not None],
            {"--json": json, **(written or {}), **files},
        )
        for flag, path in files.items():
            if path is None:
                continue
            if str(path) == results.STDOUT:
                raise ConfigError(
                    f"{flag} takes a file", got="-", expected="a path", fix="give one"
                )
            if flag == "--summary" and summary.is_the_jobs(path):
                with atomic.writing(path):
                    path.open("a").close()
            else:
                results.refuse_overwrite(str(path), force, flag=flag)

    def write(self, verdicts: Verdicts) -> None:
        """Write what was asked for.

        Raises:
            VggdeployError: one of its kinds, when a place cannot be written any more.
        """
        if self.junit is not None:
            atomic.write_text(self.junit, junit.render(verdicts))
        if self.summary is not None:
            summary.write(verdicts, self.summary)
        if self.annotations is not None:
            results.say(ANNOTATIONS[self.annotations](verdicts), "--annotations")


__all__ = ["ANNOTATIONS", "Outputs"]
