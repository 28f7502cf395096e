"""What a server computes, by each of the ways to load a SavedModel."""

import contextlib
import json
import pathlib
import pickle
import struct
import zlib

import c_api
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, shell
from tensorflow.core.protobuf import saved_model_pb2

import dd_keras
from dd_keras import attacks, datasets
from dd_keras.utils import norms

NAMES = [f"digit {i}" for i in range(10)]
SIGNATURES = {
    "serving_default": ("images", ["logits", "probabilities", "classes"]),
    "robustness": ("images", ["classes", "rho", "l2", "nearest_class"]),
}


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def images(data):
    """Raw test images, float32, (20, 8, 8, 1), whole numbers."""
    batch = next(iter(data.test.batch(20)))[0].numpy()
    return np.round(batch)


@pytest.fixture(scope="module")
def path(tmp_path_factory, trained_network, data):
    """An export of a trained digits classifier."""
    return dd_keras.export(
        trained_network,
        tmp_path_factory.mktemp("models") / "digits",
        data.preprocessing,
        class_names=NAMES,
        max_images=30,
        max_pixels=10_000,
        max_request_pixels=20_000,
    )


@pytest.fixture(scope="module")
def expected(trained_network, data, images):
    """What the signatures must give for `images`, from Keras and DeepFool."""
    x = data.preprocessing(images)
    logits = trained_network(x).numpy()
    found = attacks.DeepFool().run(trained_network, x)
    adversarial = trained_network(x + found.perturbation)
    classes = logits.argmax(-1)
    return {
        "logits": logits,
        "probabilities": keras.ops.softmax(logits).numpy(),
        "classes": classes,
        "labels": np.array([NAMES[c].encode() for c in classes], object),
        "rho": norms.rho(found.perturbation, x).numpy(),
        "l2": norms.sample_norm(found.perturbation).numpy(),
        "nearest_class": adversarial.numpy().argmax(-1),
    }


def png(image):
    return tf.io.encode_png(image.astype(np.uint8)).numpy()


@pytest.fixture(scope="module")
def encoded(images):
    return np.array([png(image) for image in images], object)


def tensor_names(path):
    """Signature to ((input, its tensor), {output: its tensor})."""
    model = saved_model_pb2.SavedModel()
    with open(f"{path}/saved_model.pb", "rb") as file:
        model.ParseFromString(file.read())
    found = {}
    for name, signature in model.meta_graphs[0].signature_def.items():
        if signature.inputs:
            [given] = signature.inputs.items()
            outputs = {k: v.name for k, v in signature.outputs.items()}
            found[name] = (given[0], given[1].name), outputs
    return found


@contextlib.contextmanager
def c_api_in_own_process(path, tmp_path):
    """A function that runs requests, (signature, batch), by the C API."""
    names = tensor_names(path)

    def ask(requests):
        calls = [
            ({names[name][0][1]: batch}, sorted(names[name][1].values()))
            for name, batch in requests
        ]
        (tmp_path / "calls").write_bytes(pickle.dumps(calls))
        script = ROOT / "tests/c_api.py"
        done = shell(script, path, tmp_path / "calls", tmp_path / "results")
        assert done.returncode == 0, done.stderr
        answers = pickle.loads((tmp_path / "results").read_bytes())
        return [
            {key: answer[tensor] for key, tensor in names[name][1].items()}
            if isinstance(answer, dict)
            else answer
            for (name, _), answer in zip(requests, answers, strict=True)
        ]

    yield ask


@pytest.fixture
def ask(path, tmp_path):
    with c_api_in_own_process(path, tmp_path) as function:
        yield function


def check(answer, expected):
    """Holds a signature's outputs against the expected ones."""
    for name, values in answer.items():
        want = expected[name]
        if values.dtype.kind == "f":
            np.testing.assert_allclose(
                values, want, rtol=1e-4, atol=1e-5, err_msg=name
            )
        else:
            np.testing.assert_array_equal(values, want, err_msg=name)


