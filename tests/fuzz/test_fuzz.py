"""Whatever a file holds that others wrote: an error of the tree, at once, in little memory.

``run.py`` goes through many more inputs, each entry point in a process of its own.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mutations
import pytest
import run
from entries import ENTRIES, Entry
from harness import GROWTH, Harness
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDS = {"weights": "torch", "pickled-weights": "torch", "model": "onnx", "calibration": "onnx",
         "trt-cache": "onnx", "manifest": "onnx", "forged-manifest": "onnx", "inspect": "onnx",
         "packed": "onnx", "layers": "onnx", "tuned": "onnx", "network": "torch",
         "signatures": "cryptography", "keys": "cryptography", "report": "jinja2"}  # fmt: skip
EXAMPLES = {"report": 60, "weights": 100, "pickled-weights": 60, "network": 60, "packed": 120,
            "signatures": 60}  # fmt: skip
"""Where one takes long."""


@pytest.fixture(scope="module", params=list(ENTRIES))
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    pytest.importorskip(NEEDS.get(request.param, "numpy"))
    yield Harness(request.param, tmp_path_factory.mktemp("fuzz"))


def test_whole_inputs_are_read(harness: Harness) -> None:
    """Else a change of them would show nothing."""
    harness.entry.read(harness.seeds[0], harness.folder)


def test_only_errors_of_the_tree_come_out(harness: Harness) -> None:
    """Memory is judged by run.py, in a process that has nothing else to hold."""

    @settings(max_examples=EXAMPLES.get(harness.name, 250))
    @given(st.integers(0, 2**32))
    @example(0)
    def mutated(number: int) -> None:
        rng = random.Random(number)
        found = harness.feed(mutations.mutate(harness.seeds, harness.entry.mutation, rng))
        assert found is None or found.startswith("memory")

    @settings(max_examples=50)
    @given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
    def anything(content: bytes) -> None:
        found = harness.feed(content)
        assert found is None or found.startswith("memory")

    mutated()
    anything()
    assert harness.tally.refused > 30, "damage is refused"


class TestTheHarness:
    """It has to find what it is there for."""

    def trial(self, monkeypatch: pytest.MonkeyPatch, folder: Path, read: object) -> Harness:
        entry = Entry(read, lambda _: [b"whole"], mutations.raw)  # type: ignore[arg-type]
        monkeypatch.setitem(ENTRIES, "trial", entry)
        return Harness("trial", folder, folder / "kept")

    def test_another_error(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        harness = self.trial(monkeypatch, tmp_path, lambda content, _: content.index(b"w"))
        assert harness.feed(b"damaged") is not None
        assert harness.feed(b"damaged again") is not None
        (found,) = harness.tally.found
        assert found["wrong"].startswith("ValueError at ")
        assert Path(found["file"]).read_bytes() == b"damaged"

    def test_an_error_of_the_tree(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def read(content: bytes, _: Path) -> None:
            raise ConfigError("no", got="it", expected="another", fix="none")

        harness = self.trial(monkeypatch, tmp_path, read)
        assert harness.feed(b"") is None
        assert harness.tally.refused == 1

    def test_a_slow_one(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("harness.SECONDS", 0.01)
        harness = self.trial(
            monkeypatch, tmp_path, lambda content, _: sum(range(len(content) * 10**6))
        )
        assert str(harness.feed(b"12345")).startswith("took 0.")
        assert harness.feed(b"") is None

    def test_a_large_one(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        harness = self.trial(monkeypatch, tmp_path, lambda *_: None)
        harness._before -= GROWTH + 1
        assert str(harness.feed(b"")).startswith("memory grew")

    @pytest.mark.parametrize(
        ("code", "said"),
        [("os.abort()", "died of SIGABRT"), ("raise SystemExit(3)", "ended in an error")],
    )
    def test_a_process_that_dies(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, said: str
    ) -> None:
        script = tmp_path / "child.py"
        script.write_text(f"import os\n{code}\n")
        monkeypatch.setattr(run, "__file__", str(script))
        found = run.run("probes", 3, tmp_path / "kept", "own")["found"]
        assert found[0]["wrong"].startswith(said)
        assert Path(found[0]["file"]).is_file()


def test_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["run.py", "--inputs", "120", "--only", "settings", "--engine", "own",
                      "--kept", str(tmp_path)],
    )  # fmt: skip
    assert run.main() == 0
    said = capsys.readouterr().out
    assert "settings             120 inputs" in said
    assert "0 findings" in said
