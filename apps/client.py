"""Asks a model server what images show, and how close they are to a boundary.

    python apps/client.py --model=lenet_deep_defense photo1.png photo2.jpg
    python apps/client.py --model=lenet_deep_defense --protocol=grpc photo1.png
    python apps/client.py --model=lenet_deep_defense --warn_below=0.05 *.png

Prints a table, one line a file: the label (the number of the class where the
model knows no names), its probability, rho and l2 of the smallest perturbation
that changes the decision, and the number of the class it changes to.

An example to copy from, for exports of dd_keras in TensorFlow Serving. By REST
it takes Python's standard library, and absl-py for its flags; by gRPC also
tensorflow-serving-api. It does not trust the server: answers are limited in
time and size, checked, and printed without what could steer a terminal.
"""

import base64
import concurrent.futures
import http.client
import json
import math
import operator
import os
import threading
import urllib.error
import urllib.parse
import urllib.request

from absl import app, flags

FLAGS = flags.FLAGS

_PORTS = {"rest": 8501, "grpc": 8500}  # those of the server's Docker image
# Largest answer, in bytes an image: numbers of 20,000 classes as JSON.
_LARGEST_ANSWER = 2**20

flags.DEFINE_string("model", None, "Its name in the server.", required=True)
flags.register_validator("model", bool, message="--model must not be empty.")
flags.DEFINE_integer(
    "version", None, "Its version; the newest by default.", lower_bound=0
)
flags.DEFINE_enum("protocol", "rest", list(_PORTS), "How to ask the server.")
flags.DEFINE_string(
    "server", None, "HOST:PORT; localhost:8501 by default, :8500 with grpc."
)
flags.DEFINE_float(
    "timeout", 60, "Seconds to wait for each of two answers, in all."
)
flags.register_validator(
    "timeout",
    lambda seconds: seconds > 0,
    message="--timeout must be greater than 0.",
)
flags.DEFINE_float(
    "warn_below", None, "Mark images with a rho below it; none by default."
)


class ServerError(Exception):
    """The server cannot be reached, or refuses the request."""


def main(argv):
    """Asks, and prints a table."""
    paths = argv[1:]
    if not paths:
        raise SystemExit("error: expected image files; received none.")
    server = FLAGS.server or f"localhost:{_PORTS[FLAGS.protocol]}"
    ask = {"rest": ask_rest, "grpc": ask_grpc}[FLAGS.protocol]
    try:
        images = [_read(path) for path in paths]
        found = ask(server, "serve_encoded", images)
        robustness = ask(server, "robustness_encoded", images)
        print(table(paths, found, robustness, FLAGS.warn_below))
    except (ImportError, OSError, ServerError) as error:
        raise SystemExit(f"error: {_printable(error)}") from error


def ask_rest(server, signature, images):
    """Sends one request by REST.

    Args:
        server: HOST:PORT.
        signature: its name, of one that takes `encoded`.
        images: list of bytes, PNG or JPEG files.

    Returns:
        list of dict, one an image: the name of each output to its value.

    Raises:
        ServerError: if there is no answer, or the server says no.
    """
    url = f"http://{server}/v1/models/{urllib.parse.quote(FLAGS.model, '')}"
    if FLAGS.version is not None:
        url += f"/versions/{FLAGS.version}"
    # JSON holds no bytes: they travel as base64, in an object that says so.
    instances = [
        {"encoded": {"b64": base64.b64encode(image).decode()}}
        for image in images
    ]
    request = {"signature_name": signature, "instances": instances}
    limit = len(images) * _LARGEST_ANSWER
    try:
        status, body = _within(
            FLAGS.timeout, _post, f"{url}:predict", request, limit
        )
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"{server}: no answer: {reason}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise ServerError(f"{server}: no HTTP there: {error!r}") from error
    if len(body) > limit:
        raise ServerError(
            f"{server}: expected an answer of at most {limit} bytes; received "
            "more."
        )
    if status != http.HTTPStatus.OK:
        raise ServerError(f"{server}: {_reason(status, body)}")
    try:
        return _of_each(json.loads(body)["predictions"], len(images))
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ServerError(f"{server}: no TensorFlow Serving there.") from error


def _post(url, request, limit):
    """The answer to a request by REST: its status, its body.

    Of a body that is longer than the limit, one byte more than that.
    """
    data = json.dumps(request).encode()
    try:
        answer = urllib.request.urlopen(url, data, FLAGS.timeout)
    except urllib.error.HTTPError as error:  # which is an answer, too
        answer = error
    with answer:
        return answer.status, answer.read(limit + 1)


