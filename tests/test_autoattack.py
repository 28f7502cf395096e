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

from dd_keras import attacks
from dd_keras.attacks import autoattack

EPS = 0.12


def few_steps(eps=EPS, norm=math.inf, **settings):
    """The standard attacks, but quick."""
    ball = {"eps": eps, "norm": norm, **settings}
    return [
        attacks.APGD(steps=2, **ball),
        attacks.APGD(steps=5, loss="targeted_dlr", **ball),
        attacks.FAB(steps=5, **ball),
        attacks.Square(queries=50, **ball),
    ]


@pytest.fixture(scope="module")
def cascade():
    """A network, inputs, labels with mistakes, and what a cascade found."""
    model, x = curved_network()
    y = labels_with_mistakes(model, x)
    attack = attacks.AutoAttack(EPS, version=few_steps())
    return model, x, y, attack, attack.run(model, x, y)


def test_each_attack_gets_what_the_last_ones_left(cascade):
    model, x, y, _, found = cascade
    robust = found.predictions.numpy() == y
    np.testing.assert_array_equal(found.found_by[~robust], -1)
    np.testing.assert_array_equal(found.perturbation[~robust], 0.0)
    iterations = np.zeros(len(y))
    for number, single in enumerate(few_steps()):
        alone = single.run(model, x, y)
        iterations += np.where(robust, alone.iterations, 0)
        finds = robust & alone.fooled.numpy()
        np.testing.assert_array_equal(found.found_by == number, finds)
        np.testing.assert_allclose(
            found.perturbation[finds], alone.perturbation[finds], atol=1e-12
        )
        robust &= ~finds
    assert 0 < robust.sum() < len(y) - 4
    np.testing.assert_array_equal(found.fooled, ~robust)
    np.testing.assert_array_equal(found.perturbation[robust], 0.0)
    np.testing.assert_array_equal(found.iterations, iterations)
    assert np.all(lengths(found.perturbation, math.inf) <= EPS * (1 + 1e-6))


def test_it_does_not_depend_on_the_batch(cascade):
    model, x, y, attack, found = cascade
    parts = attack.run(model, x, y, batch_size=5)
    assert isinstance(parts, attacks.AutoAttackResult)
    assert_same(parts, found, 1e-12)
    np.testing.assert_array_equal(parts.found_by, found.found_by)


@pytest.mark.thorough
@pytest.mark.slow
def test_under_xla(cascade):
    model, x, y, attack, found = cascade
    compiled = tf.function(lambda x: attack.run(model, x, y), jit_compile=True)
    assert_same(compiled(x), found, 1e-9)
    np.testing.assert_array_equal(compiled(x).found_by, found.found_by)


def test_the_versions_are_the_papers():
    standard = attacks.AutoAttack(0.1, bounds=(0, 1), seed=3)
    names = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert standard.attack_names == names
    ball = {"eps": 0.1, "norm": math.inf, "bounds": (0, 1), "seed": 3}
    assert [attack for _, attack in standard._attacks] == [
        attacks.APGD(**ball),
        attacks.APGD(**ball, loss="targeted_dlr"),
        attacks.FAB(**ball),
        attacks.Square(**ball),
    ]
    plus = dict(attacks.AutoAttack(1, 2, version="plus")._attacks)
    assert list(plus) == [
        "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"
    ]  # fmt: skip
    restarts = {name: getattr(a, "restarts", 1) for name, a in plus.items()}
    assert restarts == {
        "apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 1,
        "fab-t": 1,
    }  # fmt: skip
    assert plus["fab"].num_targets is None
    named = attacks.AutoAttack(0.1, version=["square", attacks.DDN(5)])
    assert named.attack_names == ["square", "DDN"]


