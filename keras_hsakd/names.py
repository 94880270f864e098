"""Names that the command line offers, of things whose modules need Keras.

Keras and TensorFlow take seconds to import; help and errors of the command line come
without them. Each module has the things themselves, in this order.
"""

# Of `data`.
DATA_SETS = ("cifar10", "cifar100", "digits", "stl10")
# Of `attach` and `models`: auxiliary heads.
HEADS = ("copy", "light")
# Of `terms`.
METHODS = (
    *("hsakd", "kd", "dkd", "standardized"),
    *("fitnet", "attention", "similarity", "relational"),
)
# Of `views`.
VIEWS = ("rotations", "padded_rotations", "half_turns", "color_permutations")
# Of `runs.sources`: who preprocesses the images of somebody's network.
PREPROCESSINGS = ("inside", "normalize")
# Of `runs.applications`: how files of weights end.
WEIGHT_FILES = (".h5", ".hdf5")
# Of `teachers`: how an output is kept.
DTYPES = ("float16", "float32", "uint8")
# Of `export`.
FORMATS = (
    "saved_model",
    "litert",
    "litert-float16",
    "litert-int8",
    "onnx",
    "keras",
)
# Of `export`: what a model card tells that figures do not.
CARD = ("intended_use", "data", "training", "limits", "licence")
