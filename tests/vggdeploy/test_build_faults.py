"""What accidents leave of a build: damage heals, and nothing half-written is taken for whole."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import building, bundle, pipeline
from vggdeploy.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Options = Callable[..., pipeline.BuildOptions]

pytest.importorskip("openvino")
pytest.importorskip("torch")


@pytest.mark.parametrize(
    "stage", ["collect", "calibrate", "round", "quantize", "compile", "reference"]
)
def test_damaged_cache_entry_heals(
    tiny: Options,
    tiny_bundle: Path,
    tmp_path: Path,
    own_cache: Path,
    stage: str,
    folder_contents: Any,
) -> None:
    pipeline.build(tiny(out=tmp_path / "first"))
    # The newest, since the session's cache may hold other networks' too.
    entry = max((own_cache / stage).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    victim = max(
        (p for p in entry.iterdir() if p.name != "entry.json"), key=lambda p: p.stat().st_size
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    result = pipeline.build(tiny(out=tmp_path / "second"))
    made_anew = {entry["name"] for entry in result["stages"] if not entry["cached"]}
    assert stage in made_anew
    assert folder_contents(tmp_path / "second").keys() == folder_contents(tmp_path / "first").keys()
    assert (tmp_path / "second/model.bin").read_bytes() == (
        tmp_path / "first/model.bin"
    ).read_bytes()


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("model.bin", False),
        ("model.bin", True),
        ("probes.npz", True),
        ("manifest.json", False),
    ],
)
def test_damaged_bundle_heals(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, name: str, gone: bool
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)
    content = (out / name).read_bytes()
    if gone:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content[:-7])
    # A manifest that cannot be read does not say whose bundle it is: that takes --force.
    result = pipeline.build(tiny(out=out, force=name == "manifest.json"))
    assert result["unchanged"] is False
    assert bundle.open_bundle(out).manifest["build"]["key"]


KILLER = """
import os, signal, sys
from pathlib import Path
from vggdeploy import atomic, building, bundle, pipeline

moment, weights, recipe, images, out = sys.argv[1:]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, count=1):
    usual, left = getattr(owner, name), [count]
    def wrapped(*args, **kwargs):
        left[0] -= 1
        return usual(*args, **kwargs) if left[0] else die()
    setattr(owner, name, wrapped)

if moment == "collecting":
    before(building.calib.Statistics, "save")
elif moment == "compiling":
    from vggdeploy.targets.openvino import OpenVINO
    usual = OpenVINO.compile
    OpenVINO.compile = lambda *args: (usual(*args), die())
elif moment == "copying":
    before(building.shutil, "copyfile", 2)
elif moment == "writing the manifest":
    usual = bundle.write
    def write(path, facts, fill, *, replace):
        return usual(path, facts, lambda work: (fill(work), die()), replace=replace)
    bundle.write = write
elif moment == "renaming":
    publish = atomic._publish
    atomic._publish = lambda work, final, replace: (
        die() if str(final) == out else publish(work, final, replace)
    )
elif moment == "between two renames":
    atomic._exchange = lambda *_: False  # as where the system cannot
    rename = Path.rename
    Path.rename = lambda self, target: (
        die() if str(target) == out and not os.path.exists(out) else rename(self, target)
    )

pipeline.build(pipeline.BuildOptions(
    weights=weights, preprocess=recipe, calib_data=images, calib_images=16, out=Path(out),
    method="percentile", force=True,
))
"""


@pytest.mark.parametrize(
    ("moment", "there"),
    [
        ("collecting", False),
        ("compiling", False),
        ("copying", True),
        ("writing the manifest", False),
        ("renaming", False),
        ("between two renames", True),
    ],
)
def test_killed_build_leaves_no_half_bundle(
    tiny: Options,
    tiny_bundle: Path,
    tmp_path: Path,
    moment: str,
    there: bool,
    own_cache: Path,
    folder_contents: Any,
) -> None:
    out = tmp_path / "bundles" / "tiny"
    if there:
        shutil.copytree(tiny_bundle, out)
    options = tiny()
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLER,
            moment,
            options.weights,
            options.preprocess,
            options.calib_data,
            str(out),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # At its place is the whole old bundle or nothing.
    if moment == "copying":
        assert folder_contents(out) == folder_contents(tiny_bundle)
    else:
        assert not out.exists()
    result = pipeline.build(tiny(out=out, method="percentile", force=True))
    assert bundle.open_bundle(out).manifest["digest"] == result["digest"]
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    assert not [*own_cache.rglob("*.partial"), *own_cache.rglob("*.old")]


@pytest.mark.parametrize("call", ["shutil.copyfile", "numpy.savez", "pathlib.Path.write_text"])
def test_full_disk_is_said_and_leaves_nothing(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "bundle"
    with monkeypatch.context() as patch, pytest.raises(MissingError) as caught:
        patch.setattr(call, full)
        pipeline.build(tiny(out=out))
    assert "no space left" in str(caught.value)
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())
    assert pipeline.build(tiny(out=out))["unchanged"] is False


def test_full_disk_in_a_stage_leaves_no_entry(
    tiny: Options,
    tiny_bundle: Path,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.rmtree(own_cache / "reference")
    with monkeypatch.context() as patch, pytest.raises(MissingError, match="no space left"):
        patch.setattr("vggdeploy.sources.np.save", full)
        pipeline.build(tiny(out=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
    assert not list((own_cache / "reference").iterdir())


def test_a_bundle_that_another_process_mended_meanwhile_stays(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be open there."""
    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)
    (out / "model.bin").write_bytes(b"damaged")
    fill = building.Build._fill

    def slow(self: building.Build, work: Path, made: building.Made) -> None:
        fill(self, work, made)
        shutil.rmtree(out)
        shutil.copytree(tiny_bundle, out)

    monkeypatch.setattr(building.Build, "_fill", slow)
    result = pipeline.build(tiny(out=out))
    assert result["digest"] == bundle.open_bundle(tiny_bundle).manifest["digest"]
    assert (out / "model.bin").stat().st_mtime_ns == (tiny_bundle / "model.bin").stat().st_mtime_ns
