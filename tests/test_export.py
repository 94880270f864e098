import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import types
import zipfile

import keras
import killed_writers
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from keras_hsakd import data, export, lock, models, strip_heads
from keras_hsakd.data.decoding import MAX_PIXELS
from keras_hsakd.export import formats, shipping, tensorflow
from keras_hsakd.export.serving import Served

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), "uint8")
NAMES = ["apple", "bee", "größer", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.fixture
def student():
    return plain_student()


def plain_student(*preprocessing, activation=None):
    """Returns a small classifier, fast to export."""
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            *preprocessing,
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation=activation),
        ],
        name="student",
    )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Returns a network with heads, and the SavedModel of it with all there is."""
    keras.utils.set_random_seed(0)
    student = models.create("resnet8", 10, (16, 16, 3))
    folder = tmp_path_factory.mktemp("serving") / "student"
    results = export.ship(
        student,
        folder,
        preprocessing=data.info("cifar100").preprocessing(),
        class_names=NAMES,
        images=IMAGES,
        top_k=3,
        temperature=2.0,
        center_crop=0.5,
        features="stage2_block1_relu2",
    )
    path = results["saved_model"].path
    return types.SimpleNamespace(
        student=student,
        folder=folder,
        path=path,
        signatures=tf.saved_model.load(path).signatures,
    )


def answer(shipped, signature="serving_default", **inputs):
    tensors = {name: tf.constant(values) for name, values in inputs.items()}
    outputs = shipped.signatures[signature](**tensors)
    return {name: value.numpy() for name, value in outputs.items()}


def softmax(logits):
    powers = np.exp(np.asarray(logits, "float64"))
    return powers / powers.sum(axis=1, keepdims=True)


def serve(path, images=IMAGES):
    signature = tf.saved_model.load(path).signatures["serving_default"]
    return {k: v.numpy() for k, v in signature(images=tf.constant(images)).items()}


# The SavedModel.

OUTPUTS = {
    "class": ("int64", [None]),
    "label": ("string", [None]),
    "logits": ("float32", [None, 10]),
    "probabilities": ("float32", [None, 10]),
    "top_classes": ("int64", [None, 3]),
    "top_labels": ("string", [None, 3]),
    "top_probabilities": ("float32", [None, 3]),
}
SIGNATURES = {
    "serving_default": ({"images": ("uint8", [None, 16, 16, 3])}, OUTPUTS),
    "float_images": ({"images": ("float32", [None, 16, 16, 3])}, OUTPUTS),
    "image_bytes": ({"image_bytes": ("string", [None])}, OUTPUTS),
    "classify": (
        {"inputs": ("string", [None])},
        {"classes": ("string", [None, 3]), "scores": ("float32", [None, 3])},
    ),
    "features": (
        {"images": ("uint8", [None, 16, 16, 3])},
        {"features": ("float32", [None, 32])},
    ),
}


def test_the_signatures_are_these(shipped):
    def described(specs):
        return {k: (s.dtype.name, s.shape.as_list()) for k, s in specs.items()}

    found = {
        name: (
            described(function.structured_input_signature[1]),
            described(function.structured_outputs),
        )
        for name, function in shipped.signatures.items()
    }
    assert found == SIGNATURES


def test_raw_images_in_named_predictions_out(shipped):
    outputs = answer(shipped, images=IMAGES)
    info = data.info("cifar100")
    normalised = (IMAGES / 255.0 - np.array(info.mean)) / np.array(info.std)
    logits = shipped.student.predict(normalised.astype("float32"), verbose=0)["logits"]
    # float32 normalisation in another order
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
    layer = shipped.student.get_layer("stage2_block1_relu2")
    features = keras.Model(shipped.student.input, layer.output).predict(
        normalised.astype("float32"), verbose=0
    )
    np.testing.assert_allclose(
        answer(shipped, "features", images=IMAGES)["features"],
        features.mean(axis=(1, 2)),
        rtol=1e-4,
        atol=1e-5,
    )
    probabilities = softmax(logits / 2.0)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, rtol=1e-4)
    best = np.argsort(-probabilities)[:, :3]
    np.testing.assert_array_equal(outputs["class"], best[:, 0])
    np.testing.assert_array_equal(outputs["top_classes"], best)
    np.testing.assert_allclose(
        outputs["top_probabilities"], np.take_along_axis(probabilities, best, 1), 1e-4
    )
    assert [label.decode() for label in outputs["label"]] == [
        NAMES[index] for index in best[:, 0]
    ]
    assert outputs["top_labels"][4, 2].decode() == NAMES[best[4, 2]]


def test_the_heads_stay_behind(shipped):
    variables = tf.saved_model.load(shipped.path).variables
    assert len(variables) == len(strip_heads(shipped.student).variables)


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_batch_of_any_size_is_taken(shipped, signature):
    inputs, outputs = SIGNATURES[signature]
    ((name, (dtype, _)),) = inputs.items()
    files = [tf.io.encode_png(image).numpy() for image in IMAGES]
    given = {
        "images": IMAGES.astype(dtype) if dtype != "string" else None,
        "image_bytes": files,
        "inputs": [example(file) for file in files],
    }[name]
    for count in (0, 1, 5):
        values = tf.constant(given[:count], dtype, (count, *np.shape(given)[1:]))
        received = answer(shipped, signature, **{name: values})
        assert {k: list(v.shape) for k, v in received.items()} == {
            k: [count, *shape[1:]] for k, (_, shape) in outputs.items()
        }


def example(file):
    values = tf.train.BytesList(value=[file])
    feature = {"image/encoded": tf.train.Feature(bytes_list=values)}
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def test_files_are_decoded_and_cropped_as_in_evaluation(shipped):
    photo = np.random.default_rng(1).integers(0, 256, (40, 30, 3), "uint8")
    files = [tf.io.encode_png(photo).numpy(), tf.io.encode_jpeg(photo).numpy()]
    pixels = np.stack([photo, tf.io.decode_jpeg(files[1]).numpy()])
    cropped = np.stack([data.center_crop(image, 16, 0.5) for image in pixels])
    assert (cropped % 1 != 0).any()  # floats are served as they are
    expected = answer(shipped, "float_images", images=cropped)
    received = answer(shipped, "image_bytes", image_bytes=files)
    np.testing.assert_allclose(received["logits"], expected["logits"], rtol=1e-5)
    ranked = answer(shipped, "classify", inputs=[example(file) for file in files])
    np.testing.assert_array_equal(ranked["classes"], received["top_labels"])
    np.testing.assert_array_equal(ranked["scores"], received["top_probabilities"])


def test_what_cannot_be_decoded_is_an_error_and_the_next_request_is_served(shipped):
    good = tf.io.encode_jpeg(IMAGES[0]).numpy()
    huge = bytearray(tf.io.encode_png(IMAGES[0]).numpy())
    huge[16:24] = 2 * (20_000).to_bytes(4, "big")
    for file, message in (
        (b"", "[Ee]mpty"),
        (b"no image", "One of JPEG, .* WebP required"),
        (good[:200], "Invalid JPEG|truncated|Truncated|JPEG"),
        (bytes(huge), f"at most {MAX_PIXELS} pixels. Received: 20000 x 20000"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            answer(shipped, "image_bytes", image_bytes=[good, file])
        assert answer(shipped, "image_bytes", image_bytes=[good])["class"].shape == (1,)
    with pytest.raises(tf.errors.InvalidArgumentError, match="images` to be finite"):
        answer(shipped, "float_images", images=np.full((1, 16, 16, 3), np.nan, "f"))


def test_a_wrong_shape_is_refused_by_the_graph_itself(shipped):
    # As TensorFlow Serving runs it; Python's functions and sessions look themselves.
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], shipped.path)
        for name, shape in (
            ("serving_default", (2, 9, 9, 3)),
            ("serving_default", (2, 16, 16, 1)),
            ("float_images", (2, 20, 20, 3)),
        ):
            signature = loaded.signature_def[name]
            options = config_pb2.CallableOptions(
                feed=[signature.inputs["images"].name],
                fetch=[signature.outputs["logits"].name],
            )
            run = session._make_callable_from_options(options)
            dtype = SIGNATURES[name][0]["images"][0]
            assert run(np.zeros((2, 16, 16, 3), dtype))[0].shape == (2, 10)
            with pytest.raises(tf.errors.InvalidArgumentError, match="Shape of tensor"):
                run(np.zeros(shape, dtype))


def test_what_lies_beside_the_graph(shipped):
    assert sorted(os.listdir(shipped.folder)) == [
        "1",
        "batching.config",
        "models.config",
    ]
    with open(f"{shipped.path}/assets/class_names.txt", encoding="utf-8") as file:
        assert file.read().splitlines() == NAMES
    models_config = (shipped.folder / "models.config").read_text()
    assert f'name: "student"\n    base_path: "{shipped.folder}"\n' in models_config
    sizes = re.findall(
        r"allowed_batch_sizes: (\d+)", (shipped.folder / "batching.config").read_text()
    )
    assert tuple(map(int, sizes)) == tensorflow.BATCH_SIZES
    # A server in a container is another user.
    for root, _, files in os.walk(shipped.path):
        assert os.stat(root).st_mode & 0o055 == 0o055
        for file in files:
            assert os.stat(os.path.join(root, file)).st_mode & 0o044 == 0o044


@pytest.mark.slow  # where tensorflow-serving-api is installed
def test_the_warm_up_requests_are_those_of_a_server(shipped):
    protocol = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    file = f"{shipped.path}/assets.extra/tf_serving_warmup_requests"
    requests = [
        protocol.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(file)
    ]
    assert len(requests) == 4 * len(tensorflow.BATCH_SIZES)
    sizes = {name: set() for name in SIGNATURES if name != "classify"}
    for request in requests:
        name = request.model_spec.signature_name
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        outputs = answer(shipped, name, **inputs)
        sizes[name].add(len(outputs["features" if name == "features" else "class"]))
    assert set(map(frozenset, sizes.values())) == {frozenset(tensorflow.BATCH_SIZES)}


ALONE = """
import json, sys
import numpy as np
sys.modules["keras"] = sys.modules["keras_hsakd"] = None
{load}
images = np.array(json.load(sys.stdin), "uint8")
print(json.dumps(np.asarray(run(images)["logits"]).tolist()))
"""
LOADING = {
    "saved_model": """
