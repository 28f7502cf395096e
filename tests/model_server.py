"""A stand-in for tensorflow_model_server, where there is none.

    python tests/model_server.py --port=P --rest_api_port=R --model_name=N \
        --model_base_path=DIR [--file_system_poll_wait_seconds=1]
    python tests/model_server.py --port=P --rest_api_port=R \
        --model_config_file=FILE

It imitates what the tests need and no more: one version a model, the newest,
loaded without any Python of the exporter, warmed up before it is served, and
replaced when there is a newer one; `Predict` by gRPC, and predict and status
by REST, with TensorFlow Serving's formats and error codes. No labels, output
filters, batching, metadata, classify or regress.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
_WARM_UP = "assets.extra/tf_serving_warmup_requests"
_URL = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(:predict)?")
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
}  # all others: 500
# What Python raises where JSON is not what was expected.
_NO_INPUTS = (AttributeError, KeyError, OverflowError, TypeError, ValueError)


class RequestError(Exception):
    """What is wrong with a request.

    Args:
        code: `grpc.StatusCode`.
        message: str.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Version:
    """A SavedModel, loaded and warmed up."""

    def __init__(self, directory):
        self.number = int(os.path.basename(directory))
        session = tf.compat.v1.Session(graph=tf.Graph())
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(
                session, ["serve"], directory
            )
        self.signatures = meta_graph.signature_def
        # `Session.run` holds feeds against the shapes of placeholders and adds
        # to what errors say. The server, in C++, does not; nor does this.
        self._calls = {
            name: session._make_callable_from_options(
                config_pb2.CallableOptions(
                    feed=[one.name for _, one in sorted(spec.inputs.items())],
                    fetch=[one.name for _, one in sorted(spec.outputs.items())],
                )
            )
            for name, spec in self.signatures.items()
            if spec.method_name == "tensorflow/serving/predict"
        }
        records = os.path.join(directory, _WARM_UP)
        if os.path.exists(records):
            for record in tf.data.TFRecordDataset(records).as_numpy_iterator():
                log = prediction_log_pb2.PredictionLog.FromString(record)
                request = log.predict_log.request
                self.predict(
                    request.model_spec.signature_name, arrays(request.inputs)
                )

    def predict(self, name, inputs):
        """A dict of arrays to a dict of arrays; raises `RequestError`."""
        signature = self.signature(name)
        if set(inputs) != set(signature.inputs):
            raise RequestError(
                INVALID_ARGUMENT,
                f"input size does not match signature: {sorted(inputs)} != "
                f"{sorted(signature.inputs)}",
            )
        for key, spec in signature.inputs.items():
            expected = tf.as_dtype(spec.dtype).as_numpy_dtype
            if inputs[key].dtype != expected:
                raise RequestError(
                    INVALID_ARGUMENT,
                    f"Expects {key} to be {np.dtype(expected).name} but "
                    f"{inputs[key].dtype.name} is provided",
                )
        try:
            feeds = [inputs[key] for key in sorted(inputs)]
            fetched = self._calls[name](*feeds)
            return dict(zip(sorted(signature.outputs), fetched, strict=True))
        except tf.errors.OpError as error:
            codes = {code.value[0]: code for code in grpc.StatusCode}
            raise RequestError(
                codes[error.error_code], error.message
            ) from error

    def signature(self, name):
        """The `SignatureDef` of a name; raises `RequestError`."""
        if name not in self._calls:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{name}" not found.',
            )
        return self.signatures[name]


