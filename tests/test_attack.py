import json
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras import attacks
from dd_keras.attacks import decisions


def random_affine(num_outputs=4, dim=6, batch=8, dtype="float64"):
    rng = np.random.default_rng(0)
    model = affine_classifier(
        rng.normal(size=(dim, num_outputs)), rng.normal(size=num_outputs), dtype
    )
    return model, rng.normal(size=(batch, dim))


def image_model(dtype="float32"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1), dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(3, dtype=dtype),
        ]
    )


def assert_equal(found, expected, tolerance=0.0):
    for name in ("predictions", "fooled", "iterations"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name)
        )
    np.testing.assert_allclose(
        found.perturbation, expected.perturbation, rtol=0, atol=tolerance
    )


# Running in batches


@pytest.mark.slow
@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("batch_size", [3, 4, 8, 100])
@pytest.mark.parametrize(
    "attack",
    [attacks.DeepFool(), attacks.FGSM(0.3), attacks.MinimalFGSM(5.0)],
    ids=lambda attack: type(attack).__name__,
)
def test_batches_are_the_same_as_all_at_once(attack, batch_size, labeled):
    model, x = random_affine()
    y = np.arange(8) % 4 if labeled else None
    at_once = attack.run(model, x, y)
    found = attack.run(model, x, y, batch_size=batch_size)
    # Products of matrices of other sizes may round otherwise.
    assert_equal(found, at_once, 1e-14)
    np.testing.assert_allclose(
        attack.perturb(model, x, y, batch_size=batch_size),
        at_once.perturbation,
        rtol=0,
        atol=1e-14,
    )
    np.testing.assert_allclose(
        attack(model, x, y, batch_size=batch_size),
        x + at_once.perturbation,
        rtol=0,
        atol=1e-14,
    )


def test_batch_size_is_what_the_attack_sees():
    sizes = []

    class Noting(attacks.FGSM):
        def search(self, network, x, y=None, forward=None):
            tf.py_function(lambda n: sizes.append(int(n)), [tf.shape(x)[0]], [])
            return super().search(network, x, y, forward)

    model, x = random_affine()
    attack = Noting(0.3)
    attack.run(model, x, batch_size=3)
    assert sizes == [3, 3, 2]
    attack.run(model, x)
    assert sizes == [3, 3, 2, 8]


