"""Stage 1: torch to ONNX, and foreign ONNX graphs taken in.

Both ways end in the same place: a clean FP32 graph with one image batch in and class scores out,
its weights in a file beside it.
"""

from vggdeploy.export.clean import clean
from vggdeploy.export.foreign import adopt, inspect
from vggdeploy.export.from_torch import export

__all__ = ["adopt", "clean", "export", "inspect"]
