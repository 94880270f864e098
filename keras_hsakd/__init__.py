"""Hierarchical self-supervised augmented knowledge distillation for Keras 3.

>>> import keras_hsakd as hsakd
>>> train, test = hsakd.data.load("digits", image_size=8, limit=16)
>>> teacher = hsakd.models.create("resnet8", num_classes=10, input_shape=(8, 8, 3))
>>> student = hsakd.models.create("wrn_10_1", num_classes=10, input_shape=(8, 8, 3))
>>> history = hsakd.TeacherTrainer(teacher).compile("adam").fit(train, verbose=0)
>>> distiller = hsakd.Distiller(teacher, student).compile("adam")
>>> history = distiller.fit(train, validation_data=test, verbose=0)
>>> preprocessing = hsakd.data.info("digits").preprocessing()
>>> hsakd.export.saved_model(student, "serving/student/1", preprocessing)
'serving/student/1'
"""

import os
import sys

from keras_hsakd import lazy

_started = os.path.basename("".join(sys.argv[:1]))
_is_command = os.path.splitext(_started)[0] == "keras-hsakd"

TYPE_CHECKING = False  # to a type checker, it is true; `typing` takes its time
if TYPE_CHECKING:
    from keras_hsakd import (
        checkpoints,
        data,
        export,
        layers,
        models,
        ops,
        optimizers,
        terms,
        views,
    )
    from keras_hsakd.attach import attach_heads, find_taps
    from keras_hsakd.distribution import synchronize_batch_norm
    from keras_hsakd.heads import strip_heads
    from keras_hsakd.pyramid import backbone
    from keras_hsakd.resume import Preempted, Resume
    from keras_hsakd.teachers import Ensemble, TeacherCache
    from keras_hsakd.trainers import Distiller, MutualDistiller, TeacherTrainer
    from keras_hsakd.views import check_views

__version__ = "0.2.0"

__all__ = [
    "Distiller",
    "Ensemble",
    "MutualDistiller",
    "Preempted",
    "Resume",
    "TeacherCache",
    "TeacherTrainer",
    "attach_heads",
    "backbone",
    "check_views",
    "checkpoints",
    "data",
    "export",
    "find_taps",
    "layers",
    "models",
    "ops",
    "optimizers",
    "strip_heads",
    "synchronize_batch_norm",
    "terms",
    "views",
]

# These two need TensorFlow; the rest also runs where only JAX is installed.
_NEED_TENSORFLOW = ("data", "export")
_CORE = ("checkpoints", "layers", "models", "ops", "optimizers", "terms", "views")

__getattr__, __dir__ = lazy.names_of(
    __name__,
    {
        "attach": ("attach_heads", "find_taps"),
        "distribution": ("synchronize_batch_norm",),
        "heads": ("strip_heads",),
        "pyramid": ("backbone",),
        "resume": ("Preempted", "Resume"),
        "teachers": ("Ensemble", "TeacherCache"),
        "trainers": ("Distiller", "MutualDistiller", "TeacherTrainer"),
        "views": ("check_views",),
    },
    submodules=_CORE + _NEED_TENSORFLOW,
)

# Keras finds our classes in its files once they are registered, so the core is imported
# at once. The command line alone reads its words first: Keras takes seconds to import.
if not _is_command:
    for _name in __all__:
        if _name not in _NEED_TENSORFLOW:
            globals()[_name] = __getattr__(_name)