import tensorflow as tf
signature = tf.saved_model.load({path!r}).signatures["serving_default"]
run = lambda images: signature(images=tf.constant(images))
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
runner = Interpreter({path!r}).get_signature_runner()
run = lambda images: runner(images=images)
""",
    "onnx": """
from onnxruntime import InferenceSession
session = InferenceSession({path!r})
names = [output.name for output in session.get_outputs()]
run = lambda images: dict(zip(names, session.run(names, {{"images": images}})))
""",
}
LOADING |= dict.fromkeys(["litert-float16", "litert-int8"], LOADING["litert"])
# Of the largest logit.
PRECISION = {"litert-float16": 1e-2, "litert-int8": 0.1}


@pytest.mark.slow  # where the extra `export` is installed
@pytest.mark.parametrize("format", LOADING)
def test_an_artefact_needs_its_own_runtime_alone(format, tmp_path):
    for module in ("ai_edge_litert", "onnxruntime", "tf2onnx"):
        pytest.importorskip(module)
    normalization = keras.layers.Normalization()
    normalization.adapt(IMAGES.astype("float32"))
    # Which Keras would compile by XLA.
    grouped = keras.layers.Conv2D(3, 3, groups=3)
    student = plain_student(normalization, grouped)
    results = export.ship(student, tmp_path / "7", [format], images=IMAGES)
    path = results[format].path
    assert results[format].error is None
    expected = student.predict(IMAGES.astype("float32"), verbose=0)
    code = ALONE.format(load=LOADING[format].format(path=path))
    for images, logits in ((IMAGES, expected), (IMAGES[:1], expected[:1])):
        result = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(images.tolist()),
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        difference = np.abs(json.loads(result.stdout.splitlines()[-1]) - logits).max()
        assert difference <= PRECISION.get(format, 1e-5) * np.abs(logits).max()


@pytest.mark.slow
def test_operations_that_litert_lacks_are_named(tmp_path):
    images = keras.Input((8, 8, 3))
    squares = keras.ops.transpose(images, (0, 3, 1, 2))
    student = keras.Model(images, keras.layers.Dense(3)(keras.ops.det(squares)))
    results = export.ship(student, tmp_path, ["litert", "keras"])
    assert results["keras"].error is None
    with pytest.raises(ValueError, match="LiteRT alone.*Received: MatrixDeterminant$"):
        raise results["litert"].error


@pytest.mark.slow
def test_files_know_the_names_of_the_classes(student, tmp_path):
    onnx = pytest.importorskip("onnx")
    for module in ("ai_edge_litert", "onnxruntime", "tf2onnx"):
        pytest.importorskip(module)
    results = export.ship(student, tmp_path, ["litert", "onnx"], class_names=NAMES)
    with zipfile.ZipFile(results["litert"].path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == NAMES
    (entry,) = onnx.load(results["onnx"].path).metadata_props
    assert (entry.key, json.loads(entry.value)) == ("class_names", NAMES)


# Formats and versions.


def test_an_error_in_one_format_does_not_keep_back_the_others(student, tmp_path):
    results = export.ship(student, tmp_path / "net", ["litert-int8", "keras"])
    assert results["litert-int8"].path is None
    assert "Expected `images` for litert-int8" in str(results["litert-int8"].error)
    assert results["keras"] == export.Shipped(str(tmp_path / "net" / "1.keras"))
    assert os.listdir(tmp_path / "net") == ["1.keras"]
    served = keras.saving.load_model(results["keras"].path)
    np.testing.assert_allclose(
        served.predict(IMAGES, verbose=0)["logits"],
        student.predict(IMAGES.astype("float32"), verbose=0),
        rtol=1e-5,
    )


def test_a_package_that_is_missing_is_named_with_its_extra(
    student, tmp_path, monkeypatch
):
    for module in ("onnx", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, module, None)
    results = export.ship(student, tmp_path, ["onnx"])
    assert "keras_hsakd[export]" in str(results["onnx"].error)
    assert not os.listdir(tmp_path)


def test_versions(tmp_path):
    version = formats.version_path
    assert version(tmp_path / "net") == str(tmp_path / "net" / "1")
    assert version(f"{tmp_path}/net/12/") == str(tmp_path / "net" / "12")
    for name in ("3", "9.onnx", "models.config", ".export-17"):
        (tmp_path / name).touch()
    assert version(tmp_path) == str(tmp_path / "10")


def test_an_unknown_format(student, tmp_path):
    with pytest.raises(ValueError, match="Received: 'tflite'"):
        export.ship(student, tmp_path, ["keras", "tflite"])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_what_is_there_is_kept(format, student, tmp_path):
    path = tmp_path / f"1{shipping.FORMATS[format].suffix}"
    path.touch()
    error = export.ship(student, tmp_path / "1", [format])[format].error
    assert isinstance(error, FileExistsError)
    assert re.search("Expected `path`.*Received: '.*1", str(error))
    assert path.stat().st_size == 0


def test_what_comes_to_be_there_meanwhile_is_kept(student, tmp_path, monkeypatch):
    path = tmp_path / "1.keras"
    monkeypatch.setattr(formats, "_check", lambda *args: path.write_text("another's"))
    error = export.ship(student, tmp_path / "1", ["keras"])["keras"].error
    assert isinstance(error, FileExistsError)
    assert path.read_text() == "another's"
    assert os.listdir(tmp_path) == ["1.keras"]


def test_configs_are_not_written_again(tmp_path):
    (tmp_path / "models.config").write_text("mine")
    tensorflow.write_server_configs(tmp_path)
    assert (tmp_path / "models.config").read_text() == "mine"
    assert (tmp_path / "batching.config").exists()


# The check.


def test_nothing_is_left_when_the_export_fails(student, tmp_path, monkeypatch):
    seen = []

    def load(path):
        seen.append(os.path.relpath(path, tmp_path))
        zeros = np.zeros((2, 10))
        return lambda images: {"logits": zeros, "probabilities": zeros + 0.1}

    wrong = tensorflow.SAVED_MODEL._replace(load=load)
    monkeypatch.setattr(tensorflow, "SAVED_MODEL", wrong)
    with pytest.raises(RuntimeError, match="Expected the exported model to predict"):
        export.saved_model(student, tmp_path / "1")
    assert os.listdir(tmp_path) == []
    (temporary,) = seen  # TF Serving looks for numbers
    assert temporary.startswith(".") and not temporary.partition("/")[2].isdigit()


def flipped(images):
    return images[..., ::-1] / 255


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("softmax twice", "'probabilities' differs"),
        ("preprocessing", "'logits' differs"),
        ("channel order", "'logits' differs"),
        ("temperature", "'probabilities' differs"),
        ("classes", r"'logits' has shape \(2, 9\) instead of \(2, 10\)"),
        ("head", r"'logits' has shape \(2, 40\) instead of \(2, 10\)"),
    ],
)
def test_the_student_itself_is_what_counts(fault, message, tmp_path, monkeypatch):
    if fault == "softmax twice":
        for name in ("strip_heads", "check_logits"):
            untouched = f"keras_hsakd.export.serving.{name}"
            monkeypatch.setattr(untouched, lambda model: model)
    student = plain_student(activation="softmax" if "softmax" in fault else None)
    student.layers[-1].bias.assign(np.arange(10.0))
    features = student.layers[-1].input
    served = Served(student=student, preprocessing=keras.layers.Rescaling(1 / 255))
    others = {
        "softmax twice": {},
        "preprocessing": {"preprocessing": keras.layers.Rescaling(1 / 2.55)},
        "channel order": {"preprocessing": flipped},
        "temperature": {"temperature": 2.0},
        "classes": {
            "student": keras.Model(student.inputs[0], keras.layers.Dense(9)(features))
        },
        "head": {
            "student": keras.Model(student.inputs[0], keras.layers.Dense(40)(features))
        },
    }
    wrong = dataclasses.replace(served, **others[fault])
    served.__dict__["model"] = wrong.model
    message = f"Expected the exported model to predict as `student`.*{message}"
    with pytest.raises(RuntimeError, match=message):
        formats.write_checked(shipping.FORMATS["keras"], served, tmp_path / "1.keras")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_is_removed(student, tmp_path):
    (tmp_path / ".export-a").mkdir()
    (tmp_path / ".partial-1-models.config").touch()
    export.ship(student, tmp_path, ["keras"])
    assert os.listdir(tmp_path) == ["1.keras"]


@pytest.mark.parametrize("ends", ["", "1", "2"])
def test_a_second_export_is_refused_and_changes_nothing(ends, student, tmp_path):
    (tmp_path / ".export-a").mkdir()
    with lock.held(tmp_path):
        before = sorted(os.listdir(tmp_path))
        message = rf"'{tmp_path}', where process {os.getpid()} on"
        with pytest.raises(BlockingIOError, match=message):
            export.ship(student, tmp_path / ends, ["keras"])
        with pytest.raises(BlockingIOError, match=message):
            export.saved_model(student, tmp_path / "1")
        assert sorted(os.listdir(tmp_path)) == before


def test_without_locks_what_another_may_be_writing_stays(
    student, tmp_path, monkeypatch
):
    def without(folder):
        return contextlib.nullcontext(False)

    (tmp_path / ".export-a").mkdir()
    monkeypatch.setattr(lock, "held", without)
    export.ship(student, tmp_path, ["keras"])
    assert set(os.listdir(tmp_path)) == {".export-a", "1.keras"}


@pytest.mark.slow
def test_killed_exports_leave_nothing_half_written():
    killed_writers.run("export", range(-5, 0))


# What is taken.


def test_without_heads_and_without_preprocessing(tmp_path):
    plain = plain_student()
    path = export.saved_model(plain, tmp_path / "1")
    expected = plain.predict(IMAGES.astype("float32"), verbose=0)
    np.testing.assert_allclose(serve(path)["logits"], expected, rtol=1e-4, atol=1e-4)
    assert set(serve(path)) == {"logits", "probabilities", "class"}
    assert os.listdir(tmp_path) == ["1"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_student_of_mixed_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    student = plain_student(keras.layers.Rescaling(1 / 255))
    logits = keras.layers.Activation("linear", dtype="float32")(student.outputs[0])
    student = keras.Model(student.inputs, logits)
    result = export.ship(student, tmp_path, ["keras"])["keras"]
    served = keras.saving.load_model(result.path)
    assert served.output["probabilities"].dtype == "float32"


def test_images_of_another_size(student, tmp_path):
    preprocessing = keras.Sequential(
        [
            keras.Input((40, 24, 3), dtype="uint8"),
            keras.layers.Resizing(16, 16),
            keras.layers.Rescaling(1 / 255),
        ]
    )
    path = export.saved_model(student, tmp_path / "1", preprocessing)
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 24, 3), "uint8")
    resized = tf.image.resize(images, (16, 16)) / 255
    received = serve(path, images)["logits"]
    np.testing.assert_allclose(received, student(resized), rtol=1e-4, atol=1e-6)
    # A file is resized to what is served, and rounded as it takes integers.
    photo = np.random.default_rng(2).integers(0, 256, (80, 30, 3), "uint8")
    signature = tf.saved_model.load(path).signatures["image_bytes"]
    files = tf.constant([tf.io.encode_png(photo).numpy()])
    served = np.rint(tf.image.resize(photo, (40, 24), antialias=True))
    expected = student(tf.image.resize(served, (16, 16))[tf.newaxis] / 255)
    received = signature(image_bytes=files)["logits"]
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-6)


def test_images_of_any_size(tmp_path):
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    student = keras.Model(inputs, keras.layers.Dense(10)(pooled))
    path = export.saved_model(student, tmp_path / "1")
    expected = student.predict(IMAGES[:, :9].astype("float32"), verbose=0)
    received = serve(path, IMAGES[:, :9])["logits"]
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-3)
    signatures = tf.saved_model.load(path).signatures
    assert sorted(signatures) == ["float_images", "serving_default"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": NAMES[:9]}, "`class_names` to be 10 different names.*9 names"),
        ({"class_names": NAMES[:9] + NAMES[:1]}, "10 names, 9 different"),
        ({"class_names": [*NAMES[:9], "a\nb"]}, "of one line each"),
        ({"images": IMAGES.astype("f")}, "`images` to be a uint8.*float32 of shape"),
        ({"images": IMAGES[:, :8]}, r"`images`.*uint8 of shape \(5, 8, 16, 3\)"),
        ({"images": IMAGES[0]}, "`images` to be"),
        ({"images": IMAGES[:0]}, "`images` to be"),
        ({"top_k": 11}, "`top_k` to be 1 to 10.*top_k=11"),
        ({"temperature": 0.0}, "`temperature` to be a number > 0"),
        ({"features": "conv2d_"}, "`features` to name a layer.*did you mean 'conv2d"),
        ({"center_crop": 1.5}, "`center_crop` to be > 0 and at most 1"),
        (
            {"preprocessing": keras.layers.Resizing(8, 8)},
            r"`preprocessing` to give images of shape \(None, 16, 16, 3\)",
        ),
        ({"preprocessing": np.asarray}, "`preprocessing` to be a Keras layer"),
        (
            {"student": keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])},
            "Expected `student` to map images",
        ),
    ],
)
def test_what_does_not_suit_is_refused(arguments, message, student, tmp_path):
    arguments = {"student": student, **arguments}
    with pytest.raises(ValueError, match=message):
        export.ship(folder=tmp_path / "net", formats=["keras"], **arguments)
    assert os.listdir(tmp_path) == []


def test_heads_whose_logits_are_probabilities_are_refused(tmp_path):
    network = models.create("resnet8", 10, (16, 16, 3))
    outputs = network.output | {
        "logits": keras.layers.Softmax()(network.output["logits"])
    }
    with pytest.raises(ValueError, match="class logits. Received: probabilities"):
        export.ship(keras.Model(network.input, outputs), tmp_path / "net", ["keras"])


# Calibration.


def test_the_temperature_is_that_of_the_least_cross_entropy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits)])

    def cross_entropy(temperature):
        probabilities = softmax(3 * logits / temperature)
        return -np.log(probabilities[np.arange(2000), labels]).mean()

    found = export.fit_temperature(3 * logits, labels)
    assert found == pytest.approx(3.0, rel=0.1)
    least = cross_entropy(found)
    assert least < min(cross_entropy(0.99 * found), cross_entropy(1.01 * found))


def test_the_temperature_has_bounds():
    logits = 10 * np.eye(3)
    assert export.fit_temperature(logits, [0, 1, 2]) == pytest.approx(0.05)
    assert export.fit_temperature(logits, [1, 2, 0]) == pytest.approx(20.0)
    assert np.isfinite(export.fit_temperature(1e6 * logits, [0, 1, 0]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], r"Received: \(3, 2\) and \(2,\)"),
        (np.zeros((0, 2)), [], r"Received: \(0, 2\)"),
        (np.full((1, 2), np.nan), [0], "`logits` to be finite"),
        (np.zeros((2, 2)), [0, 2], "from 0 to 1. Received: int64 from 0 to 2"),
        (np.zeros((2, 2)), [0.0, 0.5], "Received: float64"),
    ],
)
def test_logits_and_labels_that_have_no_temperature(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        export.fit_temperature(logits, labels)
