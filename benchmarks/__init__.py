"""Stage 3: the measuring harness.

`bench` measures a bundle through its `Runner` and judges it against its budget. The other modules
are programs that produce the project's own figures (``python -m vggdeploy.benchmarks.NAME``).
"""

from vggdeploy.benchmarks.bench import bench
from vggdeploy.benchmarks.options import BenchOptions

__all__ = ["BenchOptions", "bench"]
