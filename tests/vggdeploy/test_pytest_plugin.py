"""The plugin for pytest, in projects of its own: each is a process, with warnings as errors."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest

from vggdeploy import baseline, bundle, pipeline, policy, pytest_plugin, signing, verification

with contextlib.suppress(ImportError):
    # pytester forgets what a test is the first to import, and this cannot be imported twice.
    from cryptography.hazmat.primitives import serialization  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "openvino", "torch", "onnx", "PIL", "rich", "typer", "vggdeploy.gates")


@pytest.fixture
def project(pytester):
    """Runs pytest on one test file and gives the result."""

    def run(code, *flags):
        pytester.makepyfile(test_it=code)
        return pytester.runpytest_subprocess("-W", "error", "--strict-markers", *flags)

    return run


def text(result):
    """All that was printed, in one line."""
    return " ".join(result.stdout.str().split())


def ends_in_one_line(result, said):
    """A test ended with a message of ours, said once, and nothing of our insides is shown."""
    assert said in text(result)
    assert "During handling" not in text(result)
    assert "Traceback" not in result.stdout.str()
    assert ".py:" not in result.stdout.str().partition("short test summary")[0]


def test_it_is_an_entry_point():
    (found,) = importlib.metadata.entry_points(group="pytest11", name="vggdeploy")
    assert found.value == "vggdeploy.pytest_plugin"


def test_fixtures_and_a_gate_that_passes(project, pytester, tiny_bundle):
    pytester.makeconftest(
        """
        import numpy as np, pytest
        from vggdeploy.errors import RunnerError

        held = []

        @pytest.fixture
        def kept(runner):
            held.append(runner)

        def pytest_unconfigure():
            for runner in held:
                try:
                    runner.infer(np.zeros(runner.input.shape, "float32"))
                except RunnerError as error:
                    print("CLOSED", error)
        """
    )
    done = project(
        """
        import numpy as np, pytest

        def test_bundle(bundle):
            assert bundle.target == "ov-int8"

        def test_runner(bundle, runner, kept):
            pixels = bundle.probes().images[:1]
            (scores,) = runner.infer(bundle.batch(pixels)).values()
            assert scores.shape == (1, 10) and np.isfinite(scores).all()

        def test_parity(parity, bundle):
            assert parity["kind"] == "verify" and parity["judged"] == "probes"
            assert parity["parity"]["n"] == len(bundle.probes().images)

        @pytest.mark.accuracy_gate(min_agreement=0.5, min_sqnr=1)
        def test_gate():
            pass

        @pytest.mark.accuracy_gate(min_agreement=0.5)
        class TestAll:
            @pytest.mark.accuracy_gate(min_cosine=-0.99)
            def test_inner(self, parity):
                pass
        """,
        f"--vggdeploy-bundle={tiny_bundle}", "-v",
    )  # fmt: skip
    done.assert_outcomes(passed=5)
    assert "test_gate[tiny] PASSED" in text(done)
    assert "CLOSED" in done.stdout.str()


def test_a_gate_that_fails_shows_its_table(project, tiny_bundle):
    done = project(
        """
        import pytest

        @pytest.mark.accuracy_gate(min_sqnr=200)
        def test_missed():
            raise SystemExit("it ran")

        @pytest.mark.accuracy_gate(min_agreement=0.9999)
        def test_not_told():
            raise SystemExit("it ran")

        @pytest.mark.accuracy_gate(min_agreement=0.9999)
        class TestBoth:
            @pytest.mark.accuracy_gate(min_sqnr=200)
            def test_of_class_and_method(self):
                raise SystemExit("it ran")

        def test_that_says_nothing():
            pass
        """,
        f"--vggdeploy-bundle={tiny_bundle}",
    )  # fmt: skip
    done.assert_outcomes(failed=3, passed=1)
    missed, told, both = re.split(r"\n_+ .*test_.* _+\n", done.stdout.str())[1:]
    assert "criterion" in missed
    assert "min_sqnr" in missed
    assert "verdict: FAIL" in missed
    assert "like these would decide: verify on more images (--data)" in told
    assert "verdict: INCONCLUSIVE" in told
    assert "min_agreement" in both
    assert "min_sqnr" in both
    ends_in_one_line(done, "verdict: FAIL")


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("min_agrement=0.9", "unknown key: got 'min_agrement', expected perhaps 'min_agreement'"),
        ("0.9", "accuracy_gate takes bounds by name: got 0.9"),
        ("min_agreement=99", "bound min_agreement is wrong: got 99"),
        (
            "max_p99=0.1",
            "accuracy_gate: nothing is measured here that a bound of speed could judge: got max_p99",
        ),
        ("max_ratio={'p50': 1.1}", "a bound of speed could judge: got max_ratio p50"),
        ("max_ratio={'sqrn': 1.1}", "unknown key: got 'sqrn', expected perhaps 'sqnr'"),
    ],
)
def test_a_wrong_marker_fails_even_without_a_bundle(project, marker, said):
    done = project(
        f"""
        import pytest

        @pytest.mark.accuracy_gate({marker})
        def test_gate():
            pass
        """
    )
    done.assert_outcomes(errors=1)
    ends_in_one_line(done, said)


def test_without_a_bundle_they_are_skipped_and_say_why(project):
    done = project(
        """
        import pytest

        @pytest.mark.accuracy_gate
        def test_gate():
            pass

        def test_fixtures(bundle, runner, parity):
            pass

        def test_plain():
            pass
        """,
        "-rs",
    )
    done.assert_outcomes(skipped=2, passed=1)
    assert "there is no bundle to test: give --vggdeploy-bundle=BUNDLE" in text(done)


def test_a_folder_that_is_no_bundle_is_one_line(project, tmp_path):
    done = project("def test_it(runner): pass", f"--vggdeploy-bundle={tmp_path}")
    done.assert_outcomes(errors=1)
    ends_in_one_line(done, f"{tmp_path} is no bundle: got no manifest.json")


def test_a_device_that_is_not_here_is_one_line(project, tiny_bundle):
    done = project(
        "def test_it(runner): pass\ndef test_too(parity): pass",
        f"--vggdeploy-bundle={tiny_bundle}", "--vggdeploy-device=NPU",
    )  # fmt: skip
    done.assert_outcomes(errors=2)
    ends_in_one_line(done, "NPU")


def test_several_bundles_are_each_verified_once(project, pytester, tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "other")
    pytester.makeconftest(
        """
        from vggdeploy import verification

        real, seen = verification.verify, []

        def verify(path, **options):
            seen.append(path.name)
            return real(path, **options)

        verification.verify = verify

        def pytest_unconfigure():
            print("VERIFIED", *sorted(seen))
        """
    )
    done = project(
        """
        import pytest

        @pytest.mark.accuracy_gate(min_cosine=-0.99)
        def test_first():
            pass

        def test_plain():
            pass

        def test_digest(bundle, parity):
            assert bundle.manifest["digest"] == parity["digest"]

        def test_runner(runner):
            assert runner.outputs

        @pytest.mark.accuracy_gate(min_cosine=-0.99)
        @pytest.mark.parametrize("number", [1, 2])
        def test_last(number):
            pass
        """,
        f"--vggdeploy-bundle={tiny_bundle}", f"--vggdeploy-bundle={tmp_path / 'other'}",
    )  # fmt: skip
    done.assert_outcomes(passed=2 + 1 + 2 + 2 + 4)
    assert done.stdout.lines[-1] == "VERIFIED other tiny"


def test_images_are_judged_wherever_a_test_goes(project, pytester, tiny_bundle, heldout_folder):
    (pytester.path / "images").symlink_to(heldout_folder)
    done = project(
        """
        import os, pytest

        @pytest.fixture(scope="session", autouse=True)
        def elsewhere(tmp_path_factory):
            os.chdir(tmp_path_factory.mktemp("elsewhere"))

        def test_images(parity):
            assert (parity["judged"], parity["parity"]["n"]) == ("data", 24)
            assert parity["accuracy"]["n"] == 24
        """,
        f"--vggdeploy-bundle={tiny_bundle}", "--vggdeploy-data=images",
    )  # fmt: skip
    done.assert_outcomes(passed=1)


@pytest.fixture
def first(tiny_bundle, tmp_path):
    """A baseline of the bundle."""
    verified = {"schema": 1, **verification.verify(tiny_bundle)}
    (tmp_path / "verify.json").write_text(json.dumps(verified))
    baseline.update(tmp_path / "baseline.json", [tmp_path / "verify.json"], "the first")
    return str(tmp_path / "baseline.json")


def test_a_ratio_is_taken_to_a_baseline(project, tiny_bundle, first):
    code = """
        import pytest

        @pytest.mark.accuracy_gate(max_ratio={"sqnr": 2})
        def test_alike():
            pass

        @pytest.mark.accuracy_gate(max_ratio={"sqnr": 0.5})
        def test_half_the_noise():
            pass
        """
    flags = [f"--vggdeploy-bundle={tiny_bundle}"]
    without = project(code, *flags)
    without.assert_outcomes(errors=2)
    ends_in_one_line(without, "give --vggdeploy-baseline=FILE")
    done = project(code, *flags, f"--vggdeploy-baseline={first}")
    done.assert_outcomes(failed=1, passed=1)
    assert "max_ratio.sqnr" in text(done)


def test_an_image_file_is_read_for_the_runner(project, tiny_bundle):
    done = project(
        """
        from pathlib import Path
        import pytest
        from PIL import Image
        from vggdeploy import dataset
        from vggdeploy.errors import RunnerError

        def test_photograph(bundle, runner):
            Image.new("RGB", (50, 40), (200, 10, 10)).save("cat.png")
            pixels = dataset.load(Path("cat.png"), bundle.preprocess)
            assert runner.scores(bundle.batch(pixels[None])).shape[0] == 1
            for wrong in (pixels, "cat.png", pixels / 255, [1, 2, 3]):
                with pytest.raises(RunnerError, match=r"takes pixels: got .* uint8 \\[N, H, W, 3\\]"):
                    bundle.batch(wrong)
        """,
        f"--vggdeploy-bundle={tiny_bundle}",
    )  # fmt: skip
    done.assert_outcomes(passed=1)


def test_ratios_of_class_and_test_all_hold(project, tiny_bundle, first):
    done = project(
        """
        import pytest

        @pytest.mark.accuracy_gate(max_ratio={"sqnr": 0.5, "agreement": 0.1})
        class TestBoth:
            @pytest.mark.accuracy_gate(max_ratio={"agreement": 2})
            def test_of_class_and_method(self):
                pass
        """,
        f"--vggdeploy-bundle={tiny_bundle}",
        f"--vggdeploy-baseline={first}",
    )  # fmt: skip
    done.assert_outcomes(failed=1)
    table = done.stdout.str()
    assert re.search(r"^max_ratio.sqnr +0.5 .* fail$", table, re.MULTILINE)
    assert re.search(r"^max_ratio.agreement +2 .* pass$", table, re.MULTILINE)


def test_what_does_not_run_here_is_emulated(project, tiny, tmp_path):
    pipeline.build(tiny(target="trt-int8", portable=True, out=tmp_path / "orin"))
    done = project(
        """
        import pytest

        def test_runner(bundle, runner):
            scores = runner.scores(bundle.batch(bundle.probes().images[:1]))
            assert scores.shape == (1, 10)

        @pytest.mark.accuracy_gate(min_sqnr=200)
        def test_gate(parity):
            pass
        """,
        f"--vggdeploy-bundle={tmp_path / 'orin'}",
    )  # fmt: skip
    done.assert_outcomes(passed=1, failed=1)
    assert "verdict: FAIL (emulated)" in text(done)


@pytest.mark.parametrize(("bundles", "outcome"), [(1, "passed"), (2, "failed"), (0, "skipped")])
def test_a_fixture_that_a_test_asks_for_late(project, tiny_bundle, bundles, outcome):
    code = "def test_it(request): assert request.getfixturevalue('bundle').target == 'ov-int8'"
    done = project(code, *[f"--vggdeploy-bundle={tiny_bundle}"] * bundles)
    done.assert_outcomes(**{outcome: 1})
    assert bundles < 2 or "take the fixture as an argument" in text(done)


def test_fixtures_of_the_project_take_our_place(project, tmp_path):
    done = project(
        """
        import pytest

        @pytest.fixture
        def bundle():
            return "a bundle of letters"

        @pytest.fixture
        def runner():
            return "a marathon runner"

        @pytest.fixture
        def parity():
            return "odd"

        def test_own(bundle, runner, parity):
            assert (bundle[:1], runner[:1], parity) == ("a", "a", "odd")
        """,
        f"--vggdeploy-bundle={tmp_path}", f"--vggdeploy-bundle={tmp_path / 'other'}",
    )  # fmt: skip
    done.assert_outcomes(passed=1)


def test_pytest_starts_without_anything_heavy(project, pytester):
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            print("IMPORTED", *sys.modules)
        """
    )
    done = project(
        """
        import pytest

        def test_plain():
            pass

        @pytest.mark.accuracy_gate(min_agreement=0.9)
        def test_gate():
            pass

        def test_fixture(bundle):
            pass
        """,
        "-p", "no:hypothesispytest",
    )  # fmt: skip
    done.assert_outcomes(passed=1, skipped=2)
    word, *imported = done.stdout.lines[-1].split()
    assert word == "IMPORTED"
    assert {"vggdeploy.pytest_plugin", "vggdeploy.policy"} <= set(imported)
    assert not [name for name in imported if name.startswith(HEAVY)]


