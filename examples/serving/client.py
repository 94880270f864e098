"""Classifies image files by a student that TensorFlow Serving serves.

    python examples/serving/client.py cat.jpg dog.png --address localhost:8500
    python examples/serving/client.py cat.jpg --protocol rest --address localhost:8501

gRPC needs `pip install 'keras_hsakd[serving]'`; REST needs Python alone.
"""

import argparse
import base64
import http.client
import json
import math
import random
import sys
import time


class RequestError(Exception):
    """A request that has no answer.

    `again` says whether it may be sent again: whether nothing is wrong with it, and the
    server could not be reached or was busy.
    """

    def __init__(self, message, again=False):
        super().__init__(message)
        self.again = again


def with_retries(send, timeout, retries):
    """Returns what `send(seconds left)` returns, tried again where it may be.

    A prediction changes nothing on the server, so that one whose answer was lost may be
    asked for again. All attempts and the pauses between them share the time-out, after
    which whoever waits has given up. The pauses are random, up to twice as long each
    time, lest clients that failed together come back together.
    """
    deadline = time.monotonic() + timeout
    for attempt in range(retries + 1):
        try:
            return send(deadline - time.monotonic())
        except RequestError as error:
            pause = random.uniform(0, min(2, 0.1 * 2**attempt))
            late = time.monotonic() + pause >= deadline
            if not error.again or attempt == retries or late:
                raise
            time.sleep(pause)


class GrpcClient:
    """Asks for predictions by gRPC; threads may share one."""

    def __init__(self, address, model, timeout=10, retries=4):
        # TensorFlow, too, which the first request would wait for.
        import grpc
        import tensorflow  # noqa: F401
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        options = [
            ("grpc.max_receive_message_length", -1),  # 4 MB are some 500 answers
            # As often as requests are tried again; by default, a second and more.
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = grpc.insecure_channel(address, options)
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self.model, self.timeout, self.retries = model, timeout, retries

    def predict(self, signature, **inputs):
        """Returns the outputs of a signature by name, as lists."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        response = with_retries(
            lambda seconds: self._send(request, seconds), self.timeout, self.retries
        )
        outputs = {k: tf.make_ndarray(v) for k, v in response.outputs.items()}
        return {name: _decoded(values.tolist()) for name, values in outputs.items()}

    def _send(self, request, seconds):
        import grpc

        try:
            return self._service.Predict(request, timeout=seconds)
        except grpc.RpcError as error:
            code = error.code()
            raise RequestError(
                f"{code.name}: {error.details()}", code == grpc.StatusCode.UNAVAILABLE
            ) from None

    def close(self):
        self._channel.close()


class RestClient:
    """Asks for predictions by REST, over one connection: each thread needs its own."""

    def __init__(self, address, model, timeout=10, retries=4):
        self._connection = http.client.HTTPConnection(address)
        self.model, self.timeout, self.retries = model, timeout, retries

    def predict(self, signature, **inputs):
        """Returns the outputs of a signature by name, as lists."""
        request = {"signature_name": signature, "inputs": _encoded(inputs)}
        body = json.dumps(request).encode()
        response = with_retries(
            lambda seconds: self._send(body, seconds), self.timeout, self.retries
        )
        try:
            return json.loads(response)["outputs"]
        except (ValueError, KeyError, TypeError):  # as of a proxy, or another server
            raise RequestError(
                f"Expected JSON with outputs. Received: {_beginning(response)}"
            ) from None

    def _send(self, body, seconds):
        connection = self._connection
        connection.timeout = seconds
        try:
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            connection.request("POST", f"/v1/models/{self.model}:predict", body)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            connection.close()
            # After a time-out there is no time left.
            again = not isinstance(error, TimeoutError)
            raise RequestError(f"{type(error).__name__}: {error}", again) from None
        if response.status != 200:
            # 502 comes from a proxy whose server is gone.
            again = response.status in (502, 503)
            raise RequestError(f"{response.status}: {_message(content)}", again)
        return content

    def close(self):
        self._connection.close()


def _encoded(values):
    """Returns inputs as JSON has them."""
    if isinstance(values, bytes):
        return {"b64": base64.b64encode(values).decode()}
    if isinstance(values, dict):
        return {name: _encoded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_encoded(value) for value in values]
    return values.tolist() if hasattr(values, "tolist") else values


def _decoded(values):
    """Returns lists of bytes as lists of text."""
    if isinstance(values, list):
        return [_decoded(value) for value in values]
    return values.decode(errors="replace") if isinstance(values, bytes) else values


def _message(content):
    """Returns what an answer says went wrong; a proxy answers in HTML."""
    try:
        return json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return _beginning(content)


def _beginning(content):
    """Returns in one line what an answer begins with."""
    return " ".join(content[:200].decode(errors="replace").split()) or "nothing"


def told(outputs):
    """Returns the likeliest class and its probability, of the first image."""
    try:
        probabilities, best = outputs["probabilities"][0], outputs["class"][0]
        label = outputs.get("label", [f"class {best}"])[0]
        return f"{label}: {probabilities[best]:.3f}"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise RequestError(
            f"Expected probabilities and class. Received: {str(outputs)[:200]}"
        ) from None


CLIENTS = {"grpc": GrpcClient, "rest": RestClient}


def _address(text):
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"Expected host:port. Received: '{text}'")
    return text


def _seconds(text):
    if not 0 < (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"Expected more than 0. Received: {text}")
    return seconds


def _number(text):
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"Expected 0 or more. Received: {text}")
    return number


def add_arguments(parser):
    """Adds the flags that tell where the server is."""
    parser.add_argument(
        "--address", type=_address, default="localhost:8500", help="host:port"
    )
    parser.add_argument("--protocol", choices=CLIENTS, default="grpc")
    parser.add_argument("--model", default="student", help="its name on the server")
    parser.add_argument(
        "--timeout", type=_seconds, default=10, help="seconds a request"
    )
    parser.add_argument("--retries", type=_number, default=4)


def connect(options):
    """Returns the client that parsed flags ask for."""
    return CLIENTS[options.protocol](
        options.address, options.model, options.timeout, options.retries
    )


def main(arguments=None):
    """Prints a line an image; returns 1 if one had no answer, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    client = connect(options)
    failed = False
    for path in options.images:
        try:
            with open(path, "rb") as file:
                content = file.read()
            answer = told(client.predict("image_bytes", image_bytes=[content]))
        except (OSError, RequestError) as error:
            print(f"{path}  {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{path}  {answer}")
    client.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
