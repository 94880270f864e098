"""Distils into a small network of your own, from one of `keras.applications`.

    python examples/custom_model.py photos --output student.keras

The folder holds `train/<class>/<image>` and `test/<class>/<image>`. Heads come on by
`attach_heads`; teacher and student differ in their number of heads, so the teacher's
last ones teach.
"""

import argparse

import keras
from keras import layers

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("--image-size", type=int, default=64)
parser.add_argument("--width", type=int, default=32, help="filters of the student")
parser.add_argument("--alpha", type=float, default=1.0, help="width of the teacher")
parser.add_argument("--head", default="light", choices=("copy", "light"))
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--output", default="student.keras")
options = parser.parse_args()

keras.utils.set_random_seed(0)
train, test = hsakd.data.image_folder(options.folder, image_size=options.image_size)
shape = (options.image_size, options.image_size, 3)
num_classes = len(train.class_names)

model = keras.Sequential([keras.Input(shape)], name="mine")
for stage in range(3):
    for stride in (1, 2):
        filters = options.width * 2**stage
        model.add(layers.Conv2D(filters, 3, stride, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
model.add(layers.GlobalAveragePooling2D())
model.add(layers.Dense(num_classes, activation="softmax"))
student = hsakd.attach_heads(model, head=options.head)  # shares `model`'s layers

mobilenet = keras.applications.MobileNetV2(
    shape, alpha=options.alpha, weights=None, classes=num_classes
)
teacher = hsakd.attach_heads(mobilenet, head=options.head)
for network in (mobilenet, model):
    for tap in hsakd.find_taps(network, head=options.head):
        print(tap)

trainer = hsakd.TeacherTrainer(teacher).compile("adam", metrics=["accuracy"])
trainer.fit(train, validation_data=test, epochs=options.epochs)
distiller = hsakd.Distiller(teacher, student).compile("adam", metrics=["accuracy"])
print("teacher's head, student's head:", distiller.pairs)
distiller.fit(train, validation_data=test, epochs=options.epochs)
model.save(options.output)  # the distilled weights, without heads
