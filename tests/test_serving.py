"""A student that is served: by a stand-in of TensorFlow Serving, or by that itself.

For the real server, export a run with `--format saved_model keras`, serve it, and set
`SERVING_FOLDER` to its folder, whose last part is the model's name on the server, and
`SERVING_GRPC` and `SERVING_REST` to the addresses.
"""

import base64
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import threading
import time
import types
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import data, export, models

grpc = pytest.importorskip("grpc")
pytest.importorskip("tensorflow_serving", reason="needs the extra `serving`")

import serving_stand_in  # noqa: E402
from serving_stand_in import ServingError  # noqa: E402
from tensorflow.core.framework import types_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    prediction_service_pb2_grpc,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples" / "serving"))
import client  # noqa: E402
import load  # noqa: E402

del sys.path[0]

pytestmark = pytest.mark.slow  # where the extra `serving` is installed

PROTOCOLS = ("grpc", "rest")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns the folder of a student of random weights."""
    keras.utils.set_random_seed(0)
    folder = str(tmp_path_factory.mktemp("serving") / "student")
    results = export.ship(
        models.create("resnet8", 10, (16, 16, 3)),
        folder,
        ["saved_model", "keras"],
        data.info("cifar10").preprocessing(),
        class_names=["größer", *map(str, range(1, 10))],
    )
    assert [result.error for result in results.values()] == [None, None]
    return folder


@pytest.fixture(scope="module")
def stand_in(exported):
    return serving_stand_in.Servable(exported, "student")


@pytest.fixture(scope="module")
def served(request):
    """Returns a served student: where it is, requests, the Keras student's answers."""
    with contextlib.ExitStack() as stack:
        folder = os.environ.get("SERVING_FOLDER")
        if folder is None:
            folder = request.getfixturevalue("exported")
            servable = request.getfixturevalue("stand_in")
            addresses = stack.enter_context(serving_stand_in.serve(servable))
        else:
            addresses = os.environ["SERVING_GRPC"], os.environ["SERVING_REST"]
        version = max(int(name) for name in os.listdir(folder) if name.isdigit())
        path = os.path.join(folder, str(version))
        student = keras.saving.load_model(f"{path}.keras")
        _, *shape = student.input_shape
        images = np.random.default_rng(0).integers(0, 256, (8, *shape), "uint8")
        expected = student.predict(images, verbose=0)
        yield types.SimpleNamespace(
            model=os.path.basename(os.path.normpath(folder)),
            addresses=dict(zip(PROTOCOLS, addresses, strict=True)),
            path=path,
            images=images,
            files=[tf.io.encode_png(image).numpy() for image in images],
            expected=expected,
        )


@pytest.fixture(params=PROTOCOLS)
def connected(request, served):
    """Returns a client of the served student, for each protocol."""
    address = served.addresses[request.param]
    connection = client.CLIENTS[request.param](address, served.model)
    yield connection
    connection.close()


# Answers.


def assert_right(outputs, expected, count=1):
    """Checks outputs against the first ones of the Keras student."""
    logits, own = np.array(outputs["logits"]), expected["logits"][:count]
    # Another order of operations.
    np.testing.assert_allclose(logits, own, 0, 1e-4 * np.abs(own).max())
    probabilities = expected["probabilities"][:count]
    np.testing.assert_allclose(outputs["probabilities"], probabilities, 0, 1e-4)
    assert outputs["class"] == own.argmax(1).tolist()


@pytest.mark.parametrize("count", [1, 8])
def test_answers_are_the_students(connected, served, count):
    images, files = served.images[:count], served.files[:count]
    outputs = connected.predict("serving_default", images=images)
    assert_right(outputs, served.expected, count)
    outputs = connected.predict("float_images", images=images.astype("float32"))
    assert_right(outputs, served.expected, count)
    outputs = connected.predict("image_bytes", image_bytes=files)
    assert_right(outputs, served.expected, count)
    names = class_names(served)
    assert outputs["label"] == [names[index] for index in outputs["class"]]


def class_names(served):
    with open(f"{served.path}/assets/class_names.txt", encoding="utf-8") as file:
        return file.read().splitlines()


