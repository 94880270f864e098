"""Checks whether rotations suit the data: digits, where a 6 upside down is a 9.

    python examples/check_views.py --views rotations

Trains a network with heads on the labels, then reports which views of which classes its
heads confuse, on images that it was not trained on.
"""

import argparse

import keras

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--views", default="rotations", choices=hsakd.views.names())
parser.add_argument("--model", default="resnet8")
parser.add_argument("--epochs", type=int, default=20)
options = parser.parse_args()

keras.utils.set_random_seed(0)
train, test = hsakd.data.load("digits", image_size=16)
num_views = len(hsakd.views.get(options.views))
network = hsakd.models.create(
    options.model, num_classes=10, input_shape=(16, 16, 3), num_views=num_views
)
trainer = hsakd.TeacherTrainer(network, views=options.views)
trainer.compile("adam", metrics=["accuracy"])
trainer.fit(train, epochs=options.epochs, verbose=2)
print(hsakd.check_views(network, test, options.views))
