"""Students as they are shipped: a file a format, one check for all."""

from keras_hsakd.export.serving import serving_model
from keras_hsakd.export.shipping import Shipped, ship
from keras_hsakd.export.tensorflow import saved_model

__all__ = ["Shipped", "saved_model", "serving_model", "ship"]
