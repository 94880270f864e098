"""Names that the command line offers, of things whose modules need Keras.

Keras and TensorFlow take seconds to import; help and errors of the command line come
without them. Each module has the things themselves, in this order. A type is for
settings and flags, whose values it lists.
"""

from typing import Literal, get_args

# Of `data`.
DATA_SETS = ("cifar10", "cifar100", "digits", "stl10")
# Of `attach` and `models`: auxiliary heads.
Head = Literal["copy", "light"]
HEADS = get_args(Head)
# Of `results`: which network of a run.
Checkpoint = Literal["last", "best"]
# Of `terms`.
Method = Literal[
    *("hsakd", "kd", "dkd", "standardized"),
    *("fitnet", "attention", "similarity", "relational"),
]
METHODS = get_args(Method)
# Of `views`.
Views = Literal["rotations", "padded_rotations", "half_turns", "color_permutations"]
VIEWS = get_args(Views)
# Of `runs.sources`: who preprocesses the images of somebody's network.
Preprocessing = Literal["inside", "normalize"]
# Of `runs.applications`: how files of weights end.
WEIGHT_FILES = (".h5", ".hdf5")
# Of `teachers`: how an output is kept.
CacheDtype = Literal["float16", "float32", "uint8"]
DTYPES = get_args(CacheDtype)
# Of `export`.
Format = Literal[
    "saved_model", "litert", "litert-float16", "litert-int8", "onnx", "keras"
]
FORMATS = get_args(Format)
# Of `export`: what a model card tells that figures do not.
CARD = ("intended_use", "data", "training", "limits", "licence")
