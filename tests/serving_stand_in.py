"""A stand-in of TensorFlow Serving: its gRPC and REST protocols over a SavedModel.

    python tests/serving_stand_in.py serving/student --grpc-port 8500 --rest-port 8501

It runs signatures as TensorFlow Serving does (github.com/tensorflow/serving, 9d981c5c),
in a session that checks no more than the graph itself, and answers with the same codes.
It serves one model, the newest version that is there when it starts, without batching,
and listens on 127.0.0.1 alone.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import threading

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

# What one server may take at a time.
THREADS = 8
MAX_BYTES = 64 * 2**20
SECONDS_TO_SEND = 30

CODES = {code.value[0]: code for code in grpc.StatusCode}
HTTP_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class ServingError(Exception):
    """A request that is answered by an error."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Servable:
    """The newest version of a model: what gRPC and REST have in common."""

    def __init__(self, folder, name):
        self.name = name
        self.version = max(int(v) for v in os.listdir(folder) if v.isdigit())
        path = os.path.join(folder, str(self.version))
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            loader = tf.compat.v1.saved_model.load
            self.signatures = loader(self._session, ["serve"], path).signature_def
        self._functions = {}
        self._lock = threading.Lock()
        self._warm_up(os.path.join(path, "assets.extra", "tf_serving_warmup_requests"))

    def _warm_up(self, file):
        """Answers the requests beside a model; a server loads none that fails."""
        if os.path.exists(file):
            for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
                log = prediction_log_pb2.PredictionLog.FromString(record)
                request = log.predict_log.request
                inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
                self.predict(request.model_spec.signature_name, inputs)

    def check(self, spec):
        """Raises a `ServingError` if another model or version is asked for."""
        version = spec.version.value if spec.HasField("version") else self.version
        if (spec.name, version) != (self.name, self.version):
            raise ServingError("NOT_FOUND", f"Servable not found for request: {spec}")

    def signature(self, name, code="FAILED_PRECONDITION"):
        name = name or "serving_default"
        if name not in self.signatures:
            raise ServingError(code, f'Serving signature key "{name}" not found.')
        return name, self.signatures[name]

    def predict(self, name, inputs):
        """Returns the outputs of a signature by name."""
        name, signature = self.signature(name)
        if set(inputs) != set(signature.inputs):
            raise ServingError(
                "INVALID_ARGUMENT",
                f"input size does not match signature: {sorted(inputs)} != "
                f"{sorted(signature.inputs)}",
            )
        try:
            values = self._function(name)(*(inputs[key] for key in signature.inputs))
        except tf.errors.OpError as error:
            code = CODES[error.error_code].name
            raise ServingError(code, error.message) from None
        return dict(zip(signature.outputs, values, strict=True))

    def _function(self, name):
        # `Session.run` would refuse shapes that the server's session takes.
        signature = self.signatures[name]
        with self._lock:
            if name not in self._functions:
                options = config_pb2.CallableOptions(
                    feed=[tensor.name for tensor in signature.inputs.values()],
                    fetch=[tensor.name for tensor in signature.outputs.values()],
                )
                make = self._session._make_callable_from_options
                self._functions[name] = make(options)
            return self._functions[name]

    def classify(self, name, examples):
        """Returns a `ClassificationResult` of serialized examples."""
        outputs = self.predict(name, {"inputs": np.array(examples, object)})
        result = classification_pb2.ClassificationResult()
        for row in zip(outputs["classes"], outputs["scores"], strict=True):
            classes = result.classifications.add().classes
            for label, score in zip(*row, strict=True):
                classes.add(label=label.decode(), score=score)
        return result

    def metadata(self):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self):
        response = get_model_status_pb2.GetModelStatusResponse()
        status = response.model_version_status.add(version=self.version)
        status.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        return response


# gRPC.


def _answering(method):
    """Has a method of a service answer a `ServingError` with its code."""

    def answer(self, request, context):
        try:
            self.servable.check(request.model_spec)
            return method(self, request)
        except ServingError as refusal:
            context.abort(grpc.StatusCode[refusal.code], str(refusal))

    return answer


