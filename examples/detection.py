"""Trains a detector on a distilled network: RetinaNet of keras-cv, on Pascal VOC.

    pip install 'keras_hsakd[cv]'
    python examples/detection.py runs/student/best.keras --output runs/detector

The student takes images of 0 to 255, as those of run folders do. After a kill, the same
command goes on behind the last whole epoch. docs/transfer.md says more.
"""

import argparse

import keras
import keras_cv
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("student", help=".keras file of a network, with heads or without")
parser.add_argument("--data", nargs="+", default=["voc/2007", "voc/2012"])
parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
parser.add_argument("--image-size", type=int, default=512)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--learning-rate", type=float, default=0.01)
parser.add_argument("--freeze", action="store_true", help="keep the student as it is")
parser.add_argument("--output", default="runs/detector")
options = parser.parse_args()
keras.utils.set_random_seed(0)
size = options.image_size


def example(row):
    """Returns an image, and boxes (left, top, right, bottom) and classes in it."""
    boxes = tf.gather(row["objects"]["bbox"], [1, 0, 3, 2], axis=1) * size
    classes = tf.cast(row["objects"]["label"], "float32")
    image = tf.image.resize(row["image"], (size, size))
    return image, {"boxes": boxes, "classes": classes}


def flip(image, objects):
    """Mirrors half of the images."""
    left, top, right, bottom = tf.unstack(objects["boxes"], axis=1)
    boxes = tf.stack([size - right, top, size - left, bottom], axis=1)
    if tf.random.uniform(()) < 0.5:
        return tf.image.flip_left_right(image), {**objects, "boxes": boxes}
    return image, objects


def batched(images):
    """Returns batches of as many objects for each image, the missing ones -1."""
    shapes = (size, size, 3), {"boxes": (100, 4), "classes": (100,)}
    values = 0.0, {"boxes": -1.0, "classes": -1.0}
    return images.padded_batch(options.batch_size, shapes, values).prefetch(2)


tests, *others = (
    tfds.load(name, split=split, data_dir=options.data_dir).map(example)
    for split, names in (("test", options.data[:1]), ("train+validation", options.data))
    for name in names
)
train = others[0] if len(others) == 1 else others[0].concatenate(others[1])
train, test = batched(train.shuffle(1000).map(flip)), batched(tests)

student = keras.saving.load_model(options.student)
backbone = hsakd.backbone(student, ["P3", "P4", "P5"], (size, size, 3))
backbone.trainable = not options.freeze
detector = keras_cv.models.RetinaNet(backbone, 20, "xyxy")
steps = len(train) * options.epochs
rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps + 1)
optimizer = keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=10.0)
detector.compile("smoothl1", "focal", optimizer=optimizer)
folder = f"{options.output}/backup"
backup = keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)
detector.fit(train, epochs=options.epochs, callbacks=[backup])
detector.save_weights(f"{options.output}/detector.weights.h5")

metrics = keras_cv.metrics.BoxCOCOMetrics("xyxy", evaluate_freq=10**9)
for images, objects in test:
    found = detector.decode_predictions(detector(images), images)
    metrics.update_state(objects, found)
results = metrics.result(force=True)
print(f"AP50 {float(results['MaP@[IoU=50]']):.3f}, AP {float(results['MaP']):.3f}")
