"""The implicit gradient of the distance, by central differences of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from one_step import without_second_derivative

import dd_keras
from dd_keras import attacks
from dd_keras.attacks import Forward, decisions, inference_form
from dd_keras.attacks.base import Attack, AttackResult
from dd_keras.attacks.forward import CleanInputs
from dd_keras.defenses import implicit
from dd_keras.utils import norms

DIMENSIONS, CLASSES, SAMPLES = 5, 4, 60


class Nearest(Attack):
    """Iterates to the nearest point, in l_2, of the boundary to one class.

    Each step goes half way to the projection of the clean input onto the
    boundary as it is linearised where the last one ended; where they end,
    delta is along the normal and g is zero, to float64's precision.
    """

    norm = 2.0

    def __init__(self, target=None, steps=120):
        self.target, self.steps = target, steps

    def search(self, network, x, y=None, forward=None):
        clean = CleanInputs.of(network, x, y, forward)
        correct = clean.predictions == clean.y
        other = decisions.runner_up(clean.logits, clean.y)
        k = other if self.target is None else self.target
        s = tf.where(correct, clean.y, clean.predictions)
        k = tf.where(correct, k, clean.y)
        f = inference_form(network)
        delta = tf.zeros_like(x)
        for _ in range(self.steps):
            at = Forward.of(f, x + delta)
            difference = decisions.logit_difference(k, s, at.logits)
            g = tf.reduce_sum(difference * at.logits, axis=1)
            w = at.gradient(difference)
            step = tf.reduce_sum(w * delta, axis=1) - g
            delta += w * (step / tf.reduce_sum(w * w, axis=1))[:, None]
            delta /= 2
        ones = tf.ones_like(clean.y)
        return AttackResult(delta, clean.predictions, ones > 0, ones)


def smooth(*layers):
    """A network of these layers between affine ones, in float64."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((DIMENSIONS,), dtype="float64"),
            keras.layers.Dense(8, dtype="float64"),
            *layers,
            keras.layers.Dense(CLASSES, dtype="float64"),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.normal(0, 0.5, size=w.shape) for w in model.get_weights()]
    )
    return model


def reshaped(*layers):
    """Layers of images, between rows of 8 numbers."""
    return (
        keras.layers.Reshape((2, 2, 2), dtype="float64"),
        *layers,
        keras.layers.Flatten(dtype="float64"),
    )


NETWORKS = {
    "tanh": lambda: [keras.layers.Activation("tanh", dtype="float64")],
    "layer normalisation": lambda: [
        keras.layers.LayerNormalization(dtype="float64"),
        keras.layers.Activation("softsign", dtype="float64"),
    ],
    "convolution": lambda: reshaped(
        keras.layers.Conv2D(
            3, 2, padding="same", activation="softplus", dtype="float64"
        ),
    ),
}


def labelled(model, x):
    """The predictions, and labels of which a third are others."""
    logits = model(x)
    predictions = decisions.predicted_class(logits)
    return predictions, tf.where(
        tf.range(SAMPLES) % 3 > 0,
        predictions,
        decisions.runner_up(logits, predictions),
    )


