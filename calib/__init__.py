"""Stage 2: calibration and quantization.

`collect` observes a float network on images, `calibrate` turns what it saw into thresholds, and
`quantize` writes the graph with QuantizeLinear and DequantizeLinear in place, as a dialect wants
them.
"""

from vggdeploy.calib.collect import Statistics, collect
from vggdeploy.calib.methods import METHODS
from vggdeploy.calib.placement import Placement, place
from vggdeploy.calib.quantize import Quantized, quantize
from vggdeploy.calib.table import CalibrationTable, calibrate

__all__ = [
    "METHODS",
    "CalibrationTable",
    "Placement",
    "Quantized",
    "Statistics",
    "calibrate",
    "collect",
    "place",
    "quantize",
]
