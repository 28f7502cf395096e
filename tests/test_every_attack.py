"""What must hold of every attack along the gradient, on any network."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from attack_cases import (
    affine,
    assert_same,
    curved_network,
    labels_with_mistakes,
    lengths,
)
from conftest import affine_classifier

from dd_keras import attacks
from dd_keras.utils import keras_internals

# Each kind of attack once, for what must hold of all; eps is a part of what
# most samples below need, and most of what some need.
EPS = 0.3
EVERY = [
    attacks.FGSM(EPS),
    attacks.MinimalFGSM(eps_max=4.0),
    attacks.BIM(EPS),
    attacks.PGD(EPS, steps=8, restarts=2),
    attacks.PGD(EPS, norm=2, steps=8, restarts=2),
    attacks.APGD(EPS, steps=9),
    attacks.DDN(steps=15),
    attacks.FAB(norm=2, steps=4),
    attacks.Square(EPS, queries=30),
    attacks.Square(4 * EPS, norm=2, queries=30),
    attacks.SuperDeepFool(max_iter=3),
]
# Which of them leave different samples after different numbers of steps.
UNEVEN = (attacks.BIM, attacks.PGD, attacks.APGD, attacks.Square)
# What these find in half precision goes by decisions that rounding may turn.
ROUGH = (attacks.DDN, attacks.Square)


def name(attack):
    """A short one, for a test's."""
    return f"{type(attack).__name__}-{attack.norm:g}"


every_attack = pytest.mark.parametrize("attack", EVERY, ids=name)


def per_pixel_bounds(x):
    """Bounds that differ from pixel to pixel and hold all of x, just."""
    return x.numpy().min(0) - 0.01, x.numpy().max(0) + 0.02


@pytest.mark.parametrize(
    ("make", "norm", "settings", "bounds"),
    [
        (attacks.FGSM, math.inf, {}, "none"),
        (attacks.FGSM, math.inf, {}, "arrays"),
        (attacks.BIM, math.inf, {"steps": 5}, "numbers"),
        (attacks.PGD, math.inf, {"steps": 5}, "none"),
        (attacks.PGD, math.inf, {"steps": 5}, "arrays"),
        (attacks.APGD, math.inf, {"steps": 5}, "numbers"),
        (attacks.APGD, 2, {"steps": 5, "norm": 2}, "arrays"),
        (attacks.Square, math.inf, {"queries": 5}, "arrays"),
        (attacks.Square, 2, {"queries": 5, "norm": 2}, "numbers"),
        (attacks.PGD, 2, {"steps": 5, "norm": 2, "restarts": 2}, "none"),
        (attacks.PGD, 2, {"steps": 5, "norm": 2, "restarts": 2}, "arrays"),
        (
            attacks.PGD,
            2,
            {"steps": 5, "norm": 2, "random_start": False},
            "numbers",
        ),
    ],
)
def test_nothing_leaves_the_ball_or_the_bounds(make, norm, settings, bounds):
    model, x = curved_network(dtype="float32")
    x = tf.clip_by_value(x, -0.8, 0.9)
    bounds = {
        "none": None,
        "numbers": (-0.8, 0.9),
        "arrays": per_pixel_bounds(x),
    }[bounds]
    eps = 0.3 if norm == math.inf else 0.8
    found = make(eps, bounds=bounds, **settings).run(model, x)
    size = lengths(found.perturbation, norm)
    assert np.all(size <= eps * (1 + 1e-6))
    assert np.any(size > eps * 0.9)
    after = model(x + found.perturbation).numpy().argmax(-1)
    np.testing.assert_array_equal(after != found.predictions, found.fooled)
    if bounds is not None:
        low, high = bounds
        adversarial = (x + found.perturbation).numpy()
        assert np.all(adversarial >= low - 1e-6)
        assert np.all(adversarial <= high + 1e-6)
        moved = found.perturbation.numpy() != 0
        at_end = np.isclose(adversarial, low) | np.isclose(adversarial, high)
        assert np.any(moved & at_end)  # or this showed nothing


@every_attack
def test_a_constant_network_is_not_fooled_by_anything_finite(attack):
    model = affine_classifier(np.zeros((6, 3)), [1.0, 0.0, 0.0])
    x = np.random.default_rng(0).normal(size=(4, 6))
    found = attack.run(model, x)
    np.testing.assert_array_equal(found.fooled, False)
    np.testing.assert_array_equal(found.perturbation, 0.0)
    np.testing.assert_array_equal(found.predictions, 0)


