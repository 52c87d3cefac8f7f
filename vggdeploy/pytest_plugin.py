"""Bundles in tests of your own: a plugin for pytest, found by its entry point.

Tests of a bundle take the fixtures ``bundle``, ``runner`` and ``parity``, or carry the marker
``accuracy_gate``; they run once for each ``--vggdeploy-bundle`` and are skipped without any. The
bundle is opened, run and verified once a session. A project's own fixture of one of these names
takes its place, and the marker does not mind.

pytest imports this module in every project that it is installed beside, so no more than the errors
is imported before a fixture is used.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy.errors import ConfigError, VggdeployError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Runner
    from vggdeploy.policy import Policy

MARKER = "accuracy_gate"

_PREFIX, _CONFTEST = "--vggdeploy-", "conftest.py"
_PATH, _BUNDLE, _VERIFIED = "_vggdeploy_path", "_vggdeploy_bundle", "_vggdeploy_verified"
_DEMO = "demo"
_MISSED = pytest.StashKey[str]()
"""What a gate's table says, of a test whose bundle missed a bound."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, each named after the flag of ``vggdeploy verify`` or ``gate`` that it is."""
    group = parser.getgroup("vggdeploy", "bundles of vggdeploy")
    group.addoption(
        "--vggdeploy-bundle",
        metavar="BUNDLE",
        action="append",
        default=[],
        type=_absolute,
        help="A bundle that tests run with; give it again for each of several.",
    )
    group.addoption(
        "--vggdeploy-data",
        metavar="DIR",
        type=_data,
        help="A folder of images to verify on, or 'demo'; the bundle's own probes if not given.",
    )
    group.addoption(
        "--vggdeploy-device",
        metavar="DEVICE",
        default="CPU",
        help="CPU, GPU, NPU or AUTO, as OpenVINO names them.",
    )
    group.addoption(
        "--vggdeploy-baseline",
        metavar="FILE",
        type=_absolute,
        help="What 'vggdeploy baseline' wrote, for max_ratio of a marker.",
    )
    group.addoption(
        "--vggdeploy-trusted-keys",
        metavar="PATH",
        type=_absolute,
        help="Public keys, a file or a folder: bundles that none of them signed are refused.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Refuses, before pytest runs any conftest.py, what would let it run a bundle's.

    Raises:
        pytest.UsageError: for an option whose value stands apart from it: pytest reads its settings
            before it knows the options of plugins, and takes a path that stands alone for a place of
            tests. It would look for settings, and for code that they name, in a bundle's folder, and
            not in the project's, where the trusted keys may be named. And for a bundle with a
            conftest.py: of folders beside the tests that are named ``test*``, pytest runs it at once.
    """
    words = [
        *shlex.split(os.environ.get("PYTEST_ADDOPTS", "")),
        *early_config.invocation_params.args,
    ]
    for word in map(str, words):
        if word.startswith(_PREFIX) and "=" not in word:
            apart = ConfigError(
                f"{word} and its value are two words, and pytest takes a path that stands alone for "
                "one of tests",
                got=f"{word} VALUE",
                expected="one word",
                fix=f"write {word}=VALUE",
            )
            raise pytest.UsageError(str(apart))
    for place in early_config.known_args_namespace.vggdeploy_bundle:
        if os.path.lexists(place / _CONFTEST):
            brought = ConfigError(
                f"bundle {place} brings a {_CONFTEST}, which pytest would run",
                got=place / _CONFTEST,
                expected="the files of a bundle",
                fix="delete it, and ask who put it there",
            )
            raise pytest.UsageError(str(brought))


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known, for --strict-markers."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(min_agreement=..., max_drop=..., max_ratio=..., ...): run only with a bundle "
        "that meets these bounds of vggdeploy's policy; min_agreement=0.99 if there is none.",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Takes no tests from a bundle: what lies in its folder is whoever's who brought it."""
    given: list[Path] = config.getoption("vggdeploy_bundle")
    if given and collection_path.resolve() in [each.resolve() for each in given]:
        return True
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs what is of a bundle once for each that is given."""
    paths = metafunc.config.getoption("vggdeploy_bundle")
    marked = metafunc.definition.get_closest_marker(MARKER) is not None
    if paths and (marked or _BUNDLE in metafunc.fixturenames):
        if _PATH not in metafunc.fixturenames:
            metafunc.fixturenames.append(_PATH)
        names = [path.name for path in paths]
        metafunc.parametrize(_PATH, paths, indirect=True, scope="session", ids=names)


@pytest.fixture(scope="session", name=_PATH)
def _path(request: pytest.FixtureRequest) -> Path:
    given: list[Path] = request.config.getoption("vggdeploy_bundle")
    if not given:
        pytest.skip("there is no bundle to test: give --vggdeploy-bundle=BUNDLE")
    if not hasattr(request, "param") and len(given) > 1:
        pytest.fail("of several bundles, take the fixture as an argument", pytrace=False)
    path: Path = getattr(request, "param", given[0])
    return path


@pytest.fixture(scope="session", name=_BUNDLE)
def _opened(pytestconfig: pytest.Config, _vggdeploy_path: Path) -> Bundle:
    with _told():
        from vggdeploy.bundle import open_bundle

        return open_bundle(_vggdeploy_path, pytestconfig.getoption("vggdeploy_trusted_keys"))


@pytest.fixture(scope="session", name=_VERIFIED)
def _verified(pytestconfig: pytest.Config, _vggdeploy_bundle: Bundle) -> dict[str, Any]:
    with _told():
        from vggdeploy.verification import verify

        return verify(
            _vggdeploy_bundle.path,
            data=pytestconfig.getoption("vggdeploy_data"),
            device=pytestconfig.getoption("vggdeploy_device"),
            trusted=pytestconfig.getoption("vggdeploy_trusted_keys"),
        )


@pytest.fixture(scope="session")
def bundle(_vggdeploy_bundle: Bundle) -> Bundle:
    """The bundle of --vggdeploy-bundle (a `vggdeploy.bundle.Bundle`), its files checked."""
    return _vggdeploy_bundle


@pytest.fixture(scope="session")
def runner(pytestconfig: pytest.Config, _vggdeploy_bundle: Bundle) -> Iterator[Runner]:
    """An open runner (`vggdeploy.contracts.Runner`) of the bundle, for one image a query, or the
    fewest that its engine takes: of its engine, or of its graph, emulated on the CPU, where its
    target does not run here. It takes what `bundle.batch` makes of uint8 [1, H, W, 3] pixels."""
    with contextlib.ExitStack() as stack:
        with _told():
            from vggdeploy import execution
            from vggdeploy.contracts import RunOptions

            device = pytestconfig.getoption("vggdeploy_device")
            how = execution.choose(_vggdeploy_bundle, device)
            options = RunOptions(device=device, batch=how.least(_vggdeploy_bundle))
            opened = stack.enter_context(how.open(_vggdeploy_bundle, options))
        yield opened


@pytest.fixture(scope="session")
def parity(_vggdeploy_verified: dict[str, Any]) -> dict[str, Any]:
    """The result of verifying the bundle, as `vggdeploy verify --json` writes it, on
    --vggdeploy-data or on the bundle's own probes."""
    return _vggdeploy_verified


@pytest.fixture(autouse=True)
def _vggdeploy_gate(request: pytest.FixtureRequest) -> None:
    """Holds the bundle against the bounds of a test's markers; `pytest_runtest_call` says it."""
    markers = list(request.node.iter_markers(MARKER))
    if not markers:
        return
    with _told():
        policy = _policy(markers)
    verified = request.getfixturevalue(_VERIFIED)
    with _told():
        from vggdeploy import baseline, gate_table, gates

        before = request.config.getoption("vggdeploy_baseline")
        if policy.max_ratio and before is None:
            raise ConfigError(
                f"{MARKER}: max_ratio has nothing to take ratios to",
                got="no baseline",
                expected="a file that 'vggdeploy baseline' wrote",
                fix="give --vggdeploy-baseline=FILE",
            )
        held = baseline.results_of(before, verified["target"]) if before else None
        verdicts = gates.judge([verified], policy, baseline=held)
    if verdicts.verdict != "pass":
        request.node.stash[_MISSED] = f"{MARKER}\n{gate_table.text(verdicts)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Fails a test, in the place of its body, whose bundle missed a bound."""
    if (missed := item.stash.get(_MISSED, None)) is not None:
        pytest.fail(missed, pytrace=False)


def _policy(markers: list[pytest.Mark]) -> Policy:
    """The bounds of all markers of a test, the nearest first.

    Raises:
        ConfigError: for a bound that is unknown, cannot be, or is not of accuracy.
    """
    from vggdeploy import policy

    bounds: dict[str, Any] = {}
    for marker in reversed(markers):
        if marker.args:
            raise ConfigError(
                f"{MARKER} takes bounds by name",
                got=", ".join(map(repr, marker.args)),
                expected="such as min_agreement=0.99",
                fix="name them",
            )
        policy.make(marker.kwargs, MARKER)
        ratios = {**bounds.get(policy.MAX_RATIO, {}), **marker.kwargs.get(policy.MAX_RATIO, {})}
        bounds.update({**marker.kwargs, policy.MAX_RATIO: ratios})
    found = policy.make(bounds, MARKER)
    for metric in policy.METRICS.values():
        bounded = found.bound(metric) is not None or metric.name in found.max_ratio
        if metric.kind == "bench" and bounded:
            raise ConfigError(
                f"{MARKER}: nothing is measured here that a bound of speed could judge",
                got=metric.bound
                if metric.name not in found.max_ratio
                else f"max_ratio {metric.name}",
                expected="bounds of what 'vggdeploy verify' finds",
                fix="hold it with 'vggdeploy bench' and 'vggdeploy gate'",
            )
    return found


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Ends a test with the one line of an error of ours. A warning of a package that is imported
    meanwhile is shown, and is no error of the test, whatever the project's filters say."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            yield
        except VggdeployError as error:
            try:
                pytest.fail(str(error), pytrace=False)
            except pytest.fail.Exception as failed:
                raise failed from None  # else both are shown


def _data(given: str) -> str:
    return given if given == _DEMO else str(_absolute(given))


def _absolute(given: str) -> Path:
    """A path that stays what it is when a test changes the folder; none is no path, though Python
    takes it for the folder itself."""
    if not given.strip():
        raise argparse.ArgumentTypeError("it is empty: give a path, or drop it")
    return Path(given).expanduser().absolute()
