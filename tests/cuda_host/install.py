"""Installs PyCUDA with this interpreter, where there is no CUDA: ``python install.py FOLDER``.

PyCUDA comes as source. It is compiled (minutes) with the headers of pip's CUDA packages, and linked
against the driver of host memory, whose name and functions are the real driver's.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import host

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-profiler-api")

# cuRAND, which PyCUDA would use too, is 80 MB of library for nothing that is used here.
CONFIGURATION = """CUDA_ENABLE_CURAND = False
CUDA_ROOT = None
CUDA_INC_DIR = {headers!r}
CUDADRV_LIB_DIR = [{library!r}]
"""


def pip(*arguments: str) -> None:
    """Run pip with the project's pins."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments, "-c", str(CONSTRAINTS)], check=True)


def install(folder: Path) -> None:
    """Build the driver of host memory into `folder`, and install PyCUDA if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    library = host.build(folder.resolve()).parent
    if importlib.util.find_spec("pycuda") is not None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        pip("install", "--no-deps", "--target", str(place / "headers"), *HEADERS)
        pip("download", "--no-deps", "--no-binary", "pycuda", "--dest", scratch, "pycuda")
        archive = next(place.glob("pycuda-*.tar.gz"))
        shutil.unpack_archive(archive, place)
        source = place / archive.name.removesuffix(".tar.gz")
        found = sorted({str(path.parent) for path in place.glob("headers/**/cuda*.h")})
        (source / "siteconf.py").write_text(
            CONFIGURATION.format(headers=found, library=str(library))
        )
        pip("install", str(source))


if __name__ == "__main__":
    if host.compiler() is None:
        raise SystemExit("no C compiler: install gcc or clang")
    install(Path(sys.argv[1]))