@pytest.mark.parametrize(
    "attack", [a for a in EVERY if not isinstance(a, attacks.FGSM)], ids=name
)
def test_misclassified_samples_are_left_exactly_alone(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    found = attack.run(model, x, y)
    wrong = found.predictions.numpy() != y
    np.testing.assert_array_equal(wrong, np.arange(12) % 3 == 0)
    np.testing.assert_array_equal(found.perturbation[wrong], 0.0)
    np.testing.assert_array_equal(found.fooled[wrong], True)
    np.testing.assert_array_equal(found.iterations[wrong], 0)
    assert np.all(lengths(found.perturbation, 2)[~wrong] > 0)


@every_attack
def test_the_batch_is_each_sample_alone(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    together = attack.run(model, x, y)
    if isinstance(attack, UNEVEN):
        assert len(set(together.iterations.numpy())) > 2  # some leave earlier
    for batch_size in (1, 5):
        parts = attack.run(model, x, y, batch_size=batch_size)
        assert_same(together, parts, 1e-12)
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = attack.run(model, tf.gather(x, order), y[order])
    there = attacks.AttackResult(*(tf.gather(t, order) for t in together))
    assert_same(shuffled, there, 1e-12)


@every_attack
def test_dropping_equals_masking(monkeypatch, attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    dropped = tf.function(lambda: attack.run(model, x, y))()
    monkeypatch.setattr(keras_internals, "compiled_by_xla", lambda: True)
    masked = tf.function(lambda: attack.run(model, x, y))()
    assert_same(masked, dropped, 1e-12)


@pytest.mark.slow
@every_attack
def test_inside_and_outside_of_a_graph_are_the_same(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    outside = attack.run(model, x, y)
    inside = tf.function(lambda x: attack.run(model, x, y))(x)
    assert_same(inside, outside, 1e-12)
    tf.config.run_functions_eagerly(True)
    try:
        eager = attack.run(model, x, y)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_same(eager, outside, 1e-12)


@pytest.mark.thorough
@pytest.mark.slow
@every_attack
def test_xla_equals_plain(attack):
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    plain = attack.run(model, x, y)
    compiled = tf.function(lambda x: attack.run(model, x, y), jit_compile=True)
    assert_same(compiled(x), plain, 1e-9)


@pytest.mark.thorough
@pytest.mark.slow
@every_attack
def test_a_forward_pass_handed_in_serves_as_well(attack):
    model, x = curved_network()

    @tf.function
    def with_forward(x):
        _, forward = attacks.Forward.of_model(model, x, training=False)
        return attack.search(model, x, forward=forward)

    assert_same(with_forward(x), attack.run(model, x), 1e-12)


@pytest.mark.parametrize(
    ("attack", "policy"),
    [
        (attack, ("mixed_float16", "float16")[i % 2])
        for i, attack in enumerate(EVERY)
        if not isinstance(attack, ROUGH)
    ],
    ids=str,
)
def test_half_precision_models(attack, policy):
    weights = np.array([[1.0, -1.0], [-2.0, 1.0], [0.5, 0.25]])
    plain = affine_classifier(weights, [0.25, -0.25], "float32")
    half = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, dtype=policy)]
    )
    half.set_weights(plain.get_weights())
    x = np.array([[2, 0, 1], [0, 1, 2], [1, 1, 0]], np.uint8)
    found, expected = attack.run(half, x), attack.run(plain, x)
    assert found.perturbation.dtype == tf.float32
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    np.testing.assert_array_equal(found.fooled, expected.fooled)
    # Half precision resolves a thousandth, of eps or of eps_max.
    np.testing.assert_allclose(
        found.perturbation, expected.perturbation, atol=8e-3
    )
    assert np.all(lengths(found.perturbation, 2) > 0)


@pytest.mark.thorough
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("attack", "ending"),
    [(attack, ("softmax", "sigmoid")[i % 2]) for i, attack in enumerate(EVERY)],
    ids=str,
)
def test_probabilities_serve_as_well_as_logits(attack, ending):
    num_outputs = {"softmax": 3, "sigmoid": 1}[ending]
    model, _, _, x = affine(num_outputs)
    probable = keras.Sequential([model, keras.layers.Activation(ending)])
    assert_same(attack.run(probable, x), attack.run(model, x), 1e-12)