def test_signatures_are_named_and_their_batch_is_free(path):
    signatures = tf.saved_model.load(path).signatures
    found = {
        name: (
            signature.structured_input_signature[1],
            {k: (v.dtype, v.shape.as_list()) for k, v in
             signature.structured_outputs.items()},
        )
        for name, signature in signatures.items()
    }  # fmt: skip
    images = {"images": tf.TensorSpec((None, 8, 8, 1), tf.float32, "images")}
    encoded = {"encoded": tf.TensorSpec((None,), tf.string, "encoded")}
    scores = {
        "logits": (tf.float32, [None, 10]),
        "probabilities": (tf.float32, [None, 10]),
        "classes": (tf.int32, [None]),
        "labels": (tf.string, [None]),
    }
    distances = {
        "classes": (tf.int32, [None]),
        "rho": (tf.float32, [None]),
        "l2": (tf.float32, [None]),
        "nearest_class": (tf.int32, [None]),
    }
    assert found == {
        "serving_default": (images, scores),
        "serve_encoded": (encoded, scores),
        "robustness": (images, distances),
        "robustness_encoded": (encoded, distances),
    }


def test_c_api_gives_what_keras_gives(ask, images, encoded, expected):
    answers = ask(
        [
            ("serving_default", images),
            ("robustness", images),
            ("serve_encoded", encoded),
            ("robustness_encoded", encoded),
            ("serving_default", images[:1]),
        ]
    )
    for answer in answers[:4]:
        check(answer, expected)
    check(answers[4], {name: rows[:1] for name, rows in expected.items()})


FRESH = """
import json, pickle, sys
import numpy as np
import tensorflow as tf

sys.modules["dd_keras"] = None  # an import of it would fail
sys.modules["keras"] = None
path, requests = sys.argv[1], pickle.load(open(sys.argv[2], "rb"))
loaded = tf.saved_model.load(path)
answers = []
for name, key, batch in requests:
    answer = loaded.signatures[name](**{key: tf.constant(batch)})
    answers.append({k: v.numpy() for k, v in answer.items()})
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], path)
    for name, key, batch in requests:
        signature = graph.signature_def[name]
        outputs = {k: v.name for k, v in signature.outputs.items()}
        answers.append(
            session.run(outputs, {signature.inputs[key].name: batch})
        )
pickle.dump(answers, open(sys.argv[3], "wb"))
"""