@pytest.mark.parametrize(
    ("outputs", "used"),
    [
        (1, ["apgd-ce", "fab-t", "square"]),
        (2, ["apgd-ce", "fab-t", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ],
)
def test_few_classes_have_the_attacks_that_there_are(outputs, used):
    attack = attacks.AutoAttack(0.1)
    by_attack = {one: name for name, one in attack._named("standard").items()}
    classes = max(outputs, 2)
    assert [by_attack[one] for _, one in attack._used_on(classes)] == used


def test_a_binary_model():
    model, _, _, x = affine(1)
    attack = attacks.AutoAttack(0.4, version=["apgd-ce", "apgd-t", "fab-t"])
    found = attack.run(model, x)
    exact = attacks.APGD(0.4).run(model, x)
    np.testing.assert_array_equal(found.fooled, exact.fooled)
    assert 0 < np.sum(found.fooled) < len(x)


def test_an_attack_without_a_radius_counts_up_to_eps():
    model, _, _, x = affine(3)
    shortest = attacks.DDN(steps=50)
    size = lengths(shortest.perturb(model, x), 2)
    eps = np.median(size)
    found = attacks.AutoAttack(eps, 2, version=[shortest]).run(model, x)
    np.testing.assert_array_equal(found.fooled, size <= eps)


def test_config_round_trip():
    for version in ("plus", ["square"], few_steps(bounds=(0, 1))):
        attack = attacks.AutoAttack(0.1, 2, version, bounds=(0, 1), seed=4)
        config = json.loads(
            json.dumps(keras.saving.serialize_keras_object(attack))
        )
        again = keras.saving.deserialize_keras_object(config)
        assert again == attack
        assert again._attacks == attack._attacks
        assert hash(again) == hash(attack)
    assert attack != attacks.AutoAttack(0.1, 2, bounds=(0, 1), seed=4)


# Warnings


def steps_network():
    """Logits in steps: without a gradient nearly everywhere."""

    class Steps(keras.layers.Layer):
        def call(self, inputs):
            return tf.round(inputs) + 0.0 * inputs

    model = keras.Sequential(
        [keras.Input((6,)), Steps(), keras.layers.Dense(2, use_bias=False)]
    )
    model.set_weights([np.stack([np.ones(6), -np.ones(6)], axis=1)])
    return model, np.full((4, 6), 0.6, "float32")


def test_square_finding_more_is_a_sign_of_masked_gradients():
    model, x = steps_network()
    attack = attacks.AutoAttack(
        1.3,
        version=[attacks.APGD(1.3, steps=2), attacks.Square(1.3, queries=300)],
    )
    with pytest.warns(UserWarning, match=r"^AutoAttack: ") as caught:
        found = attack.run(model, x)
    np.testing.assert_array_equal(found.found_by, 1)
    told = [str(warning.message) for warning in caught]
    assert any("gradient is zero at 4 of 4 inputs" in text for text in told)
    assert any("Square, which uses no gradient, fooled 100" in t for t in told)


def test_randomness_is_told():
    inputs = keras.Input((6,))

    class Noisy(keras.layers.Layer):
        def call(self, inputs):
            return inputs + tf.random.normal(tf.shape(inputs))

    model = keras.Model(inputs, keras.layers.Dense(3)(Noisy()(inputs)))
    attack = attacks.AutoAttack(0.1, version=[attacks.APGD(0.1, steps=1)])
    x = np.random.default_rng(0).normal(size=(4, 6))
    with pytest.warns(UserWarning, match="logits differ from one call"):
        attack.run(model, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps: expected.*> 0; received 0"),
        ({"eps": 1, "norm": 1}, "norm: expected 2 or inf; received 1"),
        ({"eps": 1, "version": "rand"}, "version: .*standard, plus.*'rand'"),
        ({"eps": 1, "version": ["pgd"]}, "version: .*apgd-ce.*'pgd'"),
        ({"eps": 1, "version": []}, "version: .*at least one.*none"),
        ({"eps": 1, "seed": -1}, "seed: .*at least 0; received -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        attacks.AutoAttack(**arguments)


def test_all_versions_have_names():
    for names in autoattack.VERSIONS.values():
        assert set(names) <= set(attacks.AutoAttack(1)._named("standard"))
