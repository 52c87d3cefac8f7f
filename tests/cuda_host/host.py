"""The CUDA driver of host memory, from Python: built with the C compiler, and asked and told."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import c_char_p, c_int, c_long
from pathlib import Path

SOURCES = Path(__file__).parent
NAME = "libcuda.so.1"

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
DEVICE_UNAVAILABLE = 46
LAUNCH_FAILED = 719

KINDS = (
    "contexts", "current", "abandoned", "device", "pinned", "streams", "events", "graphs", "execs",
)  # fmt: skip
"""References to the primary context, contexts current on this thread, what was left for the end of
a context that was not lost, and what is allocated."""


def compiler() -> str | None:
    """The C compiler; None where there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Build the library into `folder`, with the name that programs are linked against beside it."""
    path = folder / NAME
    sources = [str(SOURCES / name) for name in ("cuda_host.c", "absent.c")]
    command = [str(compiler()), "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, f"-Wl,-soname,{NAME}", "-o", str(path), *sources], check=True)
    linked = folder / "libcuda.so"
    linked.unlink(missing_ok=True)
    linked.symlink_to(NAME)
    return path


class Host:
    """The library, loaded: before PyCUDA is, so that PyCUDA finds it under the driver's name."""

    def __init__(self, path: Path) -> None:
        self.library = library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        library.host_set.argtypes = [c_char_p, c_int]
        library.host_set.restype = None
        library.host_fail.argtypes = [c_char_p, c_long, c_long, c_int, c_int]
        library.host_fail.restype = None
        library.host_heal.restype = None
        library.host_live.argtypes = [c_char_p]
        library.host_live.restype = c_long
        library.host_trace.restype = c_char_p

    def set(self, name: str, value: int) -> None:
        """Set ``devices``, ``driver`` (12040 is 12.4), ``capture``, ``trace``, or the ``rate`` of
        a clock that copies alone move on, in bytes a microsecond."""
        self.library.host_set(name.encode(), value)

    def fail(
        self, name: str, code: int, *, skip: int = 0, times: int = 1 << 30, lose: bool = False
    ) -> None:
        """Let a function fail: after `skip` calls, `times` times, with the device `lose`-d."""
        self.library.host_fail(name.encode(), skip, times, code, int(lose))

    def heal(self) -> None:
        """Take back all that `set` and `fail` did."""
        self.library.host_heal()

    def live(self) -> dict[str, int]:
        """What there is of each of `KINDS`, where there is any."""
        found = {kind: self.library.host_live(kind.encode()) for kind in KINDS}
        return {kind: count for kind, count in found.items() if count}

    def trace(self) -> list[str]:
        """Calls since ``set("trace", 1)``: a name, and the number of its stream."""
        return str(self.library.host_trace().decode()).splitlines()