class Models:
    """All models of a server, by name.

    Args:
        base_paths: dict of name to directory.
    """

    def __init__(self, base_paths):
        self._base_paths = base_paths
        self._serving = {}
        self._ended = {name: [] for name in base_paths}
        self.load_newest()

    def load_newest(self):
        """Loads what is newer than what is served, and switches to it."""
        for name, base_path in self._base_paths.items():
            numbers = [int(n) for n in os.listdir(base_path) if n.isdecimal()]
            old = self._serving.get(name)
            if not numbers or (old and old.number >= max(numbers)):
                continue
            directory = os.path.join(base_path, str(max(numbers)))
            self._serving[name] = Version(directory)
            if old:
                self._ended[name].append(old.number)
            print(f"serving {directory}", flush=True)

    def get(self, name, number=None):
        """The `Version` served; raises `RequestError`."""
        version = self._serving.get(name)
        if version is None or number not in (None, version.number):
            wanted = (
                f"Latest({name})"
                if number is None
                else f"Specific({name}, {number})"
            )
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: {wanted}",
            )
        return version

    def status(self, name):
        """What REST says of a model."""
        states = dict.fromkeys(self._ended.get(name, ()), "END")
        states[self.get(name).number] = "AVAILABLE"
        ok = {"error_code": "OK", "error_message": ""}
        return {
            "model_version_status": [
                {"version": str(number), "state": state, "status": ok}
                for number, state in sorted(states.items(), reverse=True)
            ]
        }


def arrays(inputs):
    """Arrays of `TensorProto`s, by name."""
    return {name: tf.make_ndarray(proto) for name, proto in inputs.items()}


class GrpcService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """`Predict` by gRPC."""

    def __init__(self, models):
        self._models = models

    def Predict(self, request, context):  # noqa: N802
        """Answers a `PredictRequest`."""
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        name = spec.signature_name or "serving_default"
        try:
            version = self._models.get(spec.name, number)
            outputs = version.predict(name, arrays(request.inputs))
        except RequestError as error:
            context.abort(error.code, str(error))
        answer = predict_pb2.PredictResponse()
        answer.model_spec.CopyFrom(spec)
        answer.model_spec.signature_name = name
        answer.model_spec.version.value = version.number
        for key, values in outputs.items():
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(values))
        return answer


class RestHandler(http.server.BaseHTTPRequestHandler):
    """Predict and status by REST."""

    models = None  # set by `main`

    def do_GET(self):
        """Answers for a model's status."""
        self._reply(self._status)

    def do_POST(self):
        """Answers a request to predict."""
        self._reply(self._predict)

    def _status(self):
        name, _, _ = self._parsed_url()
        return self.models.status(name)

    def _predict(self):
        name, number, method = self._parsed_url()
        if method is None:
            raise RequestError(INVALID_ARGUMENT, "Malformed request: POST")
        version = self.models.get(name, number)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            request = json.loads(body)
            signature = request.get("signature_name", "serving_default")
            given, in_rows = columns(request, version.signature(signature))
        except _NO_INPUTS as error:
            message = f"JSON Parse error: {error!r}"
            raise RequestError(INVALID_ARGUMENT, message) from error
        outputs = {
            key: values_of(key, values)
            for key, values in version.predict(signature, given).items()
        }
        if len(outputs) == 1:
            [answer] = outputs.values()
        elif in_rows:
            rows = zip(*outputs.values(), strict=True)
            answer = [dict(zip(outputs, row, strict=True)) for row in rows]
        else:
            answer = outputs
        return {"predictions" if in_rows else "outputs": answer}

    def _parsed_url(self):
        found = _URL.fullmatch(self.path)
        if found is None:
            raise RequestError(
                INVALID_ARGUMENT, f"Malformed request: {self.path}"
            )
        name, number, method = found.groups()
        return urllib.parse.unquote(name), number and int(number), method

    def _reply(self, answer):
        try:
            code, content = 200, answer()
        except RequestError as error:
            code, content = _HTTP.get(error.code, 500), {"error": str(error)}
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def columns(request, signature):
    """The inputs of a REST request, and whether they came as rows.

    Raises:
        One of `_NO_INPUTS`: if they are no inputs of this signature.
    """
    if ("instances" in request) == ("inputs" in request):
        raise ValueError("expected one of 'instances' and 'inputs'")
    in_rows = "instances" in request
    given = request["instances" if in_rows else "inputs"]
    if in_rows and not (isinstance(given, list) and given):
        raise ValueError("'instances' is no list, or an empty one")
    first = given[0] if in_rows else given
    if not isinstance(first, dict) or list(first) == ["b64"]:
        [name] = signature.inputs  # with one input its name can be left out
        given = {name: given}
    elif in_rows:
        if any(set(row) != set(first) for row in given):
            raise ValueError("'instances' do not name the same inputs")
        given = {name: [row[name] for row in given] for name in first}
    return {
        name: np.array(
            _with_bytes(values),
            tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype
            if name in signature.inputs
            else None,
        )
        for name, values in given.items()
    }, in_rows


