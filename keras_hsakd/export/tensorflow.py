"""SavedModels, which TF Serving takes: signatures, class names, warm-up requests."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd.data import center_crop as crop_centre
from keras_hsakd.data.decoding import decode
from keras_hsakd.export.formats import Format, Predict, plain_operations, write_checked
from keras_hsakd.export.serving import Preprocessing, Served
from keras_hsakd.files import atomic_write

# Batches that are warmed up, and that TF Serving is told to make.
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
# Of serialized `tf.train.Example`s.
FEATURE = "image/encoded"
_WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")


def write(served: Served, path: str) -> None:
    """Writes a SavedModel; see `Format`."""
    module = _Module(served)
    with tempfile.TemporaryDirectory() as folder:
        if served.class_names is not None:
            names = os.path.join(folder, "class_names.txt")
            with open(names, "w", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in served.class_names)
            module.class_names = tf.saved_model.Asset(names)
        tf.saved_model.save(module, path, signatures=module.signatures())
    _write_warmup(module, os.path.join(path, _WARMUP))


def load(path: str) -> Predict:
    """Loads a SavedModel by its signature; see `Format`."""
    signature = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: signature(images=tf.constant(images))


SAVED_MODEL = Format(write, load, suffix="", runtime="tensorflow")


def saved_model(
    student,
    path: str | os.PathLike,
    preprocessing: Preprocessing | None = None,
    *,
    class_names: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    center_crop: float | None = None,
    features: str | None = None,
) -> str:
    """Exports a student as a SavedModel for TF Serving, and checks the result.

    The auxiliary heads are stripped and the preprocessing baked in. What was written
    is loaded again and compared with the student before it gets its name, so that
    nothing wrong or half-written is ever at `path`. TensorFlow alone loads it.

    | signature | input | |
    | --- | --- | --- |
    | `serving_default` | `images` | uint8, `(B, height, width, channels)` |
    | `float_images` | `images` | the same in float32, values 0 to 255 |
    | `image_bytes` | `image_bytes` | files of any size, strings `(B,)` |
    | `classify` | `inputs` | serialized `tf.train.Example`s, file `image/encoded` |
    | `features` | `images` | uint8, with the argument `features` |

    Files are JPEG, PNG, GIF, BMP of 24 or 32 bits, or WebP without animation, of at
    most 100,000,000 pixels; they are decoded, JPEG is turned upright, and resized as in
    evaluation. Both signatures of files are there where the size of the served images
    is known and they have three channels.

    The outputs are `logits`, `probabilities`, `class` (int64) and, with `class_names`,
    `label`; with `top_k` also `top_classes`, `top_probabilities` and `top_labels`.
    Those of `classify` are `classes` and `scores`, the most likely first; that of
    `features` is `features`, float32 `(B, channels)`.

    Args:
        student: A functional model with or without auxiliary heads.
        path: Folder to make. TF Serving wants the model's version as its last part:
            `serving/student/1`.
        preprocessing: Layer, model or function from raw images to what the student was
            trained on, see `keras_hsakd.export.serving_model`. Defaults to `None`: the
            student takes raw values.
        class_names: Names of the classes, in the order of the logits. Defaults to
            `None`.
        images: Real images as they will be served, uint8 of shape
            `(count, height, width, channels)`, on which the result is checked. Defaults
            to `None`, random ones.
        top_k: Int, number of the most likely classes that are told beside. Defaults to
            `None`, none.
        temperature: Float that the logits are divided by before the softmax, see
            `keras_hsakd.export.fit_temperature`. Defaults to 1.
        center_crop: Float, the part of a file's shorter side that is kept, as in
            `keras_hsakd.data.image_folder`. Defaults to `None`, which resizes the
            whole image.
        features: Name of a layer of the student whose outputs, averaged over positions,
            are served, too, to search or cluster images by. Defaults to `None`, none.

    Returns:
        The path.

    Raises:
        FileExistsError: If `path` exists.
        RuntimeError: If the Keras backend is not TensorFlow, or the reloaded model
            predicts something else than the student.
        ValueError: If the student does not map one batch of images to class logits, or
            an argument does not suit it.

    Example:
    >>> student = keras_hsakd.models.create("resnet8", num_classes=100)
    >>> preprocessing = keras_hsakd.data.info("cifar100").preprocessing()
    >>> keras_hsakd.export.saved_model(student, "serving/resnet8/1", preprocessing)
    'serving/resnet8/1'
    """
    served = Served(
        student=student,
        preprocessing=preprocessing,
        temperature=temperature,
        class_names=class_names,
        images=images,
        top_k=top_k,
        center_crop=center_crop,
        features=features,
    )
    return write_checked(SAVED_MODEL, served, path)


class _Module(tf.Module):
    """The functions that a SavedModel has as signatures."""

    variables = ()  # not the property of tf.Module, which is not saved

    def __init__(self, served):
        super().__init__()
        self._served = served
        _, *self.shape = served.model.input.shape
        self.variables = [variable.value for variable in served.model.variables]

    def signatures(self):
        """Returns the signatures by name, traced."""
        images = [None, *self.shape]
        files = tf.TensorSpec([None], tf.string)
        functions = {
            "serving_default": (
                self._of_images,
                {"images": tf.TensorSpec(images, tf.uint8)},
            ),
            "float_images": (
                self._of_floats,
                {"images": tf.TensorSpec(images, tf.float32)},
            ),
        }
        if self._served.features is not None:
            functions["features"] = (
                self._features_of_images,
                {"images": tf.TensorSpec(images, tf.uint8)},
            )
        if self.shape[-1] == 3 and None not in self.shape:
            functions["image_bytes"] = (self._of_files, {"image_bytes": files})
            functions["classify"] = (self._of_examples, {"inputs": files})
        traced = {}
        for name, (function, specs) in functions.items():
            named = {
                key: tf.TensorSpec(s.shape, s.dtype, key) for key, s in specs.items()
            }
            function = tf.function(function, autograph=False)
            traced[name] = function.get_concrete_function(**named)
        # By this name converters know which signature a Keras model has.
        self.serve = traced["serving_default"]
        return traced

    def _of_images(self, images):
        return self._outputs(tf.cast(images, tf.float32))

    def _of_floats(self, images):
        finite = tf.debugging.assert_all_finite(
            images, "Expected `images` to be finite. Received: values that are not"
        )
        return self._outputs(finite)

    def _of_files(self, image_bytes):
        images = tf.map_fn(
            self._decoded,
            tf.ensure_shape(image_bytes, [None]),
            fn_output_signature=tf.TensorSpec(self.shape, tf.float32),
        )
        return self._outputs(images)

    def _of_examples(self, inputs):
        features = {FEATURE: tf.io.FixedLenFeature((), tf.string)}
        files = tf.io.parse_example(inputs, features)[FEATURE]
        probabilities = self._of_files(files)["probabilities"]
        count = self._served.top_k or self._served.num_classes
        scores, classes = tf.math.top_k(probabilities, count)
        return {"classes": self._labels(classes), "scores": scores}

    def _decoded(self, content):
        """Returns an image file as an image of evaluation."""
        image = decode(content)
        size = self.shape[:2]
        if self._served.center_crop is not None:
            return crop_centre(image, size, self._served.center_crop)
        return tf.image.resize(image, size, antialias=True)

    def _features_of_images(self, images):
        floats = tf.cast(images, tf.float32)
        return self._run(self._served.model_of_features, floats)

    def _run(self, model, images):
        # A server's session does not check the shapes of what it is given.
        images = tf.ensure_shape(images, [None, *self.shape])
        count = tf.shape(images)[0]
        # A fused convolution of TensorFlow fails on a batch without images.
        padded = tf.pad(images, [[0, 1], [0, 0], [0, 0], [0, 0]])
        some = padded[: tf.maximum(count, 1)]
        with plain_operations():
            outputs = model(some, training=False)
        return {name: values[:count] for name, values in outputs.items()}

    def _outputs(self, images):
        outputs = self._run(self._served.model_of_floats, images)
        outputs["class"] = tf.argmax(outputs["logits"], axis=-1)
        if self._served.class_names is not None:
            outputs["label"] = self._labels(outputs["class"])
        if self._served.top_k is not None:
            probabilities, classes = tf.math.top_k(
                outputs["probabilities"], self._served.top_k
            )
            outputs["top_probabilities"] = probabilities
            outputs["top_classes"] = tf.cast(classes, tf.int64)
            if self._served.class_names is not None:
                outputs["top_labels"] = self._labels(classes)
        return outputs

    def _labels(self, classes):
        if self._served.class_names is None:
            return tf.strings.as_string(classes)
        return tf.gather(tf.constant(list(map(str, self._served.class_names))), classes)

    def requests(self) -> Iterator[tuple]:
        """Yields a blank request of each signature and batch size.

        Each is the name of the signature, that of its input, and the input.
        """
        if None in self.shape:
            return
        of_images = {"serving_default": tf.uint8, "float_images": tf.float32}
        if self._served.features is not None:
            of_images["features"] = tf.uint8
        for size in BATCH_SIZES:
            for name, dtype in of_images.items():
                # One value stands for all.
                blank = tf.make_tensor_proto(0, dtype)
                blank.tensor_shape.CopyFrom(
                    tf.TensorShape([size, *self.shape]).as_proto()
                )
                yield name, "images", blank
            if self.shape[-1] == 3:
                file = tf.io.encode_png(tf.zeros(self.shape, tf.uint8)).numpy()
                files = tf.make_tensor_proto([file] * size, tf.string)
                yield "image_bytes", "image_bytes", files


def _write_warmup(module, path):
    """Writes requests that TF Serving runs before it says that a version is there."""
    os.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as file:
        for signature, name, values in module.requests():
            file.write(_prediction_log(signature, name, values))


def _prediction_log(signature, name, values):
    """Returns a serialized `PredictionLog` of TF Serving.

    Its classes are in tensorflow-serving-api alone, which is not needed for this.
    """
    model = _field(3, signature.encode())  # ModelSpec.signature_name
    inputs = _field(1, name.encode()) + _field(2, values.SerializeToString())
    request = _field(1, model) + _field(2, inputs)  # PredictRequest.model_spec, inputs
    return _field(6, _field(1, request))  # PredictionLog.predict_log, its request


def _field(number, content):
    """Returns a field of bytes as protocol buffers have it."""
    head, length = [8 * number + 2], len(content)
    while length >= 128:
        head.append(length % 128 + 128)
        length //= 128
    return bytes([*head, length]) + content


def write_server_configs(folder: str) -> None:
    """Writes `models.config` and `batching.config` for TF Serving, where they are not.

    Args:
        folder: Folder of versions of a model.

    Example:
    >>> import os
    >>> os.makedirs("serving/student")
    >>> write_server_configs("serving/student")
    >>> sorted(os.listdir("serving/student"))
    ['batching.config', 'models.config']
    """
    folder = os.path.abspath(folder)
    sizes = "".join(f"allowed_batch_sizes: {size}\n" for size in BATCH_SIZES)
    configs = {
        "models.config": (
            "model_config_list {\n"
            "  config {\n"
            f"    name: {_quoted(os.path.basename(folder))}\n"
            f"    base_path: {_quoted(folder)}\n"
            '    model_platform: "tensorflow"\n'
            "  }\n"
            "}\n"
        ),
        "batching.config": (
            f"max_batch_size {{ value: {BATCH_SIZES[-1]} }}\n"
            "batch_timeout_micros { value: 1000 }\n"
            "num_batch_threads { value: 4 }\n"
            "max_enqueued_batches { value: 100 }\n" + sizes
        ),
    }
    for name, content in configs.items():
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            with atomic_write(path) as temporary, open(temporary, "w") as file:
                file.write(content)


def _quoted(text):
    """Returns a string as protocol buffers' text format has it."""
    return json.dumps(text, ensure_ascii=False)
