"""Keras' own files: what is served, for those who go on in Keras."""

import keras

from keras_hsakd.export.formats import Format, Predict, in_graph
from keras_hsakd.export.serving import Served


def write(served: Served, path: str) -> None:
    """Writes what `serving_model` returns as a `.keras` file; see `Format`."""
    served.model.save(path)


def load(path: str) -> Predict:
    """Loads a `.keras` file; see `Format`."""
    model = keras.saving.load_model(path, compile=False)
    return in_graph(model).serve


KERAS = Format(write, load, suffix=".keras", runtime="keras")