ARRAYS = (np.zeros((2, 1)), [[1.0], [0.5]])


CONFIGURED = [
    attacks.FGSM(0.1, bounds=(0, 1), targeted=True),
    attacks.FGSM(0.1, bounds=ARRAYS),
    attacks.MinimalFGSM(3, steps=5, tolerance=0.01, bounds=(-1, 1)),
    attacks.MinimalFGSM(bounds=ARRAYS),
    attacks.BIM(0.1, steps=3, step_size=0.2, bounds=ARRAYS, targeted=True),
    attacks.BIM(0.1),
    attacks.PGD(
        0.1, norm=2, steps=3, step_size=0.2, restarts=4, bounds=ARRAYS,
        targeted=True, seed=5,
    ),
    attacks.PGD(0.1, random_start=False),
    attacks.APGD(
        0.1, norm=2, loss="dlr", steps=3, restarts=4, num_targets=2,
        bounds=ARRAYS, seed=5,
    ),
    attacks.DDN(steps=3, gamma=0.1, bounds=ARRAYS, targeted=True),
    attacks.FAB(
        norm=1, eps=0.1, steps=3, num_targets=None, restarts=4, bounds=ARRAYS,
        seed=5,
    ),
    attacks.Square(
        0.1, norm=2, queries=3, initial_share=0.5, bounds=ARRAYS, seed=5
    ),
    attacks.SuperDeepFool(
        max_iter=2, deepfool_steps=3, overshoot=0.1, candidates=1,
        bounds=ARRAYS,
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", CONFIGURED, ids=repr)
def test_config_round_trip(attack):
    config = keras.saving.serialize_keras_object(attack)
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config))
    )
    assert type(again) is type(attack)
    assert again.get_config() == attack.get_config()
    assert again == attack
    for name, value in attack.get_config().items():
        assert getattr(attack, name) == value


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (attacks.FGSM, {"eps": 0}, "eps: expected.*> 0; received 0"),
        (attacks.FGSM, {"eps": math.inf}, "eps: expected.*received inf"),
        (attacks.FGSM, {"eps": "1"}, "eps: expected.*received '1'"),
        (attacks.FGSM, {"eps": 1, "bounds": (1, 0)}, r"bounds: .*\(1, 0\)"),
        (attacks.MinimalFGSM, {"eps_max": 0}, "eps_max: expected.*received 0"),
        (attacks.MinimalFGSM, {"steps": 0}, "steps: .*at least 1; received 0"),
        (attacks.MinimalFGSM, {"tolerance": 0}, "tolerance: .*> 0; received 0"),
        (attacks.MinimalFGSM, {"bounds": 1}, "bounds: expected.*received 1"),
        (attacks.BIM, {"eps": -1}, "eps: expected.*received -1"),
        (attacks.BIM, {"eps": 1, "steps": 0}, "steps: expected.*received 0"),
        (attacks.BIM, {"eps": 1, "steps": 1.5}, "steps: expected.*1.5"),
        (attacks.BIM, {"eps": 1, "step_size": 0}, "step_size: .*> 0; .* 0"),
        (attacks.BIM, {"eps": 1, "bounds": (0,)}, r"bounds: .*received \(0,\)"),
        (attacks.PGD, {"eps": math.nan}, "eps: expected.*received nan"),
        (attacks.PGD, {"eps": 1, "norm": 1}, "norm: expected 2 or inf; .* 1"),
        (attacks.PGD, {"eps": 1, "norm": "2"}, "norm: .*received '2'"),
        (attacks.PGD, {"eps": 1, "norm": True}, "norm: .*received True"),
        (attacks.PGD, {"eps": 1, "steps": 0}, "steps: expected.*received 0"),
        (attacks.PGD, {"eps": 1, "step_size": -1}, "step_size: .*received -1"),
        (attacks.PGD, {"eps": 1, "restarts": 0}, "restarts: .*received 0"),
        (
            attacks.PGD,
            {"eps": 1, "restarts": 2, "random_start": False},
            "restarts: expected 1 without random_start.*received 2",
        ),
        (attacks.PGD, {"eps": 1, "seed": -1}, "seed: .*at least 0; .*-1"),
        (attacks.PGD, {"eps": 1, "bounds": (0, 0)}, r"bounds: .*\(0, 0\)"),
    ],
)
def test_bad_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**arguments)
