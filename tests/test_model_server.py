"""An export in a model server, asked over REST and gRPC.

In tensorflow_model_server itself where it is installed, and always in the
stand-in, tests/model_server.py.
"""

import base64
import json
import shutil
import time
import urllib.error
import urllib.request

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from model_server import STAND_IN, running
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

import dd_keras
from dd_keras import attacks, networks
from dd_keras.serving import write_server_config
from dd_keras.utils import norms

NAMES = [f"digit {i}" for i in range(10)]
NAME = "digits"
RAW, ENCODED = "images", "encoded"
IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 1))
RAW_BATCH = IMAGES.astype(np.float32)
FILES = [tf.io.encode_png(i.astype(np.uint8)).numpy() for i in IMAGES]


def classifier(seed):
    """Random weights, made to tell the images apart and to be sure of it."""
    keras.utils.set_random_seed(seed)
    model = networks.digits_cnn()
    weights = [10 * values for values in model.get_weights()]
    model.set_weights(weights)
    weights[-1] -= model(RAW_BATCH).numpy().mean(0)
    model.set_weights(weights)
    return model


def export(model, path):
    return dd_keras.export(model, path, class_names=NAMES)


REAL = shutil.which("tensorflow_model_server")
SERVERS = {"stand-in": STAND_IN}
if REAL is not None:
    SERVERS["tensorflow_model_server"] = [REAL]


@pytest.mark.skipif(REAL is None, reason="tensorflow_model_server: not on PATH")
def test_real_server_is_tested():
    """Says so where it is not, once."""
    assert "tensorflow_model_server" in SERVERS


@pytest.fixture(scope="module", params=SERVERS)
def program(request):
    """The command of a server, without flags."""
    return SERVERS[request.param]


@pytest.fixture(scope="module")
def model():
    return classifier(seed=0)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """A directory of models, with version 1 of one."""
    directory = tmp_path_factory.mktemp("models")
    export(model, directory / NAME)
    return directory


@pytest.fixture(scope="module")
def server(program, exported, tmp_path_factory):
    """The address of a server of that version."""
    with running(
        program,
        f"--model_name={NAME}",
        f"--model_base_path={exported / NAME}",
        models=[NAME],
        log=tmp_path_factory.mktemp("log") / "server.txt",
    ) as address:
        yield address


class RefusedError(Exception):
    """What a server says to a bad request: HTTP status or gRPC code, text."""


def as_json(values):
    if isinstance(values, bytes):
        return {"b64": base64.b64encode(values).decode()}
    if isinstance(values, list):
        return [as_json(value) for value in values]
    return values


def post(address, content, path=NAME):
    """The answer to a REST request, or `RefusedError`."""
    url = f"http://{address.rest}/v1/models/{path}:predict"
    try:
        with urllib.request.urlopen(
            url, json.dumps(content).encode(), timeout=60
        ) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RefusedError(error.code, json.load(error)["error"]) from error


def rest_rows(address, signature, name, batch, path=NAME):
    rows = [{name: as_json(value)} for value in batch]
    request = {"signature_name": signature, "instances": rows}
    answer = post(address, request, path)["predictions"]
    return {key: np.array([row[key] for row in answer]) for key in answer[0]}


def rest_unnamed_rows(address, signature, name, batch):
    request = {"signature_name": signature, "instances": as_json(batch)}
    answer = post(address, request)["predictions"]
    return {key: np.array([row[key] for row in answer]) for key in answer[0]}


def rest_columns(address, signature, name, batch):
    request = {"signature_name": signature, "inputs": {name: as_json(batch)}}
    answer = post(address, request)["outputs"]
    return {key: np.array(values) for key, values in answer.items()}