def test_the_guide_names_every_option_and_fixture():
    guide = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    known = re.findall(r'"(--vggdeploy-[\w-]+)"', inspect.getsource(pytest_plugin))
    assert len(known) == 5
    assert set(re.findall(r"--vggdeploy-[\w-]+", guide)) == set(known)
    assert all(f"| `{name}` |" in guide for name in ("bundle", "runner", "parity"))
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    bounds = re.search(r"accuracy_gate\((.*)\)", example)[1]
    policy.make({key: float(value) for key, value in re.findall(r"(\w+)=([\d.]+)", bounds)})
    compile(example, "docs/ci.md", "exec")


def test_options_and_marker_explain_themselves(pytester):
    options = pytester.runpytest_subprocess("--help").stdout.str()
    assert all(f"--vggdeploy-{name}" in options for name in ("bundle", "data", "trusted-keys"))
    assert "@pytest.mark.accuracy_gate(min_agreement=" in (
        pytester.runpytest_subprocess("--markers").stdout.str()
    )
    fixtures = pytester.runpytest_subprocess("--fixtures").stdout.str()
    assert "An open runner" in fixtures
    assert "_vggdeploy" not in fixtures


def test_what_no_trusted_key_signed_is_not_run(project, tiny_bundle, tmp_path):
    pytest.importorskip("cryptography")
    shutil.copytree(tiny_bundle, tmp_path / "signed")
    signing.generate(tmp_path / "builder")
    code = "def test_it(runner): pass\ndef test_too(parity): pass"
    flags = [f"--vggdeploy-bundle={tmp_path / 'signed'}"]
    flags += [f"--vggdeploy-trusted-keys={tmp_path / 'builder.pub'}"]
    unsigned = project(code, *flags)
    unsigned.assert_outcomes(errors=2)
    ends_in_one_line(unsigned, "is not signed: got nothing, expected a signature by")
    bundle.sign(tmp_path / "signed", tmp_path / "builder")
    project(code, *flags).assert_outcomes(passed=2)


