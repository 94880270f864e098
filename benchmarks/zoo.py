"""What the networks of the zoo cost, counted in the networks themselves.

    make zoo

writes `keras_hsakd/zoo.json`, a line for each network, which the package reads in
place of making them: that takes most of a minute.
"""

import json
import math
import pathlib

import keras

from keras_hsakd import models, strip_heads
from keras_hsakd.compat import shapes_only
from keras_hsakd.graph import ancestors, operation_of
from keras_hsakd.heads import head_names
from keras_hsakd.zoo import COSTS, Cost

PATH = pathlib.Path(__file__).parent.parent / "keras_hsakd" / "zoo.json"


def trained(network):
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


def by_classes(few, more):
    """Returns parameters without a class, and those of each, of 2 and 3 classes."""
    of_a_class = trained(more) - trained(few)
    return trained(few) - 2 * of_a_class, of_a_class


def cost(name: str, image_size: int) -> Cost:
    """Returns what a network costs that is made for images of a size."""
    shape = (image_size, image_size, 3)
    with shapes_only():
        networks = [models.create(name, classes, shape) for classes in (2, 3)]
    plain = [strip_heads(network) for network in networks]
    levels = {}
    for tensor in ancestors(plain[0].outputs):
        layer = operation_of(tensor)
        if isinstance(layer, keras.layers.Layer) and len(tensor.shape) == 4:
            halved = round(math.log2(image_size / tensor.shape[1]))
            kernels = (math.prod(w.shape) for w in layer.weights if len(w.shape) > 1)
            levels[halved] = levels.get(halved, 0) + sum(kernels)
    return Cost(
        image_size,
        len(head_names(networks[0])),
        by_classes(*plain),
        by_classes(*networks),
        tuple(levels.get(level, 0) for level in range(max(levels) + 1)),
    )


def main():
    # Of a new network it is 32, unless another one is written in its row.
    rows = {
        name: cost(name, COSTS[name].image_size if name in COSTS else 32)
        for name in models.names()
    }
    lines = [f'"{name}": {json.dumps(row._asdict())}' for name, row in rows.items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
