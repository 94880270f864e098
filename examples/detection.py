"""Trains a detector on a distilled network: RetinaNet of keras-cv, on Pascal VOC.

    pip install 'keras_hsakd[cv]'
    python examples/detection.py runs/student/best.keras --output runs/detector

The student takes images of 0 to 255, as those of run folders do. After a kill, the same
command goes on behind the last whole epoch. docs/transfer.md tells more.
"""

import argparse
import os

import keras
import keras_cv
import voc

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("student", help=".keras file of a network, with heads or without")
parser.add_argument("--data", nargs="+", default=["voc/2007", "voc/2012"])
parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
parser.add_argument("--image-size", type=int, default=512)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--learning-rate", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="runs/detector")
options = parser.parse_args()
keras.utils.set_random_seed(options.seed)
size = options.image_size
os.makedirs(options.output, exist_ok=True)
batching = {"batch_size": options.batch_size, "data_dir": options.data_dir}

student = keras.saving.load_model(options.student)
backbone = hsakd.backbone(student, ["P3", "P4", "P5"], (size, size, 3))
detector = keras_cv.models.RetinaNet(
    backbone,
    num_classes=voc.NUM_CLASSES,
    bounding_box_format="xyxy",
    prediction_decoder=keras_cv.layers.NonMaxSuppression(
        "xyxy", from_logits=True, confidence_threshold=0.05
    ),
)
train = voc.batches(options.data, "train+validation", size, **batching)
rate = keras.optimizers.schedules.CosineDecay(
    options.learning_rate, decay_steps=max(1, len(train) * options.epochs)
)
detector.compile(
    box_loss="smoothl1",
    classification_loss="focal",
    optimizer=keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=10.0),
)
backup = keras.callbacks.BackupAndRestore(
    f"{options.output}/backup", double_checkpoint=True
)
detector.fit(train, epochs=options.epochs, callbacks=[backup], verbose=2)
detector.save_weights(f"{options.output}/detector.weights.h5")
found = voc.average_precision(detector, options.data[0], "test", size, **batching)
print(f"AP50 {found:.4f}")