def by_grpc(address, signature, name, batch, path=NAME):
    dtype = tf.float32 if name == RAW else tf.string
    request = predict_pb2.PredictRequest()
    request.model_spec.name, _, version = path.partition("/versions/")
    request.model_spec.signature_name = signature
    if version:
        request.model_spec.version.value = int(version)
    request.inputs[name].CopyFrom(tf.make_tensor_proto(batch, dtype))
    with grpc.insecure_channel(address.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            answer = stub.Predict(request, timeout=60)
        except grpc.RpcError as error:
            raise RefusedError(error.code(), error.details()) from error
    found = {key: tf.make_ndarray(v) for key, v in answer.outputs.items()}
    if "labels" in found:
        found["labels"] = np.array([t.decode() for t in found["labels"]])
    return found


WAYS = [rest_rows, rest_unnamed_rows, rest_columns, by_grpc]
BATCHES = {RAW: RAW_BATCH.tolist(), ENCODED: FILES}


def assert_classified(answer, model):
    """An answer for all images is that of a Keras model."""
    probabilities = keras.ops.softmax(model(RAW_BATCH)).numpy()
    classes = probabilities.argmax(-1)
    assert set(answer) == {"logits", "probabilities", "classes", "labels"}
    np.testing.assert_allclose(
        answer["probabilities"], probabilities, atol=1e-5
    )
    np.testing.assert_array_equal(answer["classes"], classes)
    assert list(answer["labels"]) == [NAMES[c] for c in classes]


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize(
    ("signature", "name"),
    [("serving_default", RAW), ("serve_encoded", ENCODED)],
)
def test_classes_are_those_of_keras(server, model, ask, signature, name):
    assert_classified(ask(server, signature, name, BATCHES[name]), model)


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize(
    ("signature", "name"),
    [("robustness", RAW), ("robustness_encoded", ENCODED)],
)
def test_robustness_is_that_of_deepfool(server, model, ask, signature, name):
    found = attacks.DeepFool().run(model, tf.constant(RAW_BATCH))
    r = found.perturbation
    adversarial = model(RAW_BATCH + r).numpy()
    assert len(set(found.predictions.numpy())) > 3
    answer = ask(server, signature, name, BATCHES[name])
    assert set(answer) == {"classes", "rho", "l2", "nearest_class"}
    np.testing.assert_array_equal(answer["classes"], found.predictions)
    np.testing.assert_array_equal(
        answer["nearest_class"], adversarial.argmax(-1)
    )
    assert np.all(answer["classes"] != answer["nearest_class"])
    np.testing.assert_allclose(answer["l2"], norms.sample_norm(r), rtol=1e-4)
    np.testing.assert_allclose(
        answer["rho"], norms.rho(r, tf.constant(RAW_BATCH)), rtol=1e-4
    )


def test_default_signature(server, model):
    answer = post(server, {"instances": RAW_BATCH.tolist()})["predictions"]
    columns = {k: np.array([row[k] for row in answer]) for k in answer[0]}
    assert_classified(columns, model)
    assert_classified(by_grpc(server, "", RAW, RAW_BATCH), model)


BAD = {
    "no image": ("serve_encoded", ENCODED, [b"GIF89a"], "PNG or JPEG"),
    "one of two": ("serve_encoded", ENCODED, [FILES[0], b""], "PNG or JPEG"),
    "cut off": ("robustness_encoded", ENCODED, [FILES[0][:60]], ""),
    "shape": (
        "serving_default",
        RAW,
        RAW_BATCH[:, :7].tolist(),
        "images: expected shape (batch, 8, 8, 1), batch at least 1; received",
    ),
    "infinite": (
        "robustness",
        RAW,
        np.full_like(RAW_BATCH, np.inf).tolist(),
        "images: expected finite numbers",
    ),
    "input": ("serving_default", "pixels", [FILES[0]], ""),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("ask", "code"),
    [(rest_rows, 400), (by_grpc, grpc.StatusCode.INVALID_ARGUMENT)],
)
def test_bad_requests_are_refused(server, model, ask, code, bad):
    signature, name, batch, message = BAD[bad]
    with pytest.raises(RefusedError) as error:
        ask(server, signature, name, batch)
    assert error.value.args[0] == code
    assert message in error.value.args[1]
    assert_classified(ask(server, "serve_encoded", ENCODED, FILES), model)


def test_bad_bytes_by_rest(server):
    request = {"signature_name": "serve_encoded"}
    request["instances"] = [{"encoded": {"b64": "no base64!"}}]
    with pytest.raises(RefusedError) as error:
        post(server, request)
    assert error.value.args[0] == 400


@pytest.mark.parametrize("path", ["letters", f"{NAME}/versions/7"])
@pytest.mark.parametrize(
    ("ask", "code"),
    [(rest_rows, 404), (by_grpc, grpc.StatusCode.NOT_FOUND)],
)
def test_unknown_models_and_versions(server, ask, code, path):
    with pytest.raises(RefusedError) as error:
        ask(server, "serve_encoded", ENCODED, FILES, path=path)
    assert error.value.args[0] == code


@pytest.mark.parametrize(
    ("ask", "code"),
    [(rest_rows, 400), (by_grpc, grpc.StatusCode.FAILED_PRECONDITION)],
)
def test_unknown_signatures(server, ask, code):
    with pytest.raises(RefusedError) as error:
        ask(server, "serve_files", ENCODED, FILES)
    assert error.value.args[0] == code


def test_known_version(server, model):
    for ask in (rest_rows, by_grpc):
        path = f"{NAME}/versions/1"
        answer = ask(server, "serving_default", RAW, BATCHES[RAW], path=path)
        assert_classified(answer, model)


@pytest.mark.thorough
def test_configured_server_follows_new_versions(
    program, exported, model, tmp_path
):
    shutil.copytree(exported / NAME, tmp_path / NAME)
    second, newer = classifier(seed=1), classifier(seed=2)
    export(second, tmp_path / "second")
    written = write_server_config(tmp_path, base_path=str(tmp_path))
    assert written == [NAME, "second"]
    with running(
        program,
        f"--model_config_file={tmp_path / 'models.config'}",
        models=written,
        log=tmp_path / "server.txt",
    ) as address:

        def answer(path=NAME):
            return rest_rows(
                address, "serve_encoded", ENCODED, FILES, path=path
            )

        assert_classified(answer(), model)
        assert_classified(answer("second"), second)
        before = answer()["probabilities"]
        expected = keras.ops.softmax(newer(RAW_BATCH)).numpy()
        assert np.abs(before - expected).max() > 0.1
        export(newer, tmp_path / NAME)
        end = time.monotonic() + 60
        found = before
        while not np.allclose(found, expected, atol=1e-5):
            np.testing.assert_allclose(found, before, atol=1e-5)
            assert time.monotonic() < end, "the old version is still served"
            time.sleep(0.1)
            found = answer()["probabilities"]
        assert_classified(answer(), newer)
        assert_classified(by_grpc(address, "", RAW, RAW_BATCH), newer)
        assert_classified(answer("second"), second)


@pytest.mark.thorough
def test_failing_warm_up_keeps_a_version_from_being_served(
    program, exported, tmp_path
):
    shutil.copytree(exported / NAME, tmp_path / NAME)
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "serve_encoded"
    request.inputs[ENCODED].CopyFrom(tf.make_tensor_proto([b"no image"]))
    log = prediction_log_pb2.PredictLog(request=request)
    record = prediction_log_pb2.PredictionLog(predict_log=log)
    extra = tmp_path / NAME / "1" / "assets.extra"
    assert (extra / "tf_serving_warmup_requests").is_file()
    with tf.io.TFRecordWriter(
        str(extra / "tf_serving_warmup_requests")
    ) as writer:
        writer.write(record.SerializeToString())
    server = running(
        program,
        f"--model_name={NAME}",
        f"--model_base_path={tmp_path / NAME}",
        models=[NAME],
        log=tmp_path / "server.txt",
        timeout=30,
    )
    with pytest.raises(RuntimeError, match="expected PNG or JPEG"), server:
        pass
