"""Asks a model server what images show, and how close they are to a boundary.

    python apps/client.py --model=lenet_deep_defense photo1.png photo2.jpg
    python apps/client.py --model=lenet_deep_defense --protocol=grpc photo1.png
    python apps/client.py --model=lenet_deep_defense --warn_below=0.05 *.png

Prints a table, one line a file: the label (the number of the class where the
model knows no names), its probability, rho and l2 of the smallest perturbation
that changes the decision, and the number of the class it changes to.

An example to copy from, for exports of dd_keras in TensorFlow Serving. By REST
it takes Python's standard library, and absl-py for its flags; by gRPC also
tensorflow-serving-api.
"""

import base64
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request

from absl import app, flags

FLAGS = flags.FLAGS

_PORTS = {"rest": 8501, "grpc": 8500}  # those of the server's Docker image

flags.DEFINE_string("model", None, "Its name in the server.", required=True)
flags.register_validator("model", bool, message="--model must not be empty.")
flags.DEFINE_integer(
    "version", None, "Its version; the newest by default.", lower_bound=0
)
flags.DEFINE_enum("protocol", "rest", list(_PORTS), "How to ask the server.")
flags.DEFINE_string(
    "server", None, "HOST:PORT; localhost:8501 by default, :8500 with grpc."
)
flags.DEFINE_float("timeout", 60, "Seconds to wait for an answer.")
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
    except (ImportError, OSError, ServerError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(paths, found, robustness, FLAGS.warn_below))


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
    try:
        with urllib.request.urlopen(
            f"{url}:predict", json.dumps(request).encode(), FLAGS.timeout
        ) as answer:
            return json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        raise ServerError(f"{server}: {_reason(error)}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"{server}: no answer: {reason}") from error
    except http.client.HTTPException as error:
        raise ServerError(f"{server}: no HTTP there: {error!r}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{server}: no TensorFlow Serving there.") from error


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
    try:
        with grpc.insecure_channel(server) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(request, timeout=FLAGS.timeout)
    except grpc.RpcError as error:
        message = _first_line(error.details())
        raise ServerError(
            f"{server}: {error.code().name}: {message}"
        ) from error
    outputs = {k: tf.make_ndarray(v) for k, v in answer.outputs.items()}
    return [
        {name: values[row] for name, values in outputs.items()}
        for row in range(len(images))
    ]


def table(paths, found, robustness, warn_below):
    """The answers as a table.

    Args:
        paths: list of str.
        found: what `serve_encoded` answered.
        robustness: what `robustness_encoded` answered.
        warn_below: rho below which an image is marked, or None.

    Returns:
        str, one line a file below one of titles.
    """
    has_names = "labels" in found[0]
    # A norm p other than 2 is called l<p>.
    [length] = set(robustness[0]) - {"classes", "rho", "nearest_class"}
    title = "label" if has_names else "class"
    rows = [("file", title, "probability", "rho", length, "nearest class", "")]
    for path, image, distance in zip(paths, found, robustness, strict=True):
        predicted = int(image["classes"])
        is_close = warn_below is not None and distance["rho"] < warn_below
        rows.append(
            (
                path,
                _text(image["labels"]) if has_names else str(predicted),
                f"{image['probabilities'][predicted]:.3f}",
                f"{distance['rho']:.4f}",
                f"{distance[length]:.4g}",
                str(distance["nearest_class"]),
                "close to a boundary" if is_close else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
    )


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _reason(error):
    """What the server says in an HTTP error."""
    try:
        return _first_line(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def _first_line(message):
    """Without the names of operations, which TensorFlow writes below."""
    return next(iter((message or "").splitlines()), "")


def _text(label):
    return label.decode() if isinstance(label, bytes) else label


if __name__ == "__main__":
    app.run(main)
