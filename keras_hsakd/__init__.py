"""Hierarchical self-supervised augmented knowledge distillation for Keras 3.

>>> import keras_hsakd as hsakd
>>> train, test = hsakd.data.load("cifar100", batch_size=64)
>>> teacher = hsakd.models.create("wrn_40_2", num_classes=100)
>>> student = hsakd.models.create("wrn_16_2", num_classes=100)
>>> hsakd.TeacherTrainer(teacher).compile(...).fit(train)
>>> hsakd.Distiller(teacher, student).compile(...).fit(train)
>>> hsakd.export.saved_model(student, "serving/student/1")
"""

import importlib

from keras_hsakd import checkpoints, layers, losses, models, ops, optimizers
from keras_hsakd.heads import strip_heads
from keras_hsakd.trainers import Distiller, TeacherTrainer

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "TeacherTrainer",
    "checkpoints",
    "data",
    "export",
    "layers",
    "losses",
    "models",
    "ops",
    "optimizers",
    "strip_heads",
]

# These two need TensorFlow; the rest also runs where only JAX is installed.
_NEED_TENSORFLOW = ("data", "export")


def __getattr__(name):
    if name in _NEED_TENSORFLOW:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
