"""Steps onto hyperplanes within a box, against scipy's generic solvers."""

import math

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_keras.attacks import box

ORDERS = (1, 1.5, 2, 3, math.inf)


def step(amount, w, down, up, p, dtype=np.float64):
    """Of one sample."""
    arrays = (np.asarray(a, dtype)[None] for a in (amount, w, down, up))
    found = box.step_to_hyperplane(*map(tf.constant, arrays), p)
    return found.numpy()[0]


def by_scipy(amount, w, down, up, p):
    """The length of the shortest step, by a solver that knows no structure."""
    dim = len(w)
    if p in (1, math.inf):  # a linear program, in (step, slack)
        slacks = dim if p == 1 else 1
        spread = np.eye(dim) if p == 1 else np.ones((dim, 1))
        above = np.block([[np.eye(dim), -spread], [-np.eye(dim), -spread]])
        solved = scipy.optimize.linprog(
            np.r_[np.zeros(dim), np.ones(slacks)],
            A_ub=above,
            b_ub=np.zeros(2 * dim),
            A_eq=np.r_[w, np.zeros(slacks)][None],
            b_eq=[amount],
            bounds=[*zip(-down, up, strict=True), *[(0, None)] * slacks],
        )
        return solved.fun
    solved = scipy.optimize.minimize(
        lambda d: np.sum(np.abs(d) ** p),
        np.zeros(dim) + 1e-3,
        bounds=list(zip(-down, up, strict=True)),
        constraints={"type": "eq", "fun": lambda d: w @ d - amount},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return solved.fun ** (1 / p)


def random_case(seed, dim, share):
    """A hyperplane, and a box that reaches a share of the way beyond it."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=dim)
    down, up = rng.uniform(0, 2, (2, dim))
    # Some entries are at their ends already.
    down[rng.random(dim) < 0.2] = 0
    up[rng.random(dim) < 0.2] = 0
    sign = rng.choice([-1, 1])
    reach = np.sum(np.abs(w) * np.where(sign * w > 0, up, down))
    return sign * share * reach, w, down, up


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.integers(2, 8),
    share=st.floats(0.01, 0.95),
    p=st.sampled_from(ORDERS),
)
def test_the_shortest_step_is_scipys(seed, dim, share, p):
    amount, w, down, up = random_case(seed, dim, share)
    found = step(amount, w, down, up, p)
    assert np.all(found >= -down)
    assert np.all(found <= up)
    np.testing.assert_allclose(w @ found, amount, rtol=1e-9, atol=1e-12)
    length = np.linalg.norm(found, ord=p)
    expected = by_scipy(amount, w, down, up, p)
    np.testing.assert_allclose(length, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("p", ORDERS)
def test_without_a_box_it_is_the_distance_to_the_hyperplane(p):
    rng = np.random.default_rng(0)
    w, amount = rng.normal(size=5), -2.0
    everywhere = np.full(5, np.inf)
    found = step(amount, w, everywhere, everywhere, p)
    q = {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)
    distance = abs(amount) / np.linalg.norm(w, ord=q)
    np.testing.assert_allclose(w @ found, amount)
    np.testing.assert_allclose(np.linalg.norm(found, ord=p), distance)


@pytest.mark.parametrize("p", ORDERS)
def test_beyond_reach_it_goes_as_far_as_the_box(p):
    _, w, down, up = random_case(1, 6, 1.0)
    found = step(100.0, w, down, up, p)
    np.testing.assert_allclose(found, np.where(w > 0, up, -down))


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_there_is_no_step_along_a_zero_normal_or_of_no_length(p, dtype):
    ends = np.full(3, np.inf)
    zero = step(1.0, np.zeros(3), ends, ends, p, dtype)
    np.testing.assert_array_equal(zero, 0.0)
    there = step(0.0, np.ones(3), ends, ends, p, dtype)
    np.testing.assert_array_equal(there, 0.0)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_normals_of_any_size_in_float32(p, scale):
    amount, w, down, up = random_case(2, 6, 0.7)
    found = step(scale * amount, scale * w, down, up, p, np.float32)
    np.testing.assert_allclose(found, step(amount, w, down, up, p), rtol=1e-4)


@pytest.mark.parametrize("p", ORDERS)
def test_a_batch_is_each_of_its_samples(p):
    cases = [random_case(seed, 7, 0.1 * seed + 0.05) for seed in range(8)]
    together = box.step_to_hyperplane(
        *(tf.constant(np.stack(column)) for column in zip(*cases, strict=True)),
        p,
    )
    alone = [step(*case, p) for case in cases]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