@pytest.mark.thorough
def test_fresh_process_without_dd_keras(
    path, images, encoded, expected, tmp_path
):
    requests = [
        ("serving_default", "images", images),
        ("robustness", "images", images),
        ("serve_encoded", "encoded", encoded),
        ("robustness_encoded", "encoded", encoded),
    ]
    (tmp_path / "requests").write_bytes(pickle.dumps(requests))
    (tmp_path / "script.py").write_text(FRESH)
    done = shell(
        tmp_path / "script.py", path, tmp_path / "requests", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    answers = pickle.loads((tmp_path / "out").read_bytes())
    assert len(answers) == 2 * len(requests)
    for answer in answers:
        check(answer, expected)


def saved_model_cli(*arguments):
    return shell(
        "-m", "tensorflow.python.tools.saved_model_cli", *arguments
    )  # fmt: skip


@pytest.mark.thorough
def test_saved_model_cli(path, images, expected, tmp_path):
    shown = saved_model_cli(
        "show", "--dir", path, "--tag_set", "serve",
        "--signature_def", "robustness",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "inputs['images']" in shown.stdout
    assert "shape: (-1, 8, 8, 1)" in shown.stdout
    assert "outputs['nearest_class']" in shown.stdout
    np.save(tmp_path / "images.npy", images)
    done = saved_model_cli(
        "run", "--dir", path, "--tag_set", "serve",
        "--signature_def", "serving_default",
        "--inputs", f"images={tmp_path / 'images.npy'}",
        "--outdir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    probabilities = np.load(tmp_path / "out/probabilities.npy")
    check({"probabilities": probabilities}, expected)


@pytest.mark.thorough
def test_mnist_lenet_in_the_c_api(mnist_data, tmp_path):
    model = keras.saving.load_model(
        ROOT / "savedmodels/mnist_lenet_deep_defense.keras"
    )
    images = next(iter(mnist_data.test.batch(100)))[0].numpy()
    path = dd_keras.export(
        dd_keras.DeepDefenseModel(model),
        tmp_path / "lenet",
        mnist_data.preprocessing,
    )
    with c_api_in_own_process(path, tmp_path) as ask:
        scores, distances = ask(
            [("serving_default", images), ("robustness", images)]
        )
    x = mnist_data.preprocessing(images)
    logits = model(x).numpy()
    found = attacks.DeepFool().run(model, x)
    rho = norms.rho(found.perturbation, x).numpy()
    assert np.all(found.fooled)
    assert np.ptp(rho) > 0.1
    np.testing.assert_allclose(
        scores["probabilities"], keras.ops.softmax(logits), atol=1e-5
    )
    np.testing.assert_allclose(distances["rho"], rho, rtol=1e-4)
    np.testing.assert_array_equal(distances["classes"], logits.argmax(-1))
    adversarial = model(x + found.perturbation).numpy().argmax(-1)
    np.testing.assert_array_equal(distances["nearest_class"], adversarial)
    assert np.all(distances["nearest_class"] != distances["classes"])


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(
        ">I", zlib.crc32(body)
    )  # fmt: skip


def png_of_size(width, height):
    """A PNG file whose header states a size; there are no such pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header),
         chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")]
    )  # fmt: skip


def jpeg_of_size(width, height):
    """A JPEG file whose header states a size; there are no such pixels."""
    small = tf.io.encode_jpeg(np.zeros((8, 8, 1), np.uint8)).numpy()
    start = small.index(b"\xff\xc0") + 5  # start of frame: height, width
    return (
        small[:start] + struct.pack(">HH", height, width) + small[start + 4 :]
    )


def strings(*values):
    return np.array(values, object)


def bad_requests(images):
    """Signature, batch, words of the error."""
    good = png(images[0])
    jpeg = tf.io.encode_jpeg(images[0].astype(np.uint8)).numpy()
    nan = images.copy()
    nan[3, 2, 2] = np.nan
    shape = "images: expected shape (batch, 8, 8, 1), batch at least 1"
    kind = "encoded: expected PNG or JPEG files"
    large = "encoded: expected images of at most 10000 pixels"
    for name in ("serving_default", "robustness"):
        yield name, np.zeros((2, 9, 8, 1), "float32"), [shape, "[2 9 8 1]"]
        yield name, np.zeros((2, 16, 4, 1), "float32"), [shape]
        yield name, np.zeros((2, 8, 8, 3), "float32"), [shape]
        yield name, images[0], [shape, "[8 8 1]"]
        yield name, images[..., 0], [shape, "[20 8 8]"]
        yield name, images.reshape(-1), [shape, "[1280]"]
        yield name, images[None], [shape, "[1 20 8 8 1]"]
        yield name, images[:0], [shape, "[0 8 8 1]"]
        yield name, np.float32(1.0).reshape(()), [shape, "[]"]
        yield name, nan, ["images: expected finite", "[1]"]
        yield name, images - np.inf, ["images: expected finite"]
        yield name, images.astype("uint8"), ["float", "uint8"]
    for name in ("serve_encoded", "robustness_encoded"):
        one_or_more = "encoded: expected shape (batch), batch at least 1"
        yield name, strings(), [one_or_more, "[0]"]
        yield name, strings(good).reshape(1, 1), [one_or_more, "[1 1]"]
        yield name, strings(b""), [kind]
        yield name, strings(good, b"no image"), [kind, "[8]"]
        yield name, strings(good[:20]), [kind]
        yield name, strings(good[:40]), ["PNG"]
        yield name, strings(good[:-5]), ["PNG"]
        yield name, strings(jpeg[:3]), ["JPEG"]
        yield name, strings(jpeg[:100]), ["JPEG"]
        yield name, strings(jpeg[: len(jpeg) - 20]), ["JPEG"]
        yield name, strings(good, png_of_size(10_000, 10_000)), [large]
        yield name, strings(png_of_size(2**31 - 1, 2**31 - 1)), [large]
        yield name, strings(png_of_size(10_001, 1)), [large, "[10001]"]
        yield name, strings(jpeg_of_size(10_000, 10_000)), [large]
        together = "encoded: expected images of at most 20000 pixels together"
        three = [png_of_size(100, 67)] * 3
        yield name, strings(*three), [together, "[20100]"]
        most = "encoded: expected at most 30 images; received"
        yield name, strings(*[good] * 31), [most, "[31]"]
        yield name, strings(b"GIF89a" + bytes(50)), [kind]
        yield name, strings(b"BM" + bytes(50)), [kind]


def test_bad_requests_in_the_c_api(ask, images, encoded, expected):
    """Each gets an error that tells why, and the next request is answered."""
    bad = list(bad_requests(images))
    good = [("serving_default", images), ("robustness_encoded", encoded)]
    requests = []
    for name, batch, _ in bad:
        requests += [(name, batch), *good]
    answers = ask(requests)
    assert len(answers) == 3 * len(bad) > 100
    for (name, batch, words), failed in zip(bad, answers[::3], strict=True):
        where = f"{name}, {batch.shape}, {batch.reshape(-1)[:1]}: {failed}"
        assert isinstance(failed, tuple), where
        assert failed[0] == c_api.INVALID_ARGUMENT, where
        for word in words:
            assert word in failed[1], where
    for answer in answers[1::3] + answers[2::3]:
        check(answer, expected)


def test_uint8_images(trained_network, data, images, expected, tmp_path):
    path = dd_keras.export(
        trained_network,
        tmp_path / "digits",
        data.preprocessing,
        image_dtype="uint8",
        warm_up_requests=False,
    )
    loaded = tf.saved_model.load(path)
    raw = tf.constant(images.astype("uint8"))
    for name in ("serving_default", "robustness"):
        answer = loaded.signatures[name](images=raw)
        check({k: v.numpy() for k, v in answer.items()}, expected)


def test_attack_and_its_norm_are_options(trained_network, images, tmp_path):
    attack = attacks.DeepFool(np.inf, max_iter=2, candidates=3)
    path = dd_keras.export(trained_network, tmp_path / "digits", attack=attack)
    answer = tf.saved_model.load(path).signatures["robustness"](
        images=tf.constant(images)
    )
    found = attack.run(trained_network, images)
    size = norms.sample_norm(found.perturbation, np.inf)
    assert set(answer) == {"classes", "rho", "linf", "nearest_class"}
    np.testing.assert_allclose(answer["linf"], size, rtol=1e-4)
    card = pathlib.Path(path, "assets.extra/model_card.json").read_text()
    assert json.loads(card)["robustness_attack"] == repr(attack)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.DDN(steps=20),
        pytest.param(attacks.SuperDeepFool(), marks=pytest.mark.thorough),
        pytest.param(
            attacks.FAB(np.inf, steps=3, num_targets=2),
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_stronger_attacks_may_stand_behind_robustness(
    trained_network, images, tmp_path, attack
):
    path = dd_keras.export(
        trained_network,
        tmp_path / "digits",
        attack=attack,
        warm_up_requests=False,
    )
    answer = tf.saved_model.load(path).signatures["robustness"](
        images=tf.constant(images)
    )
    found = attack.run(trained_network, images)
    size = norms.sample_norm(found.perturbation, attack.norm)
    np.testing.assert_allclose(
        answer[f"l{attack.norm:g}"], size, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(
        answer["classes"] != answer["nearest_class"], found.fooled
    )


def binary(activation):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(1, activation=activation)]
    )


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_binary_classifier_has_two_classes(activation, tmp_path):
    model = binary(activation)
    x = np.random.RandomState(0).normal(size=(30, 6)).astype("float32")
    path = dd_keras.export(model, tmp_path / "m", class_names=["no", "yes"])
    signatures = tf.saved_model.load(path).signatures
    # Flat inputs are no images: nothing to decode.
    assert set(signatures) == {"serving_default", "robustness"}
    answer = signatures["serving_default"](images=tf.constant(x))
    p = model(x).numpy()[:, 0]
    if activation is None:
        p = 1 / (1 + np.exp(-p))
    np.testing.assert_allclose(answer["probabilities"][:, 1], p, atol=1e-6)
    np.testing.assert_array_equal(answer["classes"], p > 0.5)
    names = np.where(p > 0.5, b"yes", b"no")
    np.testing.assert_array_equal(answer["labels"], names)
    # The distance of an affine classifier is |z| / ||w||, here stretched.
    z = np.log(p / (1 - p))
    w = np.linalg.norm(model.get_weights()[0])
    l2 = signatures["robustness"](images=tf.constant(x))["l2"]
    np.testing.assert_allclose(l2, 1.02 * np.abs(z) / w, rtol=1e-3)


def test_no_boundary_found_is_told(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([np.zeros((4, 3)), np.array([0.0, 1.0, 0.0])])
    path = dd_keras.export(model, tmp_path / "m")
    answer = tf.saved_model.load(path).signatures["robustness"](
        images=tf.ones((2, 4))
    )
    np.testing.assert_array_equal(answer["classes"], [1, 1])
    np.testing.assert_array_equal(answer["nearest_class"], [1, 1])
    np.testing.assert_array_equal(answer["rho"], [0, 0])


def test_free_image_sizes(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5),
        ]
    )
    examples = np.full((2, 9, 7, 3), 100.0)
    path = dd_keras.export(model, tmp_path / "m", examples=examples)
    loaded = tf.saved_model.load(path)
    assert set(loaded.signatures) == {"serving_default", "robustness"}
    for shape in ((1, 9, 7, 3), (3, 12, 12, 3)):
        x = np.random.RandomState(0).uniform(size=shape).astype("float32")
        answer = loaded.signatures["serving_default"](images=tf.constant(x))
        np.testing.assert_allclose(answer["logits"], model(x), atol=1e-5)
    with c_api_in_own_process(path, tmp_path) as ask:
        bad, good = ask(
            [
                ("serving_default", np.zeros((1, 9, 7, 1), "float32")),
                ("serving_default", np.zeros((1, 9, 7, 3), "float32")),
            ]
        )
    assert bad[0] == c_api.INVALID_ARGUMENT
    assert "expected shape (batch, any, any, 3)" in bad[1]
    assert good["classes"].shape == (1,)


def test_mixed_precision_and_dropout(tmp_path):
    """Logits are float32 and those of inference."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential(
            [keras.Input((4, 4, 1)), keras.layers.Flatten(),
             keras.layers.Dropout(0.5), keras.layers.Dense(3)]
        )  # fmt: skip
    finally:
        keras.config.set_dtype_policy("float32")
    augmenting = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.RandomFlip(seed=0)]
    )
    path = dd_keras.export(model, tmp_path / "m", augmenting)
    x = np.random.RandomState(0).uniform(size=(8, 4, 4, 1)).astype("float32")
    answer = tf.saved_model.load(path).signatures["serving_default"](
        images=tf.constant(x)
    )
    assert answer["logits"].dtype == tf.float32
    np.testing.assert_allclose(
        answer["logits"], tf.cast(model(x), tf.float32), atol=2e-3
    )