@pytest.mark.parametrize(
    "attack",
    [
        attacks.DeepFool(),
        attacks.FGSM(0.3),
        attacks.MinimalFGSM(),
        attacks.PGD(0.3, norm=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_an_empty_batch(attack, batch_size):
    model, x = random_affine()
    found = attack.run(model, x[:0], batch_size=batch_size)
    assert found.perturbation.shape == (0, 6)
    assert found.fooled.shape == found.iterations.shape == (0,)


def test_progress_is_shown_only_when_asked_for(capsys):
    model, x = random_affine()
    attack = attacks.FGSM(0.3)
    attack.run(model, x, batch_size=3)
    attack.run(model, x, verbose=0)
    assert capsys.readouterr().out == ""
    attack.run(model, x, batch_size=3, verbose=1)
    shown = capsys.readouterr().out
    assert "3/3" in shown
    assert "/batch" in shown


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8", True])
def test_bad_batch_sizes_are_named(batch_size):
    model, x = random_affine()
    message = (
        "batch_size: expected an integer of at least 1; received "
        f"{batch_size!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attacks.FGSM(0.3).run(model, x, batch_size=batch_size)


def test_labels_of_another_number_are_named_also_in_batches():
    model, x = random_affine()
    with pytest.raises(ValueError, match=r"y: expected 8 labels.*received 5"):
        attacks.FGSM(0.3).run(model, x, np.zeros(5), batch_size=3)


# Bounds


@pytest.mark.parametrize(
    "attack",
    [
        attacks.DeepFool(bounds=(-1.0, 2.0)),
        attacks.FGSM(0.3, bounds=(-1.0, 2.0)),
        attacks.FGSM(0.3, bounds=(np.full(6, -1.0), np.full(6, 2.0))),
    ],
    ids=repr,
)
@pytest.mark.parametrize("value", [2.1, -1.1, math.nan, math.inf])
def test_inputs_out_of_bounds_are_named(attack, value):
    model, x = random_affine()
    x = np.clip(x, -1, 2)
    attack.run(model, x)
    x[3, 2] = value
    low, high = np.min(x), np.max(x)
    message = (
        "x: expected inputs within the bounds, -1 to 2; received values from "
        f"{low:g} to {high:g}, or beyond the bounds of their place."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attack.run(model, x)


def test_each_place_has_its_bounds():
    model, x = random_affine()
    x = np.clip(x, -1, 1)
    low, high = np.full(6, -3.0), np.full(6, 3.0)
    high[2] = 0.5
    attack = attacks.FGSM(0.3, bounds=(low, high))
    x[:, 2] = np.minimum(x[:, 2], 0.5)
    attack.run(model, x)
    x[5, 2] = 0.6
    with pytest.raises(ValueError, match="beyond the bounds of their place"):
        attack.run(model, x)


@pytest.mark.parametrize(
    "attack",
    [attacks.FGSM, attacks.MinimalFGSM, attacks.BIM, attacks.PGD],
)
def test_rounding_is_accepted_and_cut_off(attack):
    model, x = random_affine()
    x = np.clip(x, 0, 1)
    x[0, 0] = 1 + 9e-6
    x[1, 1] = -9e-6
    attack = attack(0.25, bounds=(0, 1))
    adversarial = attack(model, x).numpy()
    assert adversarial.min() >= -1e-15
    assert adversarial.max() <= 1 + 1e-15
    x[0, 0] = 1 + 2e-5
    with pytest.raises(ValueError, match="x: expected inputs within the bound"):
        attack.run(model, x)


@pytest.mark.parametrize(
    ("shape", "received"),
    [
        ((3,), r"\(3,\)"),
        ((4, 4, 3), r"\(4, 4, 3\)"),  # would broadcast, the input with it
        ((2, 4, 4, 1), r"\(2, 4, 4, 1\)"),  # as a batch is, not a sample
        ((1, 4, 4, 1), r"\(1, 4, 4, 1\)"),
    ],
)
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("make", [attacks.FGSM, attacks.PGD])
def test_bounds_of_another_shape_are_named(make, shape, received, in_graph):
    attack = make(0.3, bounds=(np.zeros(shape), np.ones(shape)))
    model, x = image_model(), np.full((2, 4, 4, 1), 0.5, np.float32)
    run = tf.function(attack.run) if in_graph else attack.run
    with pytest.raises(
        ValueError,
        match=r"bounds: expected numbers, or arrays that broadcast against "
        rf"samples of shape \(4, 4, 1\); received arrays of shape {received}",
    ):
        run(model, x)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (4, 1, 1), (4, 4, 1)])
def test_bounds_that_broadcast_against_a_sample(shape):
    model = image_model()
    x = np.random.default_rng(0).uniform(size=(3, 4, 4, 1)).astype("float32")
    rng = np.random.default_rng(1)
    low = rng.uniform(-0.2, 0, shape).astype("float32")
    high = rng.uniform(1, 1.2, shape).astype("float32")
    attack = attacks.FGSM(0.5, bounds=(low, high))
    found = attack.perturb(model, x)
    step = attacks.FGSM(0.5).perturb(model, x)
    assert found.shape == x.shape
    np.testing.assert_allclose(
        x + found, np.clip(x + step, low, high), atol=1e-6
    )


def test_what_is_not_cut_is_not_rounded():
    attack = attacks.FGSM(0.3, bounds=(-1000.0, 1000.0))
    x = tf.constant([[999.0, 0.1, -1000.0]])
    perturbation = tf.constant([[1e-6, 0.3, 1e-8]])
    np.testing.assert_array_equal(
        attack.within_bounds(x, perturbation), perturbation
    )
    np.testing.assert_allclose(
        attack.within_bounds(x, [[2.0, -2000.0, -1e-8]]), [[1.0, -1000.1, 0.0]]
    )


def test_no_bounds_no_limit():
    attack = attacks.FGSM(0.3)
    x = tf.constant([[math.inf, -1e30]])
    attack.check_bounds(x)
    perturbation = tf.constant([[1.0, -1e30]])
    assert attack.within_bounds(x, perturbation) is perturbation


# Targeted attacks


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("make", [attacks.FGSM, attacks.BIM, attacks.PGD])
def test_a_targeted_attack_needs_labels(make, in_graph):
    model, x = random_affine()
    attack = make(0.3, targeted=True)
    run = tf.function(attack.run) if in_graph else attack.run
    message = "y: a targeted attack needs the classes to reach; received None."
    with pytest.raises(ValueError, match=re.escape(message)):
        run(model, x)
    run(model, x, np.zeros(8, np.int32))


# Identity


def bounds_that_differ_in_the_middle(value):
    low = np.zeros((28, 28, 1))
    low[14, 14] = value
    return low, np.ones((28, 28, 1))


def test_attacks_of_equal_settings_are_equal():
    bounds = bounds_that_differ_in_the_middle(0.5)
    one = attacks.PGD(0.3, bounds=bounds)
    same = attacks.PGD(0.3, bounds=[b.tolist() for b in bounds])
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1


@pytest.mark.parametrize(
    "other",
    [
        attacks.PGD(0.3, bounds=bounds_that_differ_in_the_middle(0.4)),
        attacks.PGD(0.2, bounds=bounds_that_differ_in_the_middle(0.5)),
        attacks.PGD(0.3),
        attacks.BIM(0.3, bounds=bounds_that_differ_in_the_middle(0.5)),
        None,
        "attack",
    ],
    ids=lambda other: type(other).__name__,
)
def test_attacks_of_other_settings_are_not(other):
    one = attacks.PGD(0.3, bounds=bounds_that_differ_in_the_middle(0.5))
    assert one != other
    assert other != one
    assert len({one, other}) == 2


def test_another_class_of_the_same_settings_is_another_attack():
    class Other(attacks.FGSM):
        pass

    Other.__name__ = "FGSM"
    assert repr(Other(0.3)) == repr(attacks.FGSM(0.3))
    assert Other(0.3) != attacks.FGSM(0.3)


def test_repr_is_short_also_with_arrays():
    bounds = bounds_that_differ_in_the_middle(0.5)
    shown = repr(attacks.FGSM(0.3, bounds=bounds))
    assert shown == (
        "FGSM(eps=0.3, bounds=(array (28, 28, 1) of 0 to 0.5, "
        "array (28, 28, 1) of 1 to 1), targeted=False, float32_gradient=False)"
    )
    assert (
        repr(attacks.FGSM(0.3, bounds=(0, 1)))
        == "FGSM(eps=0.3, bounds=(0.0, 1.0), targeted=False, "
        "float32_gradient=False)"
    )


def functions_of(model):
    """How many compiled functions a model holds."""
    return len(vars(model)["_dd_keras_compiled"].entries)


def test_equal_attacks_share_what_is_compiled_also_with_arrays():
    model, x = random_affine()
    x = np.clip(x, -1, 1)

    def attack(high):
        return attacks.FGSM(0.3, bounds=(np.full(6, -1.0), np.full(6, high)))

    first = attack(1.0).perturb(model, x)
    np.testing.assert_array_equal(attack(1.0).perturb(model, x), first)
    assert functions_of(model) == 1
    assert np.any(attack(2.0).perturb(model, x) != first)
    assert functions_of(model) == 2


@pytest.mark.parametrize("ends", ["low", "high"])
@pytest.mark.parametrize(
    "make", [attacks.FGSM, attacks.PGD, attacks.RandomNoise]
)
def test_one_bound_may_be_a_number_and_the_other_an_array(make, ends):
    model, x = random_affine()
    x = np.clip(x, -1, 1)
    each = np.full(6, {"low": -1.0, "high": 1.0}[ends])
    bounds = {"low": (each, 1), "high": (-1, each)}[ends]
    attack = make(0.3, bounds=bounds)
    expected = make(0.3, bounds=(-1, 1)).run(model, x)
    assert_equal(attack.run(model, x), expected)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(attack)))
    assert keras.saving.deserialize_keras_object(config) == attack
    with pytest.raises(ValueError, match=r"^bounds: .* arrays of shape \(5,\)"):
        make(0.3, bounds=(0, np.ones(5))).run(model, x)


def test_arrays_cost_their_hash_only():
    low, high = np.zeros((224, 224, 3)), np.ones((224, 224, 3))
    attack, same = (attacks.FGSM(0.3, bounds=(low, high)) for _ in range(2))
    assert attack == same
    assert hash(attack) == hash(same)
    assert len(repr(attack._identity)) < 300
    high[7, 7, 1] = 2
    assert attacks.FGSM(0.3, bounds=(low, high)) != attack
    # Of other shapes, and as many numbers.
    assert attacks.FGSM(0.3, bounds=([[0.0]], [[1.0]])) != attacks.FGSM(
        0.3, bounds=([0.0], [1.0])
    )


# The base class


def test_in_a_graph_the_attack_becomes_part_of_it():
    model, x = random_affine()
    attack = attacks.FGSM(0.3)
    expected = attack.run(model, x)
    before = functions_of(model)
    # A batch size has no meaning there.
    inside = tf.function(lambda x: attack.run(model, x, batch_size=3))
    assert_equal(inside(x), expected, 1e-14)
    assert functions_of(model) == before
    adversarial = tf.function(lambda x: attack(model, x))(x)
    np.testing.assert_allclose(adversarial, x + expected.perturbation)


def test_in_a_graph_inputs_are_not_checked_but_cut_off():
    model, _ = random_affine()
    x = np.full((1, 6), 5.0)
    attack = attacks.FGSM(0.3, bounds=(-1, 1))
    adversarial = tf.function(lambda: attack(model, x))()
    np.testing.assert_allclose(adversarial, 1.0)


def test_a_subclass_implements_two_methods():
    model, x = random_affine()

    class Halving(attacks.Attack):
        def search(self, network, x, y=None, forward=None):
            logits = attacks.inference_form(network)(x)
            size = tf.shape(x)[:1]
            return attacks.AttackResult(
                -x / 2,
                decisions.predicted_class(logits),
                tf.fill(size, False),
                tf.zeros(size, tf.int32),
            )

        def get_config(self):
            return {}

    attack = Halving()
    np.testing.assert_allclose(attack(model, x), x / 2)
    np.testing.assert_array_equal(
        attack.run(model, x, batch_size=3).predictions, np.argmax(model(x), -1)
    )
    assert repr(attack) == "Halving()"
    assert Halving.from_config(attack.get_config()) == attack
    assert attack.bounds is None
    assert not attack.targeted
    with pytest.raises(NotImplementedError):
        attacks.Attack().search(model, x)
    with pytest.raises(NotImplementedError):
        attacks.Attack().get_config()


def test_inference_form_gives_class_logits():
    model, x = random_affine(1)
    z = model(x).numpy()
    logits = attacks.inference_form(model)(tf.constant(x))
    np.testing.assert_allclose(logits, np.hstack([0 * z, z]))


# What attacks go by

LOGITS = np.array(
    [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, -5.0], [900.0, 0.0, 1.0]]
)
LABELS = np.array([0, 1, 1, 0], np.int32)