def ask(served, path, content=None):
    """Returns the answer to a REST request, as curl has it."""
    url = f"http://{served.addresses['rest']}/v1/models/{served.model}{path}"
    body = content and json.dumps(content).encode()
    with urllib.request.urlopen(url, body, timeout=10) as response:
        return json.load(response)


def service(served):
    channel = grpc.insecure_channel(served.addresses["grpc"])
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def test_rows_of_json(served):
    instances = [{"b64": base64.b64encode(file).decode()} for file in served.files]
    content = {"signature_name": "image_bytes", "instances": instances}
    rows = ask(served, ":predict", content)["predictions"]
    outputs = {name: [row[name] for row in rows] for name in rows[0]}
    assert_right(outputs, served.expected, len(rows))


def test_classes_and_scores(served):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = served.model
    request.model_spec.signature_name = "classify"
    example = request.input.example_list.examples.add()
    example.features.feature["image/encoded"].bytes_list.value.append(served.files[0])
    result = service(served).Classify(request, timeout=10).result
    over_grpc = [(c.label, c.score) for c in result.classifications[0].classes]
    encoded = {"b64": base64.b64encode(served.files[0]).decode()}
    content = {"signature_name": "classify", "examples": [{"image/encoded": encoded}]}
    (over_rest,) = ask(served, ":classify", content)["results"]
    probabilities, names = served.expected["probabilities"][0], class_names(served)
    best = np.argsort(-probabilities)[: len(over_grpc)]
    for received in (over_grpc, over_rest):
        labels, scores = zip(*received, strict=True)
        assert list(labels) == [names[index] for index in best]
        np.testing.assert_allclose(scores, probabilities[best], 0, 1e-4)


# Signatures.


def signatures_over_grpc(served):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = served.model
    request.metadata_field.append("signature_def")
    response = service(served).GetModelMetadata(request, timeout=10)
    found = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)

    def described(tensors):
        return {
            name: (tensor.dtype, [dim.size for dim in tensor.tensor_shape.dim])
            for name, tensor in tensors.items()
        }

    return {
        name: (described(signature.inputs), described(signature.outputs))
        for name, signature in found.signature_def.items()
    }


def signatures_over_rest(served):
    found = ask(served, "/metadata")["metadata"]["signature_def"]["signature_def"]

    def described(tensors):
        return {
            name: (
                types_pb2.DataType.Value(tensor["dtype"]),
                [int(dim["size"]) for dim in tensor["tensor_shape"]["dim"]],
            )
            for name, tensor in tensors.items()
        }

    return {
        name: (described(signature["inputs"]), described(signature["outputs"]))
        for name, signature in found.items()
    }


@pytest.mark.parametrize("signatures", [signatures_over_grpc, signatures_over_rest])
def test_clients_are_told_these_signatures(served, signatures):
    _, *shape = served.images.shape
    classes = served.expected["logits"].shape[1]
    outputs = {
        "logits": (tf.float32, [-1, classes]),
        "probabilities": (tf.float32, [-1, classes]),
        "class": (tf.int64, [-1]),
        "label": (tf.string, [-1]),
    }
    found = signatures(served)
    assert found.pop("__saved_model_init_op", None)  # not for clients
    assert found == {
        "serving_default": ({"images": (tf.uint8, [-1, *shape])}, outputs),
        "float_images": ({"images": (tf.float32, [-1, *shape])}, outputs),
        "image_bytes": ({"image_bytes": (tf.string, [-1])}, outputs),
        "classify": (
            {"inputs": (tf.string, [-1])},
            {
                "classes": (tf.string, [-1, classes]),
                "scores": (tf.float32, [-1, classes]),
            },
        ),
    }


def test_a_version_says_that_it_is_available(served):
    (status,) = ask(served, "")["model_version_status"]
    assert status["state"] == "AVAILABLE"
    assert status["version"] == os.path.basename(served.path)


# Bad requests.

HUGE = bytearray(tf.io.encode_png(tf.zeros((1, 1, 3), tf.uint8)).numpy())
HUGE[16:24] = 2 * (20_000).to_bytes(4, "big")
BAD_FILES = {
    "truncated": (None, "JPEG"),
    "empty": (b"", "Input is empty"),
    "text": (b"no image at all", "Unknown image file format"),
    "huge": (bytes(HUGE), "Received: 20000 x 20000"),
}


