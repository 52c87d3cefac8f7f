"""A process that forks another for each job, which is made to fail where it writes.

``Doomed`` starts it and talks to it in lines of JSON. All that a job needs is imported before the
fork, and nothing is run there, since no thread of a library outlives a fork.

A *write point* is a call that changes what is on disk: opening for writing, making, renaming,
linking and removing, and modes. Python tells an audit hook of each before it is done; what a
library writes on its own falls between two of them. At its point a job is

    killed   by SIGKILL, just before the call
    torn     the same, and what was written since the point before is cut in half
    full     refused with ENOSPC, as all is that takes space from then on
    denied   refused with EROFS
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

Reply = dict[str, Any]

_FOLDERS = {"os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "os.chmod": 2}
"""Events of one path, and which argument is the folder that it is relative to."""
_PAIRS = ("os.rename", "os.link")
_MAKING = ("open", "os.mkdir", "os.rename", "os.link")
"""What takes space."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Doomed:
    """The forking process, as a context manager.

    Args:
        modules: what it imports besides.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules

    def __enter__(self) -> Doomed:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, requests: list[Reply]) -> list[Reply]:
        """Run jobs, all at once.

        A request has the ``job``, a function of this file, its ``root``, where it reads and writes
        and whose folder ``cache`` is its cache, and its ``arguments``. It may have a ``fault`` and
        ``at``, the number of the write point, from 1; ``limit``, bytes that a file can have;
        ``after``, seconds until SIGKILL; ``bare``, whether without the privileges of root; and
        ``clock``, seconds that the clock is ahead.

        The reply has a ``signal``; or ``error``, ``exit_code`` and ``said``; or ``bug``, a
        traceback; or ``made``, what the job gave. Unless it was killed, with ``points``, what was
        written, in order.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        replies: list[Reply] = json.loads(self._process.stdout.readline())
        return replies


class Fault:
    """An audit hook that counts write points below a folder, and fails at one."""

    def __init__(self, root: str, kind: str | None, at: int) -> None:
        self.root, self.kind, self.at = root + os.sep, kind, at
        self.points: list[str] = []
        self._before = self._files() if kind == "torn" else {}
        self._busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:
            return
        place = _written(event, arguments)
        if place is None or not place.startswith(self.root):
            return
        if event == "os.mkdir" and Path(place).is_dir():  # which changes nothing
            return
        self._busy = True
        try:
            self._reach(event, place)
        finally:
            self._busy = False

    def _reach(self, event: str, place: str) -> None:
        self.points.append(f"{event} {place.removeprefix(self.root)}")
        if len(self.points) == self.at - 1 and self.kind == "torn":
            self._before = self._files()
        later = self.kind == "full" and event in _MAKING
        if len(self.points) < self.at or (len(self.points) > self.at and not later):
            return
        if self.kind == "torn":
            for file, seen in self._files().items():
                if self._before.get(file) != seen:
                    os.truncate(file, seen[0] // 2)
        if self.kind in ("killed", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind is not None:
            number = errno.ENOSPC if self.kind == "full" else errno.EROFS
            raise OSError(number, os.strerror(number))

    def _files(self) -> dict[Path, tuple[int, int]]:
        return {
            file: (file.stat().st_size, file.stat().st_mtime_ns)
            for file in Path(self.root).rglob("*")
            if file.is_file()
        }


def _written(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an event changes; None where it changes none."""
    folder = -1
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
            return None
    elif event in _PAIRS:
        folder = arguments[2]
    elif event in _FOLDERS:
        folder = arguments[_FOLDERS[event]]
    else:
        return None
    if isinstance(arguments[0], int):
        return None
    place = os.fsdecode(arguments[0])
    if Path(place).is_absolute():
        return place
    return str(Path(f"/proc/self/fd/{folder}").readlink() / place) if folder >= 0 else None


def build(root: Path, **options: Any) -> Reply:
    """A bundle at ``place/bundle``."""
    paths = {key: Path(options[key]) for key in ("model",) if key in options}
    made = pipeline.build(
        inputs.BuildOptions(**{**options, **paths, "out": root / "place/bundle", "force": True})
    )
    return {
        "digest": made["digest"],
        "unchanged": made["unchanged"],
        "stages": [stage["name"] for stage in made["stages"] if not stage["cached"]],
    }


def export(root: Path, **options: Any) -> Reply:
    """A graph at ``place/graph``."""
    out = root / "place/graph"
    made = pipeline.export_graph(
        inputs.BuildOptions(
            **{**options, "model": Path(options["model"]), "out": out, "force": True}
        )
    )
    return {"digest": made["digest"]}


def calibrate(root: Path, **options: Any) -> Reply:
    """A table and TensorRT's cache, in ``place``."""
    pipeline.calibrate(
        inputs.BuildOptions(
            **{**options, "model": Path(options["model"]), "force": True},
            out=root / "place/table.json",
            emit_trt_cache=True,
        )
    )
    return {}


def record(root: Path, goal: str) -> Reply:
    """A choice of tuning, in ``place/bundle``."""
    here = tuning.Place("CPU", "Some CPU", 8)
    choice = tuning.Choice(goal, 1, contracts.Settings(threads=2), here, "openvino 1.2")
    opened = tuning.record(bundle.open_bundle(root / "place/bundle"), choice, {"number": 1})
    return {"digest": opened.manifest["tuned"]["digest"]}


def result(root: Path, text: str) -> Reply:
    """A result at ``place/result.json``."""
    results.write({"kind": "verify", "text": text}, str(root / "place/result.json"))
    return {}


def _run(request: Reply) -> Reply:
    """Do one job, in the process that may fail."""
    root = request["root"]
    os.environ["VGGDEPLOY_CACHE"] = f"{root}/cache"
    fault = Fault(root, request.get("fault"), request.get("at", 0))
    if "limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"],) * 2)
    if request.get("bare"):
        _drop_privileges()
    if "clock" in request:
        now = time.time
        time.time = lambda: now() + request["clock"]
    sys.addaudithook(fault)
    try:
        made = globals()[request["job"]](Path(root), **request.get("arguments", {}))
    except errors.VggdeployError as error:
        return {
            "error": type(error).__name__,
            "exit_code": error.exit_code,
            "said": str(error),
            "points": fault.points,
        }
    except BaseException:
        return {"bug": traceback.format_exc(), "points": fault.points}
    return {"made": made, "points": fault.points}


def _drop_privileges() -> None:
    """Take from root what lets it write where modes forbid it: all capabilities (capset(2))."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def _fork(request: Reply) -> tuple[int, IO[str], float | None]:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        after = request.get("after")
        return pid, os.fdopen(read), None if after is None else time.monotonic() + after
    # What the libraries print is nobody's.
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    with contextlib.suppress(BaseException), os.fdopen(write, "w") as pipe:
        json.dump(_run(request), pipe)
    os._exit(0)


def _wait(pid: int, pipe: IO[str], deadline: float | None) -> Reply:
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not select.select([pipe], [], [], left)[0]:
        os.kill(pid, signal.SIGKILL)
    with pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    reply: Reply = json.loads(said)
    return reply


def _serve() -> None:
    for line in sys.stdin:
        forked = [_fork(request) for request in json.loads(line)]
        print(json.dumps([_wait(*each) for each in forked]), flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)

    from vggdeploy.targets import openvino_module

    openvino_module.load()
    from vggdeploy import bundle, cache, contracts, errors, inputs, pipeline, results, tuning

    # A stage ends in a collection, which need not go through all that was imported.
    gc.collect()
    gc.freeze()
    cache.environment()  # which reads all of the source
    _serve()