class Service(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Both services of a server."""

    def __init__(self, servable):
        self.servable = servable

    @_answering
    def Predict(self, request):  # noqa: N802
        try:
            inputs = {name: tf.make_ndarray(v) for name, v in request.inputs.items()}
        except (TypeError, ValueError) as error:
            raise ServingError(
                "INVALID_ARGUMENT", f"tensor parsing error: {error}"
            ) from None
        outputs = self.servable.predict(request.model_spec.signature_name, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        response.model_spec.version.value = self.servable.version
        for name, values in outputs.items():
            if not request.output_filter or name in request.output_filter:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(values))
        return response

    @_answering
    def Classify(self, request):  # noqa: N802
        examples = request.input.example_list.examples
        result = self.servable.classify(
            request.model_spec.signature_name,
            [example.SerializeToString() for example in examples],
        )
        return classification_pb2.ClassificationResponse(result=result)

    @_answering
    def GetModelMetadata(self, request):  # noqa: N802
        return self.servable.metadata()

    @_answering
    def GetModelStatus(self, request):  # noqa: N802
        return self.servable.status()


def _grpc_server(servable, port):
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(THREADS),
        options=[("grpc.max_receive_message_length", MAX_BYTES)],
    )
    service = Service(servable)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


# REST.


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests as TensorFlow Serving's `HttpRestApiHandler`."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS_TO_SEND
    # Headers and content leave in two writes, the second of which would wait.
    disable_nagle_algorithm = True

    def do_GET(self):  # noqa: N802
        self._answer(r"(?:/versions/(\d+))?(/metadata)?", self._described)

    def do_POST(self):  # noqa: N802
        self._answer(r"(?:/versions/(\d+))?:(predict|classify)", self._predicted)

    def _answer(self, pattern, method):
        try:
            content, status = self._of(pattern, method), 200
        except ServingError as refusal:
            content = json.dumps({"error": str(refusal)})
            status = HTTP_STATUSES.get(refusal.code, 500)
        content = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _of(self, pattern, method):
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_BYTES:
            self.close_connection = True
            raise ServingError("INVALID_ARGUMENT", f"more than {MAX_BYTES} bytes")
        body = self.rfile.read(length)
        found = re.fullmatch(f"/v1/models/([^/:]+){pattern}", self.path)
        if not found:
            text = f"Malformed request: {self.command} {self.path}"
            raise ServingError("INVALID_ARGUMENT", text)
        name, version, what = found.groups()
        spec = predict_pb2.PredictRequest().model_spec
        spec.name = name
        if version:
            spec.version.value = int(version)
        self.server.servable.check(spec)
        with self.server.running:
            return method(what, body)

    def _described(self, what, body):
        servable = self.server.servable
        if what is None:
            return _json_of(servable.status())
        response = servable.metadata()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return (
            f'{{"model_spec": {_json_of(response.model_spec)}, '
            f'"metadata": {{"signature_def": {_json_of(signatures)}}}}}'
        )

    def _predicted(self, what, body):
        try:
            request = json.loads(body)
        except ValueError as error:
            text = f"JSON Parse error: {error}"
            raise ServingError("INVALID_ARGUMENT", text) from None
        if not isinstance(request, dict):
            raise ServingError("INVALID_ARGUMENT", "JSON Value: Is not object")
        name = request.get("signature_name", "")
        if what == "classify":
            return self._classified(name, request)
        _, signature = self.server.servable.signature(name, "INVALID_ARGUMENT")
        if ("instances" in request) == ("inputs" in request):
            raise ServingError(
                "INVALID_ARGUMENT", "Missing 'inputs' or 'instances' key"
            )
        if "inputs" in request:
            inputs = request["inputs"]
            if not isinstance(inputs, dict) or "b64" in inputs:
                inputs = dict.fromkeys(signature.inputs, inputs)
        else:
            (key,) = signature.inputs  # ours have one each
            rows = request["instances"]
            named = rows and all(isinstance(r, dict) and "b64" not in r for r in rows)
            inputs = {key: [row.get(key) for row in rows] if named else rows}
        arrays = {
            key: _array(values, signature.inputs[key].dtype)
            for key, values in inputs.items()
            if key in signature.inputs
        }
        outputs = self.server.servable.predict(name, arrays)
        lists = {key: _text(values.tolist()) for key, values in outputs.items()}
        if "inputs" in request:
            return json.dumps({"outputs": lists})
        rows = zip(*lists.values(), strict=True)
        named = [dict(zip(lists, row, strict=True)) for row in rows]
        return json.dumps({"predictions": named})

    def _classified(self, name, request):
        examples = []
        for features in request.get("examples", []):
            example = tf.train.Example()
            for key, value in features.items():
                feature = example.features.feature[key].bytes_list
                feature.value.append(_bytes(value))
            examples.append(example.SerializeToString())
        result = self.server.servable.classify(name, examples)
        rows = [[[c.label, c.score] for c in r.classes] for r in result.classifications]
        return json.dumps({"results": rows})

    def log_message(self, *args):
        pass


def _json_of(message):
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


def _array(values, dtype):
    """Returns values of JSON as an array of the dtype that a signature has."""
    dtype = tf.dtypes.as_dtype(dtype)
    if dtype == tf.string:
        return np.array(_bytes(values), object)
    try:
        array = np.array(values)
    except ValueError:  # ragged
        array = np.array(None)
    kinds = "iuf" if dtype.is_floating else "iu"
    if array.dtype.kind not in kinds and array.size:
        text = f"JSON Value: {str(values)[:100]} is not of expected type: {dtype.name}"
        raise ServingError("INVALID_ARGUMENT", text)
    return array.astype(dtype.as_numpy_dtype)


def _bytes(value):
    """Returns the strings that JSON stands for."""
    if isinstance(value, list):
        return [_bytes(each) for each in value]
    try:
        if isinstance(value, dict):
            return base64.b64decode(value["b64"], validate=True)
        return value.encode()
    except (KeyError, TypeError, ValueError, AttributeError):
        text = f"JSON Value: {str(value)[:100]} not formatted correctly for base64 data"
        raise ServingError("INVALID_ARGUMENT", text) from None


def _text(values):
    if isinstance(values, list):
        return [_text(value) for value in values]
    return values.decode() if isinstance(values, bytes) else values


class Server(http.server.ThreadingHTTPServer):
    """The REST half."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, servable, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.servable = servable
        self.running = threading.BoundedSemaphore(THREADS)


@contextlib.contextmanager
def serve(servable, grpc_port=0, rest_port=0):
    """Serves a model on free ports; yields the addresses of gRPC and REST."""
    server, bound = _grpc_server(servable, grpc_port)
    rest = Server(servable, rest_port)
    thread = threading.Thread(target=rest.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{bound}", f"127.0.0.1:{rest.server_port}"
    finally:
        rest.shutdown()
        rest.server_close()
        server.stop(0).wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of versions of a model")
    parser.add_argument("--name", help="of the model; by default, the folder's")
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--rest-port", type=int, default=8501)
    options = parser.parse_args()
    name = options.name or os.path.basename(os.path.abspath(options.folder))
    servable = Servable(options.folder, name)
    with serve(servable, options.grpc_port, options.rest_port) as addresses:
        print("gRPC on {}, REST on {}".format(*addresses), flush=True)
        threading.Event().wait()
