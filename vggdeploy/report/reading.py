"""Results, read with care: what is missing, of a wrong type or impossible is named in one line."""

from __future__ import annotations

import json
import math
import urllib.parse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vggdeploy import digests, results
from vggdeploy.errors import ResultError
from vggdeploy.report.figures import Figure
from vggdeploy.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KINDS = ("build", "verify", "bench", "gate", "tune", "compare")
"""What a report shows; a run is its parts."""

_PARTS = ("build", "verify", "bench", "gate")
_HUGE = 1e30
"""No figure of a result is as large: what is, is damage."""


@dataclass(frozen=True)
class File:
    """A result file.

    Attributes:
        number: its place among the report's files.
        sha256: of its bytes.
    """

    number: int
    name: str
    sha256: str
    kind: str


@dataclass(frozen=True)
class Node:
    """A value in a result, which knows where it stands.

    Attributes:
        pointer: its JSON Pointer in the file, percent-encoded (RFC 6901, section 6).
    """

    value: Any
    file: File
    pointer: str = ""

    def error(self, expected: str, got: object = None) -> ResultError:
        """What is wrong with this value."""
        return ResultError(
            f"{self.file.name} cannot be shown: {self.pointer or 'the result'} is wrong",
            got=repr(self.value if got is None else got)[:60],
            expected=expected,
            fix="run the command again with this version",
        )

    def find(self, *keys: str) -> Node | None:
        """What is below `keys`; None where that, or anything on the way, is missing or null.

        Raises:
            ResultError: where something on the way is no object.
        """
        node = self
        for key in keys:
            if not isinstance(node.value, dict):
                raise node.error("an object")
            value = node.value.get(key)
            if value is None:
                return None
            node = Node(value, self.file, f"{node.pointer}/{_escape(key)}")
        return node

    def need(self, *keys: str) -> Node:
        """What is below `keys`.

        Raises:
            ResultError: where it is missing or null.
        """
        found = self.find(*keys)
        if found is None:
            raise ResultError(
                f"{self.file.name} cannot be shown",
                got=f"nothing at {self.pointer}/{'/'.join(keys)}",
                expected="JSON that a command's --json wrote, whole",
                fix="run the command again with this version",
            )
        return found

    def maybe(
        self, unit: str, *keys: str, low: float = -_HUGE, high: float = _HUGE
    ) -> Figure | None:
        """The number below `keys` as a figure; None where there is none."""
        found = self.find(*keys)
        return None if found is None else found.figure(unit, low, high)

    def figure(self, unit: str, low: float = -_HUGE, high: float = _HUGE) -> Figure:
        """This number.

        Raises:
            ResultError: when it is no finite number of `low` to `high`.
        """
        value = self.value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value if isinstance(value, float) else 0.0)
            or not low <= value <= high
        ):
            raise self.error(f"a number {_span(low, high)}")
        return Figure(value, unit, self.file.number, self.pointer)

    def number(self, *keys: str, low: float = -_HUGE, high: float = _HUGE) -> float:
        """The number below `keys`, which must be there."""
        return float(self.need(*keys).figure("", low, high).value)

    def text(self, *keys: str, default: str | None = None) -> str:
        """The text below `keys`; `default` where it is missing.

        Raises:
            ResultError: when it is no text, or is missing and has no default.
        """
        found = self.find(*keys) if default is not None else self.need(*keys)
        if found is None:
            return str(default)
        if not isinstance(found.value, str):
            raise found.error("text")
        return clean(found.value)

    def flag(self, *keys: str, default: bool) -> bool:
        """The truth value below `keys`."""
        found = self.find(*keys)
        if found is None:
            return default
        if not isinstance(found.value, bool):
            raise found.error("true or false")
        return found.value

    def items(self, *keys: str) -> list[Node]:
        """The elements of the list below `keys`; none where it is missing."""
        found = self.find(*keys)
        if found is None:
            return []
        if not isinstance(found.value, list):
            raise found.error("a list")
        return [
            Node(value, self.file, f"{found.pointer}/{place}")
            for place, value in enumerate(found.value)
        ]

    def texts(self, *keys: str) -> tuple[str, ...]:
        """The list of texts below `keys`."""
        return tuple(item.text() for item in self.items(*keys))

    def numbers(self, *keys: str, low: float = -_HUGE, high: float = _HUGE) -> list[float]:
        """The list of numbers below `keys`."""
        return [float(item.figure("", low, high).value) for item in self.items(*keys)]

    def interval(self, unit: str, *keys: str) -> tuple[Figure, Figure] | None:
        """The two numbers below `keys`, in order; None where there are none."""
        ends = self.items(*keys)
        if not ends:
            return None
        if len(ends) != 2:
            raise self.need(*keys).error("two numbers")
        low, high = (end.figure(unit) for end in ends)
        if low.value > high.value:
            raise self.need(*keys).error("the lower number first")
        return low, high

    def leaves(self) -> Iterator[tuple[str, Node]]:
        """Every value that holds no others, by the keys that lead to it, joined by spaces."""
        inside = dict(enumerate(self.value)) if isinstance(self.value, list) else self.value
        if not isinstance(inside, dict):
            raise self.error("an object")
        for place, value in inside.items():
            key = str(place)
            node = Node(value, self.file, f"{self.pointer}/{_escape(key)}")
            holds = isinstance(value, list) and any(isinstance(item, dict) for item in value)
            if (isinstance(value, dict) and value) or holds:
                yield from ((f"{clean(key)} {name}", leaf) for name, leaf in node.leaves())
            else:
                yield clean(key), node


