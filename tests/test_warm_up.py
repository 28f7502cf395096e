"""Warm-up records, replayed as the server does."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

import dd_keras
from dd_keras import attacks
from dd_keras.serving import warm_up


def requests(version):
    """The `PredictRequest`s of an export."""
    path = f"{version}/assets.extra/tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        yield log.predict_log.request


def replay(version):
    """Runs all requests; returns (signature, batch, outputs) of each."""
    found, sent = [], list(requests(version))
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.loader.load(
            session, ["serve"], version
        )
        for request in sent:
            name = request.model_spec.signature_name
            signature = graph.signature_def[name]
            assert set(request.inputs) == set(signature.inputs)
            feeds = {
                signature.inputs[key].name: tf.make_ndarray(tensor)
                for key, tensor in request.inputs.items()
            }
            fetches = {k: v.name for k, v in signature.outputs.items()}
            [batch] = feeds.values()
            found.append((name, batch, session.run(fetches, feeds)))
    return found


SIGNATURES = [
    "robustness",
    "robustness_encoded",
    "serve_encoded",
    "serving_default",
]


@pytest.mark.slow
@pytest.mark.parametrize("image_dtype", ["float32", "uint8"])
def test_every_signature_replays(trained_network, image_dtype, tmp_path):
    version = dd_keras.export(
        trained_network, tmp_path, image_dtype=image_dtype
    )
    found = replay(version)
    assert sorted(name for name, *_ in found) == SIGNATURES
    for _, batch, outputs in found:
        assert batch.shape[0] == 1
        assert all(values.shape[0] == 1 for values in outputs.values())


@pytest.mark.slow
def test_examples_are_what_is_replayed(trained_network, digits, tmp_path):
    _, _, x, _ = digits
    examples = np.clip(x[:5] + 100, 0, 255)
    version = dd_keras.export(trained_network, tmp_path, examples=examples)
    found = replay(version)
    sizes = sorted((name, len(batch)) for name, batch, _ in found)
    assert sizes == [(name, size) for name in SIGNATURES for size in (1, 5)]
    for name, batch, outputs in found:
        size = len(batch)
        if name == "serving_default":
            np.testing.assert_array_equal(batch, examples[:size])
        classes = trained_network(
            np.round(examples) if "encoded" in name else examples
        ).numpy().argmax(-1)  # fmt: skip
        np.testing.assert_array_equal(outputs["classes"], classes[:size])


def test_requests_of_encoded_images_keep_to_their_limits(tmp_path):
    """Else the server would refuse them, and with them the version."""
    model = dd_keras.networks.mlp((4, 5, 1), 3)
    sizes = {}
    for name, limits in {
        "images": {"max_images": 2},
        "request": {"max_request_pixels": 65},
        "none": {"max_pixels": 19},
    }.items():
        version = dd_keras.export(
            model,
            tmp_path / name,
            attack=attacks.DeepFool(max_iter=1),
            examples=np.zeros((6, 4, 5, 1)),
            **limits,
        )
        found = replay(version)
        sizes[name] = [
            len(batch)
            for signature, batch, _ in found
            if signature == "serve_encoded"
        ]
    assert sizes == {"images": [1, 2], "request": [1, 3], "none": []}


def test_flat_inputs_have_no_encoded_requests(tmp_path):
    model = dd_keras.networks.mlp((12,), 3)
    version = dd_keras.export(
        model, tmp_path, attack=attacks.DeepFool(max_iter=1)
    )
    found = {name for name, *_ in replay(version)}
    assert found == {"robustness", "serving_default"}


def test_noise_is_the_same_each_time():
    np.testing.assert_array_equal(warm_up.noise((3, 2)), warm_up.noise((3, 2)))
    assert np.ptp(warm_up.noise((50,))) > 100