@pytest.fixture(params=PROTOCOLS)
def refused(request, served):
    """Returns a function that sends a bad request and a good one, checks both."""
    address = served.addresses[request.param]
    connection = client.CLIENTS[request.param](address, served.model, timeout=10)

    def refused(signature, message, **inputs):
        begin = time.monotonic()
        with pytest.raises(client.RequestError, match=message) as info:
            connection.predict(signature, **inputs)
        assert time.monotonic() - begin < 2
        assert not info.value.again
        assert re.match("INVALID_ARGUMENT|FAILED_PRECONDITION|400", str(info.value))
        outputs = connection.predict("image_bytes", image_bytes=served.files[:1])
        assert_right(outputs, served.expected)

    yield refused
    connection.close()


@pytest.mark.parametrize("file", BAD_FILES)
def test_a_bad_file_is_refused(refused, served, file):
    content, message = BAD_FILES[file]
    if content is None:
        photo = np.random.default_rng(1).integers(0, 256, (40, 40, 3), "uint8")
        content = tf.io.encode_jpeg(photo).numpy()
        content = content[: len(content) // 2]
    refused("image_bytes", message, image_bytes=[content])
    refused("image_bytes", message, image_bytes=[served.files[0], content])


@pytest.mark.parametrize("shape", [(1, 9, 9, 3), (1, 16, 16, 1), (16, 16, 3)])
@pytest.mark.parametrize("signature", ["serving_default", "float_images"])
def test_a_wrong_shape_is_refused(refused, signature, shape):
    dtype = "uint8" if signature == "serving_default" else "float32"
    refused(
        signature, "not compatible with expected shape", images=np.zeros(shape, dtype)
    )
    refused(
        "image_bytes", "not compatible with expected shape", image_bytes=[[b"GIF8"]]
    )


def test_a_wrong_dtype_is_refused(refused, served):
    images = served.images[:1] / np.float32(255)
    refused("serving_default", "expect uint8|expected type: uint8", images=images)
    refused("image_bytes", "expect string|JSON Value", image_bytes=images[:, 0, 0, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(refused, served, value):
    images = served.images[:1].astype("float32")
    images[0, 3, 3, 1] = value
    refused("float_images", "`images` to be finite", images=images)


def test_an_unknown_signature_is_refused(refused, served):
    refused("features", '"features" not found', images=served.images)
    refused("image_bytes", "image_bytes", images=served.images)


def test_an_unknown_model(served):
    for protocol, message in (("grpc", "NOT_FOUND: Serv"), ("rest", "404: Serv")):
        other = client.CLIENTS[protocol](served.addresses[protocol], "teacher")
        with pytest.raises(client.RequestError, match=message):
            other.predict("serving_default", images=served.images)
        other.close()


# Retries.


class Faulty:
    """A servable that first refuses, waits, or answers wrongly."""

    def __init__(self, servable, *refusals, seconds=0, every=None):
        self._servable = servable
        self._refusals = list(refusals)
        self._seconds = seconds
        self._every = every
        self._lock = threading.Lock()
        self.asked = 0

    def __getattr__(self, name):
        return getattr(self._servable, name)

    def predict(self, name, inputs):
        with self._lock:
            self.asked += 1
            wrong = self._every and self.asked % self._every == 0
            if self._refusals:
                raise self._refusals.pop(0)
        time.sleep(self._seconds)
        outputs = self._servable.predict(name, inputs)
        return outputs | ({"logits": -outputs["logits"]} if wrong else {})


@contextlib.contextmanager
def connection_to(servable, protocol, **options):
    with serving_stand_in.serve(servable) as addresses:
        address = dict(zip(PROTOCOLS, addresses, strict=True))[protocol]
        connection = client.CLIENTS[protocol](address, "student", **options)
        yield connection
        connection.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_busy_server_is_asked_again(stand_in, served, protocol):
    busy = ServingError("UNAVAILABLE", "the queue is full")
    servable = Faulty(stand_in, busy, busy)
    with connection_to(servable, protocol) as connection:
        connection.predict("image_bytes", image_bytes=served.files[:1])
    assert servable.asked == 3
    servable = Faulty(stand_in, *[busy] * 10)
    with (
        connection_to(servable, protocol, retries=2) as connection,
        pytest.raises(client.RequestError, match="the queue is full"),
    ):
        connection.predict("image_bytes", image_bytes=served.files[:1])
    assert servable.asked == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_time_out_is_that_of_all_attempts(stand_in, served, protocol):
    servable = Faulty(stand_in, seconds=2)
    with connection_to(servable, protocol, timeout=0.3) as connection:
        begin = time.monotonic()
        with pytest.raises(
            client.RequestError, match="(?i)deadline.exceeded|timed out"
        ):
            connection.predict("image_bytes", image_bytes=served.files[:1])
        assert time.monotonic() - begin < 1
    assert servable.asked == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_gone(stand_in, served, protocol):
    with serving_stand_in.serve(stand_in) as addresses:
        address = dict(zip(PROTOCOLS, addresses, strict=True))[protocol]
    gone = client.CLIENTS[protocol](address, "student")
    begin = time.monotonic()
    with pytest.raises(client.RequestError, match="refused|UNAVAILABLE") as info:
        gone.predict("image_bytes", image_bytes=served.files[:1])
    assert info.value.again and time.monotonic() - begin < 5
    # Another comes in its place.
    ports = {f"{protocol}_port": int(address.rpartition(":")[2])}
    with serving_stand_in.serve(stand_in, **ports):
        gone.predict("image_bytes", image_bytes=served.files[:1])
    gone.close()


def test_an_answer_that_was_lost_is_asked_for_again(stand_in, served, capfd):
    servable = Faulty(stand_in, ConnectionResetError())  # ends the connection
    with connection_to(servable, "rest") as connection:
        connection.predict("image_bytes", image_bytes=served.files[:1])
    assert servable.asked == 2


# Load.


def test_many_clients_at_once_beside_bad_requests(served):
    requests = [
        {"signature": "image_bytes", "image_bytes": [file]} for file in served.files
    ] + [
        {"signature": "serving_default", "images": image[np.newaxis]}
        for image in served.images
    ]
    expected = [*served.expected["logits"]] * 2

    def send_bad(stop):
        connection = client.GrpcClient(served.addresses["grpc"], served.model)
        while not stop.is_set():
            for content, _ in BAD_FILES.values():
                with pytest.raises(client.RequestError):
                    connection.predict("image_bytes", image_bytes=[content or b"GIF8"])

    stop = threading.Event()
    thread = threading.Thread(target=send_bad, args=[stop])
    thread.start()
    try:
        for protocol in PROTOCOLS:
            address = served.addresses[protocol]
            connect = functools.partial(client.CLIENTS[protocol], address, served.model)
            summary = load.run(connect, requests, expected, clients=16, seconds=1.5)
            assert (summary.wrong, summary.failed) == (0, 0), summary.errors
            assert summary.answered >= 32
    finally:
        stop.set()
        thread.join()


# The command lines.


@pytest.fixture
def photos(served, tmp_path):
    """Returns paths of images, one of which is none."""
    for index, file in enumerate(served.files[:2]):
        (tmp_path / f"{index}.png").write_bytes(file)
    (tmp_path / "broken.png").write_text("no image at all")
    return [str(tmp_path / name) for name in ("0.png", "broken.png", "1.png")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_client_py(served, photos, protocol, capsys):
    where = ["--address", served.addresses[protocol], "--protocol", protocol]
    where += ["--model", served.model]
    assert client.main([photos[0], photos[2], *where]) == 0
    names, probabilities = class_names(served), served.expected["probabilities"]
    assert capsys.readouterr().out.splitlines() == [
        f"{path}  {names[row.argmax()]}: {row.max():.3f}"
        for path, row in zip(photos[::2], probabilities, strict=False)
    ]
    assert client.main([*photos, *where]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert re.match(r".*broken.png  .*Unknown image file format", captured.err)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_py(served, photos, protocol, capsys):
    where = ["--address", served.addresses[protocol], "--protocol", protocol]
    few = ["--model", served.model, "--clients", "4", "--seconds", "0.5"]
    checked = ["--expected", served.path]
    assert load.main([photos[0], photos[2], *where, *few, *checked]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"answers a second\np50 .*\np90 .*\np99 .* ms\n", printed)
    size = map(str, served.images.shape[1:3])
    assert load.main(["--size", *size, *where, *few, *checked]) == 0
    assert load.main([photos[1], *where, *few]) == 1
    assert "0 wrong" in capsys.readouterr().out
