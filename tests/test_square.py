import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from attack_cases import assert_same, curved_network, lengths, two_classes

from dd_keras import attacks
from dd_keras.attacks import decisions, square_proposals, stateless_random


def margins(model, x, y):
    return decisions.margin(model(x), tf.constant(y, tf.int32)).numpy()


@pytest.mark.parametrize("bounds", [None, (-0.9, 0.9)], ids=["free", "box"])
def test_it_finds_what_a_brute_search_finds(bounds):
    """All corners of a small ball, around inputs that it does not fool."""
    model, x, _, _ = two_classes(ends=0.9)
    eps = 0.1
    found = attacks.Square(eps, queries=400, bounds=bounds).run(model, x)
    corners = eps * np.array(list(itertools.product([-1, 1], repeat=6)))
    low, high = bounds or (-np.inf, np.inf)
    left = np.flatnonzero(~found.fooled)
    assert len(left) > 3
    for i in left:
        around = np.clip(x[i] + corners, low, high)
        y = np.full(64, found.predictions[i])
        best = margins(model, around, y).min()
        there = x[i : i + 1] + found.perturbation[i : i + 1].numpy()
        assert margins(model, there, y[:1])[0] == pytest.approx(best)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_it_fools_as_soon_as_it_can_and_never_before(norm):
    model, x, z, uphill = two_classes()
    dual = {2: 2, math.inf: 1}[norm]
    needed = z / np.linalg.norm(uphill, ord=dual, axis=1)
    eps = np.median(needed)
    found = attacks.Square(eps, norm, queries=400).run(model, x)
    assert not np.any(found.fooled.numpy()[needed > eps])
    # In l_2 random windows only come close to the best direction.
    enough = needed < eps * {2: 0.8, math.inf: 1}[norm]
    assert enough.sum() > 1
    np.testing.assert_array_equal(found.fooled.numpy()[enough], True)
    size = lengths(found.perturbation, norm)
    np.testing.assert_allclose(size, eps)


@pytest.mark.parametrize("remembered", [True, False])
def test_questions_with_known_answers_need_not_be_asked(
    monkeypatch, remembered
):
    model, x = curved_network()
    attack = attacks.Square(0.1, queries=300)
    if not remembered:
        monkeypatch.setattr(square_proposals, "_MOST_REMEMBERED", 0)
    saving = tf.function(lambda: attack.run(model, x))()
    assert 0 < np.sum(saving.fooled) < len(x)
    monkeypatch.setattr(
        square_proposals.LinfProposals, "known", lambda *args: None
    )
    asking = tf.function(lambda: attack.run(model, x))()
    assert_same(saving, asking, 1e-12)


def test_most_proposals_of_small_windows_are_not_asked():
    """Only the network knows how often it was asked."""
    model, x = curved_network()
    asked = []

    @keras.saving.register_keras_serializable("test")
    class Counting(keras.layers.Layer):
        def call(self, inputs):
            passed = tf.numpy_function(self.count, [inputs], inputs.dtype)
            passed.set_shape(inputs.shape)
            return passed

        def count(self, values):
            asked.append(len(values))
            return values

        def compute_output_shape(self, shape):
            return shape

    counting = Counting(dtype="float64")
    inputs = keras.Input(x.shape[1:], dtype="float64")
    counted = keras.Model(inputs, model(counting(inputs)))
    found = attacks.Square(0.01, queries=300).run(counted, x)
    queries = np.sum(found.iterations)
    assert queries > 2000
    assert sum(asked) < 0.6 * queries


def test_starts_and_proposals_in_l_inf():
    proposals = square_proposals.LinfProposals(
        0.5, 0.8, 300, tf.TensorShape([None, 6, 6, 2])
    )
    x = np.random.default_rng(0).normal(size=(40, 6, 6, 2))
    key = stateless_random.keys(tf.constant(x), 0)
    infinite = np.full_like(x, np.inf)
    room = square_proposals.Room(tf.constant(-infinite), tf.constant(infinite))
    start = proposals.start(key, room).numpy()
    np.testing.assert_array_equal(np.abs(start), 0.5)
    np.testing.assert_array_equal(start, start[:, :1] + 0 * start)  # vertical
    assert 0.4 < np.mean(start > 0) < 0.6
    for i in (0, 20, 290):
        proposed, number = proposals.propose(i, key, room, 0 * start)
        changed = proposed.numpy() != 0
        side = {0: 5, 20: 4, 290: 2}[i]  # of 0.8, 0.4 and 0.1 of 36 pixels
        np.testing.assert_array_equal(changed.sum((1, 2)), side**2)
        np.testing.assert_array_equal(changed.any(2).sum(1), side)
        np.testing.assert_array_equal(changed.any(1).sum(1), side)
        assert np.all(number < proposals.remembered)
    corners = {tuple(np.argwhere(window)[0]) for window in changed[..., 0]}
    assert len(corners) > 15
    assert np.max(list(corners), axis=0).tolist() == [4, 4]  # the last ones


def test_starts_and_proposals_in_l_2():
    proposals = square_proposals.L2Proposals(
        2.0, 0.8, 300, tf.TensorShape([None, 9, 8, 2])
    )
    x = np.random.default_rng(0).normal(size=(40, 9, 8, 2))
    key = stateless_random.keys(tf.constant(x), 0)
    infinite = np.full_like(x, np.inf)
    room = square_proposals.Room(tf.constant(-infinite), tf.constant(infinite))
    start = proposals.start(key, room).numpy()
    np.testing.assert_allclose(lengths(start, 2), 2.0)
    start = tf.constant(start)
    proposed, number = proposals.propose(290, key, room, start)
    assert number is None
    np.testing.assert_allclose(lengths(proposed, 2), 2.0)
    changed = np.any(np.abs(proposed - start) > 1e-9, axis=3)
    # Two windows of 3 x 3, perhaps of the same places.
    assert np.all(changed.sum((1, 2)) <= 18)
    assert np.mean(changed.sum((1, 2)) > 9) > 0.5


def test_a_bump_is_two_heaps():
    bump = square_proposals._bump(5, 5)
    np.testing.assert_allclose(np.linalg.norm(bump), 1)
    assert np.all(bump[:2] > 0)
    assert np.all(bump[2:] < 0)
    np.testing.assert_allclose(bump[:, 0] / bump[:, 2], bump[:, 4] / bump[:, 2])
    heap = square_proposals._heap(3, 3)
    np.testing.assert_allclose(
        heap, [[0.25] * 3, [0.25, 1.25, 0.25], [0.25] * 3]
    )


def test_from_keys_is_uniform_and_independent():
    x = tf.constant(1e-3 * np.arange(3000.0)[:, None])
    keys = stateless_random.keys(x, 0)
    first, second = (
        stateless_random.from_keys(keys, stream, 3, tf.float64).numpy()
        for stream in (0, 1)
    )
    both = np.hstack([first, second])
    assert np.all((both > 0) & (both < 1))
    np.testing.assert_allclose(both.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(both.var(0), 1 / 12, atol=0.005)
    assert np.abs(np.corrcoef(both.T) - np.eye(6)).max() < 0.07


def test_bad_arguments_are_named():
    for arguments, message in (
        ({"eps": 0}, "eps: expected.*> 0; received 0"),
        ({"eps": 1, "norm": 1}, "norm: expected 2 or inf; received 1"),
        ({"eps": 1, "queries": 0}, "queries: .*at least 1; received 0"),
        ({"eps": 1, "initial_share": 2}, "initial_share: .*<= 1; received 2"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            attacks.Square(**arguments)
