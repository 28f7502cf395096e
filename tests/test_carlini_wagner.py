import math

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras import attacks, datasets
from dd_keras.utils import keras_internals, norms

CW = attacks.CarliniWagnerL2
UNIT = (0.0, 1.0)


def random_affine(classes=5, dim=12, batch=10, seed=0):
    """A classifier of inputs in [0, 1], some of them at the ends."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(dim, classes))
    x = np.clip(rng.uniform(-0.1, 1.1, size=(batch, dim)), 0, 1)
    biases = rng.normal(size=classes) - x.mean(0) @ weights
    return affine_classifier(weights, biases), weights, biases, x


def small_convnet(dtype="float64", factor=1.0, seed=1):
    """Random weights; curved enough that the samples part ways."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype=dtype),
            layers.Rescaling(4 * factor, -2, dtype=dtype),
            layers.Conv2D(4, 3, activation="tanh", dtype=dtype),
            layers.MaxPooling2D(2, dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(4, dtype=dtype),
        ]
    )


def images(batch=8, dtype="float64", seed=2):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.uniform(size=(batch, 6, 6, 1)), dtype)


def predictions(model, x):
    return model(x).numpy().argmax(-1)


def lengths(found):
    return norms.sample_norm(found.perturbation).numpy()


def fast(**kwargs):
    return CW(**{"max_iter": 40, "binary_search_steps": 3, **kwargs})


# Closed forms on affine classifiers


def distance(x, w, gap, low, high):
    """The smallest ||d||_2 with w . d = -gap and x + d in [low, high].

    It is d = clip(-t w, low - x, high - x), with t > 0 that meets the first.
    """

    def step(t):
        return np.clip(-t * w, low - x, high - x)

    few, much = 0.0, 1e6
    if w @ step(much) > -gap:
        return math.inf
    for _ in range(200):
        t = (few + much) / 2
        few, much = (t, much) if w @ step(t) > -gap else (few, t)
    return np.linalg.norm(step(much))


def closed_form(weights, biases, x, bounds=None, confidence=0.0):
    """For each row of x the distance to the nearest boundary."""
    low, high = bounds or (-math.inf, math.inf)
    found = []
    for row in x:
        logits = row @ weights + biases
        s = logits.argmax()
        found.append(
            min(
                distance(
                    row,
                    weights[:, s] - weights[:, k],
                    logits[s] - logits[k] + confidence,
                    low,
                    high,
                )
                for k in range(len(logits))
                if k != s
            )
        )
    return np.array(found)


def assert_smallest(found, expected, classes):
    ratio = lengths(found) / expected
    assert found.fooled.numpy().all()
    assert ratio.min() > 1 - 1e-9
    if classes == 2:
        assert ratio.max() < 1.01
    else:  # the nearest class is not always the first one met
        assert ratio.mean() < 1.01
        assert np.median(ratio) < 1.005


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bounds", "classes"), [(None, 5), (UNIT, 2), ("arrays", 5)]
)
def test_affine_classifiers_in_closed_form(bounds, classes):
    model, weights, biases, x = random_affine(classes)
    if bounds == "arrays":  # each pixel has its own, and they cut steps short
        x = 0.45 + 0.1 * x
        bounds = x.min(0) - 0.06, x.max(0) + 0.08
    expected = closed_form(weights, biases, x, bounds)
    if bounds is not None:
        free = closed_form(weights, biases, x)
        assert (expected > 1.01 * free).any()
    found = CW(bounds=bounds).run(model, x)
    assert_smallest(found, expected, classes)
    np.testing.assert_array_equal(found.predictions, predictions(model, x))
    if bounds is not None:
        adversarial = x + found.perturbation.numpy()
        assert (adversarial >= np.array(bounds[0]) - 1e-12).all()
        assert (adversarial <= np.array(bounds[1]) + 1e-12).all()