def differentiated(model, x, y, attack, weigh):
    """The sum of weigh * distance, and its gradient by all weights."""
    with tf.GradientTape() as tape:
        found = attack.search(model, x, y)
        length = implicit.distance(model, x, y, found, attack)
        total = tf.reduce_sum(weigh * length)
    return total, tape.gradient(total, model.trainable_weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_central_difference_of_the_distance(name):
    model = smooth(*NETWORKS[name]())
    rng = np.random.default_rng(2)
    x = tf.constant(rng.normal(size=(SAMPLES, DIMENSIONS)))
    predictions, y = labelled(model, x)
    attack = Nearest(
        decisions.runner_up(model(x), y)
    )  # the same after a change
    found = attack.search(model, x, y)
    at = model(x + found.perturbation)
    margin = decisions.margin(at, y)
    nearest = np.abs(margin) < 1e-9  # and no third class on the way
    assert np.sum(nearest) >= 4
    assert np.any(nearest & (predictions != y))
    weigh = tf.constant(rng.normal(size=SAMPLES) * nearest)
    total, gradients = differentiated(model, x, y, attack, weigh)
    lengths = norms.sample_norm(found.perturbation)
    np.testing.assert_allclose(total, np.sum(weigh * lengths), rtol=1e-12)
    direction = [rng.normal(size=w.shape) for w in model.trainable_weights]
    start = model.get_weights()

    def distance(step):
        model.set_weights(
            [w + step * d for w, d in zip(start, direction, strict=True)]
        )
        moved = attack.search(model, x, y).perturbation
        return float(np.sum(weigh * norms.sample_norm(moved)))

    step = 1e-5
    slope = (distance(step) - distance(-step)) / (2 * step)
    model.set_weights(start)
    along = sum(
        float(np.sum(g * d))
        for g, d in zip(gradients, direction, strict=True)
        if g is not None
    )
    assert along == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("bounds", [None, (-0.9, 0.9)])
@pytest.mark.parametrize("norm", [1, 2, 3, np.inf])
def test_on_affine_models_is_the_unrolled_gradient(norm, bounds):
    """Of samples that are classified correctly, and of others."""
    rng = np.random.default_rng(3)
    model = affine_classifier(
        rng.normal(size=(DIMENSIONS, CLASSES)), rng.normal(size=CLASSES)
    )
    x = tf.constant(rng.uniform(-0.9, 0.9, size=(SAMPLES, DIMENSIONS)))
    predictions, y = labelled(model, x)
    attack = attacks.DeepFool(norm, max_iter=1, overshoot=1e-6, bounds=bounds)
    found = attack.run(model, x, y)
    end = x + found.perturbation
    # One step ends there where no third class, and no bound, is on the way.
    there = found.fooled.numpy()
    if bounds:
        there = there & np.all(np.abs(end) < 0.9 - 1e-4, axis=1)
    assert 0.1 < there.mean() < 1
    assert np.any(there & (predictions != y))
    weigh = tf.constant(rng.normal(size=SAMPLES) * there)
    _, gradients = differentiated(model, x, y, attack, weigh)
    with tf.GradientTape() as tape:
        length = norms.sample_norm(
            attack.search(model, x, y).perturbation, norm
        )
        total = tf.reduce_sum(weigh * length)
    for one, other in zip(
        gradients, tape.gradient(total, model.trainable_weights), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_with_an_active_box_only_free_coordinates_count():
    """In l_2: x = (0.9, 0), w = (3, 4), g = w x + b; the box ends at 1."""
    weights = np.array([[0.0, 3.0], [0.0, 4.0]])
    model = affine_classifier(weights, [0.0, -6.7])
    x = tf.constant([[0.9, 0.0]])
    y = tf.constant([0])
    # To g = 0 it takes 4.0 of w d; 0.3 of it by the first, up to the bound.
    end = tf.constant([[0.1, 3.7 / 4]])
    found = AttackResult(end, y, y == 0, y)
    attack = attacks.FAB(2, bounds=(-1.0, 1.0))
    with tf.GradientTape() as tape:
        length = implicit.distance(
            model,
            tf.cast(x, tf.float64),
            y,
            found._replace(perturbation=tf.cast(end, tf.float64)),
            attack,
        )
    kernel, bias = tape.gradient(length, model.trainable_weights)
    assert float(length[0]) == pytest.approx(np.hypot(0.1, 3.7 / 4))
    # dg/db = 1 of class 1; the slope is 4, that of the free coordinate.
    np.testing.assert_allclose(bias, [0.25, -0.25], rtol=1e-6)
    np.testing.assert_allclose(
        kernel, np.outer([1.0, 3.7 / 4], [0.25, -0.25]), rtol=1e-6
    )


@pytest.fixture(scope="module")
def digits_like():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8)).astype("float32")
    return x, rng.integers(3, size=60)


def test_layers_without_a_second_derivative_train(digits_like):
    with pytest.raises(ValueError, match="second derivative"):
        dd_keras.DeepDefenseModel(without_second_derivative())
    model = dd_keras.DeepDefenseModel(
        without_second_derivative(), gradient="implicit", c=5.0
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = model.get_weights()
    logs = model.fit(*digits_like, epochs=1, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert not np.allclose(before[0], model.get_weights()[0])


@pytest.mark.parametrize(
    ("attack", "log", "sign"),
    [
        (attacks.DeepFool(max_iter=5), "regularization", -1),
        (attacks.DeepFool(np.inf, bounds=(-5, 5)), "regularization", -1),
        # These leave misclassified samples where they are.
        (attacks.DDN(steps=40), "rho2", 1),
        pytest.param(
            attacks.SuperDeepFool(), "rho2", 1, marks=pytest.mark.thorough
        ),
        pytest.param(
            attacks.FAB(2, steps=5), "rho2", 1, marks=pytest.mark.thorough
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_attack_that_finds_distances_serves(digits_like, attack, log, sign):
    x, y = digits_like
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    classifier.fit(x, y, epochs=40, verbose=0)
    model = dd_keras.DeepDefenseModel(
        classifier,
        gradient="implicit",
        attack=attack,
        lam=5.0,
        c=3.0,
        d=1.0,
    )
    model.compile(dd_keras.CoupledSGD(1e-3), "sparse_categorical_crossentropy")
    logs = model.fit(x, y, epochs=8, batch_size=60, verbose=0).history
    assert sign * logs[log][-1] > sign * logs[log][0]


def test_is_a_setting_that_is_saved(digits_like, tmp_path):
    x, y = digits_like
    classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model = dd_keras.DeepDefenseModel(classifier, gradient="implicit")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.gradient == "implicit"
    assert dd_keras.DeepDefenseModel(classifier).gradient == "unrolled"
    with pytest.raises(ValueError, match=r"^gradient: expected one of"):
        dd_keras.DeepDefenseModel(classifier, gradient="exact")
    with pytest.raises(ValueError, match=r"^attack: expected .* eps"):
        dd_keras.DeepDefenseModel(
            classifier, gradient="implicit", attack=attacks.PGD(0.1)
        )


def test_one_layer_alone_is_reached(digits_like):
    x, y = digits_like
    classifier = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, activation="tanh", name="first"),
            keras.layers.Dense(3, name="last"),
        ]
    )
    model = dd_keras.DeepDefenseModel(
        classifier, gradient="implicit", regularized_layers=["last"]
    )
    with tf.GradientTape() as tape:
        penalty, _ = model.regularizer(
            tf.constant(x), tf.constant(y, tf.int32), None, None
        )
    first, _, last, _ = tape.gradient(penalty, classifier.trainable_weights)
    assert first is None or not np.any(first)
    assert np.any(last)