@pytest.mark.parametrize("targeted", [False, True])
def test_margin_is_negative_where_the_attack_has_succeeded(targeted):
    margin = decisions.margin(
        tf.constant(LOGITS), tf.constant(LABELS), targeted
    )
    expected = np.array([1.0, -2.0, 0.0, 899.0])
    np.testing.assert_array_equal(margin, -expected if targeted else expected)
    fooled = decisions.is_fooled(
        tf.constant(LOGITS), tf.constant(LABELS), targeted
    )
    # At a tie, the decision is for the first.
    np.testing.assert_array_equal(
        fooled, np.array([False, True, True, False]) != targeted
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_loss_gradient_is_the_cross_entropys_without_its_size(targeted):
    logits = tf.constant(LOGITS[:3])
    labels = LABELS[:3]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = keras.losses.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )
    gradient = tape.gradient(loss, logits).numpy()
    if targeted:
        gradient = -gradient
    way = decisions.cross_entropy_logit_gradient(
        logits, tf.constant(labels), targeted
    ).numpy()
    own = np.abs(np.take_along_axis(gradient, labels[:, None], 1))
    np.testing.assert_allclose(way, gradient / own, rtol=1e-12)


def test_loss_gradient_keeps_its_size_where_the_softmax_saturates():
    way = decisions.cross_entropy_logit_gradient(
        tf.constant(LOGITS[3:], tf.float32), tf.constant([0])
    ).numpy()
    share = 1 / (1 + math.e)
    np.testing.assert_allclose(way, [[-1, share, 1 - share]], rtol=1e-6)


def test_decisions_are_int32():
    decision = decisions.predicted_class(tf.constant(LOGITS))
    assert decision.dtype == tf.int32
    np.testing.assert_array_equal(decision, [0, 0, 0, 0])
    masked = decisions.mask_class(
        tf.constant(LOGITS), tf.constant([0, 0, 0, 0])
    )
    np.testing.assert_array_equal(
        decisions.predicted_class(masked), [2, 2, 1, 2]
    )