@pytest.mark.slow
def test_tiny_and_large_distances_in_many_dimensions():
    """The steps adapt: no one length suits both."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=1000)
    x = rng.uniform(0.2, 0.8, size=(4, 1000))
    expected = np.array([0.003, 0.03, 0.3, 3.0])
    away = (expected - x @ w / np.linalg.norm(w)) / np.linalg.norm(w)
    x += away[:, None] * w
    model = affine_classifier(np.stack([w, 0 * w], 1), [0.0, 0.0])
    for bounds in (None, (-1, 2)):
        found = CW(bounds=bounds).run(model, x)
        assert_smallest(found, expected, classes=2)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_logits_of_any_scale(factor):
    model, weights, biases, x = random_affine(2)
    scaled = affine_classifier(factor * weights, factor * biases)
    found = CW().run(model, x)
    np.testing.assert_allclose(
        CW().perturb(scaled, x), found.perturbation, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("bounds", [None, (-2, 3)])
def test_confidence_is_reached_and_not_exceeded(bounds):
    model, weights, biases, x = random_affine(2)
    confidence = 2.5
    attack = CW(confidence=confidence, bounds=bounds)
    found = attack.run(model, x)
    expected = closed_form(weights, biases, x, bounds, confidence)
    assert_smallest(found, expected, classes=2)
    logits = np.sort(model(x + found.perturbation).numpy(), axis=-1)
    gap = logits[:, -1] - logits[:, -2]
    assert (gap >= confidence).all()
    assert (gap < 1.1 * confidence).all()


@pytest.mark.slow
def test_given_const_is_where_the_search_starts():
    """One descent: a const too small leaves a sample where it is."""
    model, weights, biases, x = random_affine(2)
    once = {"binary_search_steps": 1}
    assert not CW(initial_const=1e-4, **once).run(model, x).fooled.numpy().any()
    assert CW(initial_const=100, **once).run(model, x).fooled.numpy().all()
    found = CW(initial_const=1e-3).run(model, x)
    assert_smallest(found, closed_form(weights, biases, x), classes=2)


# Targets


@pytest.mark.slow
def test_targeted_reaches_the_target_at_no_less():
    bounds = UNIT
    model, weights, biases, x = random_affine(batch=6)
    free = lengths(CW(bounds=bounds).run(model, x))
    every = []
    for k in range(5):
        found = CW(bounds=bounds, targeted=True).run(model, x, [k] * 6)
        assert found.fooled.numpy().all()
        there = predictions(model, x + found.perturbation)
        np.testing.assert_array_equal(there, k)
        already = predictions(model, x) == k
        np.testing.assert_array_equal(lengths(found)[already], 0)
        every.append(np.where(already, math.inf, lengths(found)))
    assert (np.min(every, 0) > 0.999 * closed_form(weights, biases, x)).all()
    # The nearest target is what an attack without one finds, or misses.
    assert (np.min(every, 0) < 1.005 * free).all()
    assert (np.max(every, 0) > 1.1 * free).all()


@pytest.mark.slow
def test_a_pixel_at_its_bound_can_leave_it_again():
    """At first the gradient drives p out of the bounds, later up from 0."""

    def margin(q, p):
        return 1 - q + 0.3 * p - 8 * np.maximum(q - 0.2, 0) * p

    inputs = keras.Input((2,), dtype="float64")
    q, p = inputs[:, :1], inputs[:, 1:]
    product = keras.ops.relu(q - 0.2) * p
    terms = keras.ops.concatenate([q, p, product], axis=-1)
    outputs = keras.layers.Dense(1, dtype="float64", name="logit")(terms)
    model = keras.Model(inputs, outputs)
    model.set_weights([np.array([[1.0], [-0.3], [8.0]]), np.array([-1.0])])

    q, p = np.meshgrid(*[np.linspace(0, 1, 1001)] * 2)
    crossed = margin(q, p) <= 0
    expected = np.hypot(q - 0.1, p)[crossed].min()
    found = CW(bounds=UNIT).run(model, [[0.1, 0.0]])
    assert found.fooled.numpy().all()
    assert 0.995 < lengths(found)[0] / expected < 1.01


# What counts as done, and what cannot be


@pytest.mark.parametrize("bounds", [None, UNIT])
def test_misclassified_samples_are_left_alone(bounds):
    model, x = small_convnet(), images()
    y = predictions(model, x)
    wrong = np.arange(8) % 3 == 0
    y[wrong] = (y[wrong] + 1) % 4
    found = fast(bounds=bounds).run(model, x, y)
    np.testing.assert_array_equal(lengths(found) == 0, wrong)
    np.testing.assert_array_equal(found.iterations.numpy() == 0, wrong)
    assert found.fooled.numpy()[wrong].all()


@pytest.mark.parametrize(
    ("bounds", "dtype"), [(None, "float32"), (UNIT, "float64")]
)
def test_constant_network_is_not_fooled(bounds, dtype):
    model = affine_classifier(np.zeros((4, 3)), [1.0, 0.0, 0.0], dtype)
    x = [[0.0, 0.2, 0.5, 1.0], [0.5] * 4]  # the second has no width
    found = CW(bounds=bounds).run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(found.perturbation, 0)


def test_saturated_network_gives_finite_results():
    model = affine_classifier(1e-9 * np.ones((4, 2)), [1.0, 0.0], "float32")
    model.layers[-1].kernel.assign(1e-9 * np.array([[1, -1]] * 4))
    found = CW(bounds=UNIT).run(model, [[0.0, 0.2, 0.5, 1.0]])
    assert np.isfinite(found.perturbation).all()
    assert not found.fooled.numpy().any()


def test_out_of_reach_gives_what_comes_closest():
    """Bounds that hold x too close: the best is in their corner."""
    model, weights, biases, x = random_affine(2, batch=1)
    w = weights[:, 0] - weights[:, 1]
    side = 1 if (x @ weights + biases).argmax() == 0 else -1
    corner = -side * 1e-3 * np.sign(w)
    bounds = x[0] - 1e-3, x[0] + 1e-3
    found = CW(bounds=bounds).run(model, x)
    assert not found.fooled.numpy().any()
    short = w @ found.perturbation.numpy()[0] / (w @ corner)
    assert 0.9 < short <= 1


def test_fooled_is_what_the_network_says():
    model, x = small_convnet("float32"), images(20, "float32")
    y = predictions(model, x)
    found = fast(bounds=UNIT).run(model, x)
    after = predictions(model, x + found.perturbation)
    np.testing.assert_array_equal(after != y, found.fooled)
    assert found.fooled.numpy().mean() > 0.9


# Scale


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [None, UNIT])
def test_pixels_up_to_1_and_up_to_255_are_the_same(bounds):
    x = images(4)
    wide = bounds and (0.0, 255.0)
    small = fast(bounds=bounds).run(small_convnet(), x)
    large = fast(bounds=wide).run(small_convnet(factor=1 / 255), 255 * x)
    assert (lengths(small) > 0).all()
    assert small.fooled.numpy().all()
    np.testing.assert_allclose(
        large.perturbation / 255, small.perturbation, rtol=1e-3, atol=1e-6
    )


# Samples do not disturb each other


def assert_same(found, expected, tolerance):
    for name in ("predictions", "fooled", "iterations"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name)
        )
    np.testing.assert_allclose(
        found.perturbation, expected.perturbation, rtol=0, atol=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [None, UNIT])
def test_dropping_equals_masking_equals_each_sample_alone(monkeypatch, bounds):
    model, x = small_convnet(), images()
    attack = fast(bounds=bounds)
    dropped = attack.run(model, x)
    assert len(set(dropped.iterations.numpy())) > 1  # some stop earlier
    assert_same(attack.run(model, x), dropped, 0)  # deterministic
    assert_same(attack.run(model, x, batch_size=1), dropped, 1e-9)
    monkeypatch.setattr(keras_internals, "compiled_by_xla", lambda: True)
    masked = tf.function(lambda: attack.run(model, x))()
    assert_same(masked, dropped, 1e-9)


class RowCounter(keras.layers.Layer):
    """Notes the size of each batch, where it runs eagerly."""

    sizes = None

    def call(self, x):
        self.sizes.append(x.shape[0])
        return x


def rows_seen(attack, model, x, y):
    """The sizes of the batches that an attack shows a network."""
    counter = RowCounter(dtype="float64")
    counter.sizes = []
    counted = keras.Sequential([keras.Input(x.shape[1:]), counter, model])
    del counter.sizes[:]
    tf.config.run_functions_eagerly(True)
    try:
        attack.search(counted, x, tf.constant(y, tf.int32))
    finally:
        tf.config.run_functions_eagerly(False)
    clean, *descents, check = counter.sizes
    assert clean == check == len(x)
    return descents


@pytest.mark.slow
def test_samples_that_are_done_leave_the_batch():
    model, x = small_convnet(), images(4)
    y = predictions(model, x)
    y[0] = (y[0] + 1) % 4  # done from the start
    attack = fast(max_iter=12)
    together = rows_seen(attack, model, x, y)
    alone = [
        len(rows_seen(attack, model, x[i : i + 1], y[i : i + 1]))
        for i in range(4)
    ]
    assert alone[0] == 0
    assert len(set(alone)) > 2
    assert sum(together) == sum(alone)


@pytest.mark.parametrize("abort_early", [True, False])
def test_every_descent_takes_its_steps(abort_early):
    model, x = small_convnet(), images(3)
    attack = fast(max_iter=25, abort_early=abort_early)
    steps = attack.run(model, x).iterations.numpy()
    if abort_early:
        assert (steps <= 3 * 25).all()
        constant = affine_classifier(np.zeros((4, 2)), [1.0, 0.0])
        few = attack.run(constant, np.zeros((1, 4))).iterations
        assert few[0] == 3 * 6  # stalled at the second check, of 3 steps each
    else:  # the bracket may be tight before
        assert set(steps) <= {25, 50, 75}


def test_learning_rate_is_the_most_a_pixel_moves():
    model, x = small_convnet(), images(3)
    found = fast(learning_rate=1e-5).run(model, x)
    moved = np.abs(found.perturbation).max()
    assert 1e-4 < moved < 40 * 1e-5
    assert not found.fooled.numpy().any()


# In whatever graph


@pytest.mark.slow
def test_xla_equals_plain():
    model, x = small_convnet(), images(4)
    attack = fast(bounds=UNIT)
    plain = attack.run(model, x)
    compiled = tf.function(lambda: attack.run(model, x), jit_compile=True)()
    assert plain.fooled.numpy().all()
    assert_same(compiled, plain, 1e-6)


@pytest.mark.slow
def test_inside_a_graph_of_any_batch_size():
    model, x = small_convnet(), images(4)
    attack = fast(bounds=UNIT)

    @tf.function(input_signature=[tf.TensorSpec((None, 6, 6, 1), tf.float64)])
    def perturb(x):
        return attack.perturb(model, x)

    for size in (4, 2):
        expected = attack.perturb(model, x[:size])
        np.testing.assert_allclose(perturb(x[:size]), expected, atol=1e-10)


@pytest.mark.slow
def test_a_forward_pass_at_hand_serves():
    model, x = small_convnet(), images(3)
    attack = fast()
    f = attacks.inference_form(model)

    @tf.function
    def search():
        forward = attacks.Forward.of(f, x)
        return attack.search(model, x, forward=forward)

    assert_same(search(), attack.run(model, x), 1e-10)


def test_the_result_is_a_constant_to_tapes():
    model, x = small_convnet(), images(2)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(fast().perturb(model, x))
        return tape.gradient(value, [x, *model.trainable_weights])

    assert all(part is None for part in gradient(x))


# Against Foolbox


@pytest.mark.thorough
@pytest.mark.slow
def test_as_small_as_foolbox(trained_network):
    data = datasets.load("digits")
    inputs = keras.Input(data.image_shape)
    pixels = data.preprocessing(keras.layers.Rescaling(255.0)(inputs))
    model = keras.Model(inputs, trained_network(pixels))
    # From a bound, Foolbox' steps in tanh space take longer than a test may.
    wide = (-1.0, 2.0)
    x = next(iter(data.test.batch(5)))[0] / 255
    y = tf.argmax(model(x), -1)
    peer = foolbox.TensorFlowModel(model, bounds=wide)
    oracle = foolbox.attacks.L2CarliniWagnerAttack(steps=120)
    _, (adversarial,), success = oracle(peer, x, y, epsilons=[None])
    theirs = norms.sample_norm(adversarial - x).numpy()
    found = CW(bounds=wide).run(model, x, y)
    assert tf.reduce_all(success)
    assert found.fooled.numpy().all()
    assert lengths(found).mean() < 1.02 * theirs.mean()


# Configuration and errors


def test_config_round_trip():
    attack = CW(
        confidence=1,
        binary_search_steps=4,
        max_iter=30,
        learning_rate=0.05,
        initial_const=2,
        abort_early=False,
        bounds=(np.zeros(3), np.ones(3)),
        targeted=True,
    )
    assert attack.norm == 2
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(config)
    assert again == attack
    assert again.get_config() == attack.get_config()
    assert again.bounds == ([0.0] * 3, [1.0] * 3)
    for name, value in CW().get_config().items():
        assert attack.get_config()[name] != value  # all have been set
    assert CW() == CW(initial_const=None) != CW(initial_const=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": -1}, "confidence: expected.*>= 0; received -1"),
        ({"confidence": math.inf}, "confidence: expected.*received inf"),
        (
            {"binary_search_steps": 0},
            "binary_search_steps: expected.*at least 1; received 0",
        ),
        ({"max_iter": 1.5}, "max_iter: expected an integer.*received 1.5"),
        ({"max_iter": 0}, "max_iter: expected.*at least 1; received 0"),
        ({"learning_rate": 0}, "learning_rate: expected.*> 0; received 0"),
        ({"initial_const": 0}, "initial_const: expected.*> 0; received 0"),
        ({"bounds": (1, 0)}, r"bounds: expected a pair.*received \(1, 0\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CW(**arguments)


def test_bad_inputs_are_named():
    model, _, _, x = random_affine()
    with pytest.raises(ValueError, match="y: a targeted attack needs"):
        CW(targeted=True).run(model, x)
    with pytest.raises(ValueError, match="x: expected inputs within the bound"):
        CW(bounds=UNIT).run(model, x + 1)