@pytest.mark.parametrize("environment", [False, True])
@pytest.mark.parametrize("option", ["bundle", "data", "baseline", "trusted-keys", "device"])
def test_an_option_and_its_value_are_one_word(project, pytester, monkeypatch, option, environment):
    """pytest would take its settings from where the value leads, and not from the project: the keys
    that are named there would be nobody's."""
    words = [f"--vggdeploy-{option}", str(pytester.mkdir("elsewhere"))]
    if environment:
        monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(words))
        words = []
    done = project("def test_it(): pass", *words)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.lines[0].startswith(
        f"ERROR: --vggdeploy-{option} and its value are two words"
    )
    assert f"-- write --vggdeploy-{option}=VALUE" in done.stderr.str()
    assert "Traceback" not in done.stderr.str()


@pytest.mark.parametrize("option", ["bundle", "data", "baseline", "trusted-keys"])
def test_an_option_is_not_empty(project, option):
    done = project("def test_it(): pass", f"--vggdeploy-{option}=")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "it is empty: give a path, or drop it" in done.stderr.str()


@pytest.mark.parametrize("linked", [False, True])
def test_no_test_is_taken_from_a_bundle(project, pytester, tiny_bundle, linked):
    shutil.copytree(tiny_bundle, pytester.path / "inside")
    (pytester.path / "inside" / "test_evil.py").write_text('raise SystemExit("it ran")\n')
    (pytester.path / "inside" / "more").mkdir()
    (pytester.path / "inside" / "more" / "conftest.py").write_text('raise SystemExit("it ran")\n')
    if linked:
        (pytester.path / "newest").symlink_to("inside")
    done = project(
        "def test_it(bundle): assert bundle.target == 'ov-int8'",
        f"--vggdeploy-bundle={'newest' if linked else 'inside'}",
    )
    done.assert_outcomes(passed=1)


def test_a_bundle_that_brings_a_conftest_is_refused_before_it_runs(project, pytester, tiny_bundle):
    inside = pytester.path / "test-bundle"  # whose conftest.py pytest runs at its start
    shutil.copytree(tiny_bundle, inside)
    (inside / "conftest.py").write_text('print("it ran")\n')
    done = project("def test_it(bundle): pass", "-s", "--vggdeploy-bundle=test-bundle")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "brings a conftest.py, which pytest would run" in done.stderr.str()
    assert "it ran" not in done.stdout.str()


def test_keys_that_a_project_names_hold(project, pytester, tiny_bundle, tmp_path):
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    signing.generate(tmp_path / "builder")
    pytester.makeini(f"[pytest]\naddopts = --vggdeploy-trusted-keys={tmp_path / 'builder.pub'}\n")
    done = project("def test_it(bundle): pass", f"--vggdeploy-bundle={tiny_bundle}")
    done.assert_outcomes(errors=1)
    assert "is not signed" in text(done)
