"""Stage 2: calibration and quantization.

`collect` observes a float network on images, `calibrate` turns what it saw into thresholds and
factors of channels, `covariances` and `round_layers` round weights so that outputs change least,
and `quantize` writes the graph with QuantizeLinear and DequantizeLinear in place, as a dialect
wants them.
"""

from vggdeploy.calib.channels import links
from vggdeploy.calib.collect import Statistics, collect
from vggdeploy.calib.covariance import covariances
from vggdeploy.calib.methods import METHODS
from vggdeploy.calib.placement import Placement, place
from vggdeploy.calib.quantize import Quantized, quantize
from vggdeploy.calib.rounding import SecondOrder, round_layers, wanted_layers
from vggdeploy.calib.rounding import load as load_rounded
from vggdeploy.calib.rounding import save as save_rounded
from vggdeploy.calib.second_order import ORDERS
from vggdeploy.calib.table import CalibrationTable, calibrate

__all__ = [
    "METHODS",
    "ORDERS",
    "CalibrationTable",
    "Placement",
    "Quantized",
    "SecondOrder",
    "Statistics",
    "calibrate",
    "collect",
    "covariances",
    "links",
    "load_rounded",
    "place",
    "quantize",
    "round_layers",
    "save_rounded",
    "wanted_layers",
]