def _within(seconds, function, *arguments):
    """What a function gives, if it does so within these seconds in all.

    The timeout of a socket begins anew with each byte that arrives.
    """
    outcome = concurrent.futures.Future()

    def run():
        try:
            outcome.set_result(function(*arguments))
        except Exception as error:
            outcome.set_exception(error)

    # A daemon ends with the program, also if it still waits.
    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"none within {seconds:g} seconds") from error


def ask_grpc(server, signature, images):
    """Sends one request by gRPC; like `ask_rest`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up notes
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import (
            predict_pb2,
            prediction_service_pb2_grpc,
        )
    except ImportError as error:
        raise ImportError(
            "--protocol=grpc takes tensorflow-serving-api: pip install "
            f"'dd_keras[serving]' ({error})"
        ) from error
    request = predict_pb2.PredictRequest()
    request.model_spec.name = FLAGS.model
    request.model_spec.signature_name = signature
    if FLAGS.version is not None:
        request.model_spec.version.value = FLAGS.version
    request.inputs["encoded"].CopyFrom(tf.make_tensor_proto(images))
    limit = len(images) * _LARGEST_ANSWER
    options = [("grpc.max_receive_message_length", limit)]
    try:
        with grpc.insecure_channel(server, options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(request, timeout=FLAGS.timeout)
    except grpc.RpcError as error:
        message = _first_line(error.details())
        raise ServerError(
            f"{server}: {error.code().name}: {message}"
        ) from error
    try:
        outputs = {
            name: _array(tensor, limit, tf.make_ndarray)
            for name, tensor in answer.outputs.items()
        }
        rows = [
            {name: values[row] for name, values in outputs.items()}
            for row in range(len(images))
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(f"{server}: no answer of an export.") from error
    return _of_each(rows, len(images))


def _array(tensor, limit, make):
    """A tensor of an answer; a few bytes may state any shape."""
    if math.prod(dim.size for dim in tensor.tensor_shape.dim) > limit:
        raise ValueError("a tensor that is larger than any answer")
    return make(tensor)


def _of_each(answers, images):
    """Answers, once there is one for each image."""
    if not (
        isinstance(answers, list)
        and len(answers) == images
        and all(isinstance(answer, dict) for answer in answers)
    ):
        raise ValueError(f"expected answers for {images} images")
    return answers


def table(paths, found, robustness, warn_below):
    """The answers as a table.

    Args:
        paths: list of str.
        found: what `serve_encoded` answered.
        robustness: what `robustness_encoded` answered.
        warn_below: rho below which an image is marked, or None.

    Returns:
        str, one line a file below one of titles.

    Raises:
        ServerError: if these are no answers of an export.
    """
    try:
        rows = _rows(paths, found, robustness, warn_below)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ServerError(
            "expected the answers of an export of dd_keras; received others: "
            f"{type(error).__name__}: {error}"
        ) from error
    rows = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
    )


def _rows(paths, found, robustness, warn_below):
    """The cells of the table, titles first."""
    has_names = "labels" in found[0]
    # A norm p other than 2 is called l<p>.
    [length] = set(robustness[0]) - {"classes", "rho", "nearest_class"}
    title = "label" if has_names else "class"
    rows = [("file", title, "probability", "rho", length, "nearest class", "")]
    for path, image, distance in zip(paths, found, robustness, strict=True):
        predicted = operator.index(image["classes"])
        probabilities = image["probabilities"]
        if not 0 <= predicted < len(probabilities):
            raise IndexError(f"class {predicted} of {len(probabilities)}")
        rho = float(distance["rho"])
        is_close = warn_below is not None and rho < warn_below
        rows.append(
            (
                path,
                _text(image["labels"]) if has_names else str(predicted),
                f"{float(probabilities[predicted]):.3f}",
                f"{rho:.4f}",
                f"{float(distance[length]):.4g}",
                str(operator.index(distance["nearest_class"])),
                "close to a boundary" if is_close else "",
            )
        )
    return rows


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _reason(status, body):
    """What the server says in an HTTP error."""
    try:
        return _first_line(json.loads(body)["error"])
    except (LookupError, RecursionError, TypeError, ValueError):
        return f"{status} {http.client.responses.get(status, '')}".rstrip()


def _first_line(message):
    """Without the names of operations, which TensorFlow writes below."""
    return next(iter(str(message or "").splitlines()), "")


def _text(label):
    if isinstance(label, bytes):
        return label.decode(errors="backslashreplace")
    return str(label)


def _printable(text):
    r"""Text with what steers a terminal as Python writes it: \x1b, \n."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    app.run(main)
