import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras.attacks import Forward, RandomNoise, inference_form

SHAPE = (5, 4, 3)


@pytest.fixture(scope="module")
def model():
    """A linear classifier of images, in float32."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def x():
    return (
        np.random.default_rng(0).uniform(size=(40, *SHAPE)).astype(np.float32)
    )


def lengths(values, p):
    return np.linalg.norm(values.reshape(len(values), -1), ord=p, axis=1)


@pytest.mark.parametrize("eps", [1e-3, 0.3, 20.0])
@pytest.mark.parametrize("p", [2, np.inf])
def test_noise_has_the_length_exactly(model, x, p, eps):
    found = RandomNoise(eps, norm=p).run(model, x)
    noise = found.perturbation.numpy()
    np.testing.assert_allclose(lengths(noise, p), eps, rtol=1e-6)
    if p == np.inf:
        np.testing.assert_array_equal(np.abs(noise), np.float32(eps))
    np.testing.assert_array_equal(found.iterations, np.zeros(40))


def test_default_norm_is_infinity(model, x):
    assert RandomNoise(0.1) == RandomNoise(0.1, norm=np.inf, seed=0)
    assert RandomNoise(0.1) != RandomNoise(0.1, norm=2)


@pytest.mark.parametrize("p", [2, np.inf])
def test_bounds_cut_the_noise_where_it_leaves_them(model, x, p):
    low = np.zeros(SHAPE)
    high = np.linspace(1, 2, np.prod(SHAPE)).reshape(SHAPE)
    free = RandomNoise(0.5, norm=p).run(model, x).perturbation
    kept = RandomNoise(0.5, norm=p, bounds=(low, high)).run(model, x)
    inside = x + kept.perturbation.numpy()
    np.testing.assert_allclose(
        inside, np.clip(x + free.numpy(), low, high), atol=1e-6
    )
    assert inside.min() == 0
    assert np.any(inside != x + free.numpy())


@pytest.mark.parametrize("p", [2, np.inf])
def test_noise_goes_with_the_sample_not_with_its_place(model, x, p):
    attack = RandomNoise(0.1, norm=p)
    first = attack.run(model, x).perturbation.numpy()
    assert len(np.unique(first.reshape(len(x), -1), axis=0)) == len(x)
    same = functools.partial(
        np.testing.assert_allclose, rtol=0, atol=0 if p == np.inf else 1e-7
    )
    backwards = attack.run(model, x[::-1]).perturbation.numpy()
    same(first, backwards[::-1])
    for size in (1, 3):
        same(first, attack.run(model, x, batch_size=size).perturbation)
    twice = attack.run(model, np.concatenate([x, x])).perturbation.numpy()
    same(twice[: len(x)], twice[len(x) :])


def test_noise_is_the_same_for_each_eps(model, x):
    first = RandomNoise(0.1).run(model, x).perturbation.numpy()
    twice = RandomNoise(0.2).run(model, x).perturbation.numpy()
    np.testing.assert_allclose(twice, 2 * first, rtol=1e-6)


@pytest.mark.parametrize("p", [2, np.inf])
def test_seed_chooses_the_noise(model, x, p):
    def noise(**seed):
        return RandomNoise(1, norm=p, **seed).run(model, x).perturbation

    np.testing.assert_array_equal(noise(), noise(seed=0))
    np.testing.assert_array_equal(noise(seed=1), noise(seed=1))
    share = np.mean(np.sign(noise(seed=0)) == np.sign(noise(seed=1)))
    assert share == pytest.approx(0.5, abs=0.05)  # of 2,400 entries


@pytest.mark.parametrize("p", [2, np.inf])
def test_directions_have_no_preference(p):
    model = affine_classifier(np.zeros((4, 2)), np.zeros(2))
    found = RandomNoise(1, norm=p, seed=5).run(
        model, np.arange(80_000).reshape(-1, 4) / 1e5
    )
    noise = found.perturbation.numpy()
    # Both have a mean of zero and independent entries of one variance.
    variance = 1.0 if p == np.inf else 1 / 4
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(
        noise.T @ noise / len(noise), variance * np.eye(4), atol=0.03
    )
    if p == 2:  # E x^4 = 3 / (D (D + 2)) on the sphere
        np.testing.assert_allclose(np.mean(noise**4, axis=0), 3 / 24, rtol=0.05)
    samples = {tuple(row) for row in np.sign(noise)}
    assert len(samples) == 2**4  # each sample has its own


def test_fooled_is_what_the_perturbed_class_says(model, x):
    attack = RandomNoise(6, norm=2)
    clean = model(x).numpy().argmax(-1)
    noise = attack.perturb(model, x)
    noisy = model(x + noise).numpy().argmax(-1)
    found = attack.run(model, x)
    np.testing.assert_array_equal(found.predictions, clean)
    np.testing.assert_array_equal(found.fooled, noisy != clean)
    assert 0 < np.sum(noisy != clean) < len(x)
    # With labels: whether the label is left.
    y = (clean + np.arange(len(x)) % 2) % 3
    found = attack.run(model, x, y)
    np.testing.assert_array_equal(found.predictions, clean)
    np.testing.assert_array_equal(found.fooled, noisy != y)
    np.testing.assert_array_equal(attack(model, x), x + noise)


def test_forward_pass_at_hand_is_used(model, x):
    x = tf.constant(x)
    forward = Forward.of(inference_form(model), x)
    attack = RandomNoise(0.6)
    found = attack.search(model, x, forward=forward)
    for one, other in zip(found, attack.search(model, x), strict=True):
        np.testing.assert_array_equal(one, other)
    swapped = forward._replace(logits=-forward.logits)
    found = attack.search(model, x, forward=swapped)
    np.testing.assert_array_equal(
        found.predictions, np.argmin(forward.logits, axis=1)
    )


def test_noise_survives_serialisation():
    attack = RandomNoise(0.1, norm=2, bounds=(-1, 2), seed=7)
    config = keras.saving.serialize_keras_object(attack)
    assert config["registered_name"] == "dd_keras>RandomNoise"
    assert keras.saving.deserialize_keras_object(config) == attack
    assert attack.get_config() == {
        "eps": 0.1,
        "norm": 2.0,
        "bounds": (-1.0, 2.0),
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps: expected a finite number > 0; received 0."),
        ({"eps": -1.0}, "eps: expected a finite number > 0; received -1.0."),
        ({"eps": np.inf}, "eps: expected a finite number > 0; received inf."),
        ({"eps": "1"}, "eps: expected a finite number > 0; received '1'."),
        ({"norm": 1}, "norm: expected 2 or inf; received 1."),
        ({"norm": "inf"}, "norm: expected 2 or inf; received 'inf'."),
        ({"seed": -1}, "seed: expected an integer of at least 0; received -1."),
        (
            {"seed": 0.5},
            "seed: expected an integer of at least 0; received 0.5.",
        ),
        (
            {"bounds": (1, 1)},
            "bounds: expected a pair (low, high) of finite numbers or arrays "
            "that broadcast, low below high everywhere, or None; received "
            "(1, 1).",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomNoise(**{"eps": 0.1, **arguments})


def test_inputs_outside_of_the_bounds_are_refused(model, x):
    with pytest.raises(
        ValueError, match=r"^x: expected inputs within the bounds, 0 to 0\.5;"
    ):
        RandomNoise(0.1, bounds=(0, 0.5)).run(model, x)
