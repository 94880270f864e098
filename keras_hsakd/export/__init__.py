"""Students as they are shipped: a file a format, one check for all."""

from keras_hsakd.export.calibration import fit_temperature
from keras_hsakd.export.measuring import CARD, Trial
from keras_hsakd.export.metrics import expected_calibration_error
from keras_hsakd.export.serving import serving_model
from keras_hsakd.export.shipping import FORMATS, Shipped, ship
from keras_hsakd.export.tensorflow import saved_model

__all__ = [
    "CARD",
    "FORMATS",
    "Shipped",
    "Trial",
    "expected_calibration_error",
    "fit_temperature",
    "saved_model",
    "serving_model",
    "ship",
]