def _with_bytes(values):
    """JSON values with strings, also those in base64, as bytes."""
    if isinstance(values, list):
        return [_with_bytes(value) for value in values]
    if isinstance(values, dict):
        return base64.b64decode(values["b64"], validate=True)
    return values.encode() if isinstance(values, str) else values


def values_of(name, array):
    """An output as JSON values."""
    if array.dtype != object:
        return array.tolist()
    assert not name.endswith("_bytes"), "would have to be base64"
    return np.vectorize(bytes.decode, otypes=[object])(array).tolist()


class Address(NamedTuple):
    """HOST:PORT of a server, of either protocol."""

    rest: str
    grpc: str


@contextlib.contextmanager
def running(program, *arguments, models, log, timeout=120):
    """A model server of its own process, once it serves.

    Args:
        program: list of str: the stand-in, or tensorflow_model_server.
        *arguments: its flags, other than those of ports and polling.
        models: names of models to wait for.
        log: path of a file for what it prints.
        timeout: seconds to wait.

    Yields:
        `Address`.
    """
    ports = _free_ports(2)
    address = Address(*(f"localhost:{port}" for port in ports))
    command = [
        *program,
        f"--rest_api_port={ports[0]}",
        f"--port={ports[1]}",
        "--file_system_poll_wait_seconds=1",
        *arguments,
    ]
    # This process may hold the GPU's memory already.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, env=environment
        ) as process,
    ):
        try:
            end = time.monotonic() + timeout
            while not all(_is_available(address, name) for name in models):
                stopped = process.poll() is not None
                if stopped or time.monotonic() > end:
                    with open(log, encoding="utf-8", errors="replace") as text:
                        raise RuntimeError(
                            f"{'It ended' if stopped else 'Not ready'}: "
                            f"{' '.join(command)}\n{text.read()[-5000:]}"
                        )
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


STAND_IN = [sys.executable, os.path.abspath(__file__)]


def _free_ports(count):
    # All open at the same time: they shall differ.
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def _is_available(address, name):
    url = f"http://{address.rest}/v1/models/{name}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            states = json.load(answer)["model_version_status"]
    except OSError:
        return False
    return any(state["state"] == "AVAILABLE" for state in states)


def main():
    """Serves until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rest_api_port", type=int, required=True)
    parser.add_argument("--model_name")
    parser.add_argument("--model_base_path")
    parser.add_argument("--model_config_file")
    parser.add_argument("--file_system_poll_wait_seconds", type=int, default=1)
    flags = parser.parse_args()
    base_paths = {flags.model_name: flags.model_base_path}
    if flags.model_config_file:
        with open(flags.model_config_file, encoding="utf-8") as file:
            config = text_format.Parse(
                file.read(), model_server_config_pb2.ModelServerConfig()
            )
        base_paths = {
            one.name: one.base_path for one in config.model_config_list.config
        }
    models = Models(base_paths)

    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", -1)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        GrpcService(models), server
    )
    server.add_insecure_port(f"localhost:{flags.port}")
    server.start()
    RestHandler.models = models
    rest = http.server.ThreadingHTTPServer(
        ("localhost", flags.rest_api_port), RestHandler
    )
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    while True:
        time.sleep(flags.file_system_poll_wait_seconds)
        try:
            models.load_newest()
        except (OSError, RequestError, tf.errors.OpError) as error:
            print(f"kept what is served: {error}", flush=True)


if __name__ == "__main__":
    main()
