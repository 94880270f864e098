"""Distils into a MobileNetV3 of keras-cv, with auxiliary heads made by hand.

    pip install 'keras_hsakd[cv]'
    python examples/keras_cv_backbone.py photos --output student.keras

A network with heads is a functional model whose outputs are the class logits and, for
each head, the joint logits of class and rotation, the shallowest first. The teacher
must have as many heads; those of this package's networks have three.
"""

import argparse

import keras
import keras_cv
from keras import layers

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", help="train/<class>/<image> and test/<class>/<image>")
parser.add_argument("--image-size", type=int, default=64)
parser.add_argument("--teacher", default="resnet20", help="see `keras-hsakd models`")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--output", default="student.keras")
options = parser.parse_args()

keras.utils.set_random_seed(0)
size = options.image_size
train, test = hsakd.data.image_folder(
    options.folder, image_size=size, augment="rand_augment"
)
num_classes = len(train.class_names)

backbone = keras_cv.models.MobileNetV3Backbone(
    stackwise_expansion=[1, 4, 4, 6, 6],
    stackwise_filters=[16, 24, 24, 48, 96],
    stackwise_kernel_size=[3, 3, 3, 5, 5],
    stackwise_stride=[1, 2, 1, 2, 1],
    stackwise_se_ratio=[None, None, None, 0.25, 0.25],
    stackwise_activation=["relu", "relu", "relu", "hard_swish", "hard_swish"],
    include_rescaling=False,
    input_shape=(size, size, 3),
)
taps = [
    backbone.get_layer(name).output for name in backbone.pyramid_level_inputs.values()
]


def head(x, name):
    """Returns joint logits of class and rotation from feature maps."""
    x = layers.Conv2D(128, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
    return layers.Dense(4 * num_classes, name=name)(x)


features = layers.GlobalAveragePooling2D(name="pool")(backbone.output)
outputs = {"logits": layers.Dense(num_classes, name="logits")(features)}
for number, tap in enumerate(taps, start=1):
    outputs[f"aux_{number}"] = head(tap, f"aux_{number}")
student = keras.Model(backbone.input, outputs, name="mobilenet_v3_small")

teacher = hsakd.models.create(options.teacher, num_classes, input_shape=(size, size, 3))
trainer = hsakd.TeacherTrainer(teacher).compile("adam", metrics=["accuracy"])
trainer.fit(train, validation_data=test, epochs=options.epochs)

distiller = hsakd.Distiller(teacher, student).compile("adam", metrics=["accuracy"])
distiller.fit(train, validation_data=test, epochs=options.epochs)
hsakd.strip_heads(student).save(options.output)