@dataclass(frozen=True)
class Subject:
    """A bundle and what was found out about it.

    Attributes:
        letter: its short name in plots and tables; empty where it is alone.
        parts: its results of each kind, in the order given.
    """

    letter: str
    digest: str
    bundle: str
    target: str
    parts: dict[str, list[Node]]

    @property
    def name(self) -> str:
        """The bundle's folder, without what leads there."""
        return self.bundle.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or self.bundle

    @property
    def title(self) -> str:
        """For headings: letter, folder and target."""
        label = f"{self.name}, {self.target}" if self.target else self.name
        return f"{self.letter}: {label}" if self.letter else label

    def of(self, kind: str) -> list[Node]:
        """The results of a kind."""
        return self.parts.get(kind, [])


@dataclass(frozen=True)
class Given:
    """All that a report is made from."""

    files: tuple[File, ...]
    subjects: tuple[Subject, ...]
    comparisons: tuple[Node, ...]

    def named(self, digest: str) -> Subject | None:
        """The bundle of a digest."""
        return next((subject for subject in self.subjects if subject.digest == digest), None)


def read(paths: Sequence[Path]) -> Given:
    """Read result files and group them by bundle.

    Raises:
        ResultError: when there is none, or one is missing, no result, of another schema, of a kind
            that a report does not show, or given twice.
    """
    found: list[Node] = []
    files: list[File] = []
    for number, path in enumerate(paths):
        result = results.read(path)
        kind = result["kind"]
        digest = digests.sha256_file(path)
        file = File(number, clean(path.name), digest, clean(str(kind)))
        twice = next((other for other in files if other.sha256 == digest), None)
        if twice is not None:
            raise ResultError(
                f"{path} is given twice",
                got=f"the same bytes as {twice.name}",
                expected="results that differ",
                fix="give each result once",
            )
        files.append(file)
        found += _parts(Node(result, file))
    return group(tuple(files), found)


def from_result(result: dict[str, Any], name: str) -> Given:
    """A result that was just made, as if it had been written to a file and read."""
    file = File(0, name, "", str(result.get("kind")))
    # Tuples are lists in JSON.
    return group((file,), _parts(Node(json.loads(json.dumps(result)), file)))


def group(files: tuple[File, ...], parts: Sequence[Node]) -> Given:
    """Results by the digest of the bundle that they are about, in the order given."""
    subjects: dict[str, Subject] = {}
    comparisons = []
    for part in parts:
        kind = part.text("kind")
        if kind == "compare":
            comparisons.append(part)
            continue
        digest = part.text("build", "digest") if kind == "run" else part.text("digest")
        if not digest and kind == "gate":
            continue  # of nothing at all
        known = subjects.setdefault(digest, Subject("", digest, "", "", {}))
        known.parts.setdefault(kind, []).append(part)
        subjects[digest] = replace(
            known,
            bundle=known.bundle or part.text("bundle", default=""),
            target=known.target or part.text("target", default=""),
        )
    if not subjects and not comparisons:
        raise ResultError(
            "there is nothing to report",
            got="results of no bundle",
            expected="results of " + ", ".join((*KINDS, "run")),
            fix="give a file that such a command's --json wrote",
        )
    lettered = tuple(
        replace(
            subject,
            letter=_letter(place) if len(subjects) > 1 else "",
            bundle=subject.bundle or f"bundle {subject.digest[:12]}",
        )
        for place, subject in enumerate(subjects.values())
    )
    return Given(files, lettered, tuple(comparisons))


def _parts(result: Node) -> list[Node]:
    kind = result.text("kind")
    if kind == "run":
        parts = [part for name in _PARTS if (part := result.find(name)) is not None]
        for name, part in zip((n for n in _PARTS if result.find(n)), parts, strict=True):
            if part.text("kind") != name:
                raise part.need("kind").error(repr(name))
        # Last, the run itself: it says why it did not measure.
        return [*parts, result] if parts else []
    if kind not in KINDS:
        raise ResultError(
            f"{result.file.name} is no result that a report shows",
            got=f"kind {kind!r}",
            expected="one of " + ", ".join((*KINDS, "run")),
            fix="give another file",
        )
    return [result]


def _letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    rest, last = divmod(place, 26)
    return (_letter(rest - 1) if rest else "") + chr(ord("A") + last)


def _escape(key: str) -> str:
    """A key as a JSON Pointer has it in an address (RFC 6901, section 6)."""
    escaped = key.replace("~", "~0").replace("/", "~1")
    return urllib.parse.quote(escaped, safe="~", errors="surrogatepass")


def _span(low: float, high: float) -> str:
    if high < _HUGE:
        return f"of {low:g} to {high:g}"
    return "that is finite" if low <= -_HUGE else f"of {low:g} or more"
