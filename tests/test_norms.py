import json
import math
import re

import numpy as np
import pytest
import tensorflow as tf

from dd_keras.utils import keras_internals, norms, validation

NORMS = (1, 1.5, 2, 3, math.inf)
# Relative error that each precision allows.
PRECISION = {"float32": 2e-6, "float64": 1e-12}
# Values whose squares overflow and vanish in float32.
SCALES = (1.0, 1e30, 1e-30)


def samples(scale=1.0):
    """Samples of shape (3, 2), one of them with a zero entry."""
    x = np.random.default_rng(0).normal(size=(4, 3, 2))
    x[1, 0, 0] = 0.0
    return x * scale


def numpy_norm(x, p):
    return np.linalg.norm(np.reshape(x, (len(x), -1)), ord=p, axis=1)


def numpy_gradient(x, p):
    """sign(x) (|x| / ||x||)^(p-1); all on the largest entry for p = inf."""
    size = np.abs(x).reshape(len(x), -1)
    if p == math.inf:
        slope = (size == size.max(axis=1, keepdims=True)).astype(float)
    else:
        slope = (size / numpy_norm(x, p)[:, None]) ** (p - 1)
    return np.sign(x) * slope.reshape(x.shape)


def norm_and_gradient(x, p, dtype="float64"):
    x = tf.constant(x, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        norm = norms.sample_norm(x, p)
    return norm.numpy(), tape.gradient(norm, x).numpy()


def hessian(x, p):
    """Second derivatives of the norm of one sample, (D, D)."""
    x = tf.constant(x[None], "float64")
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            norm = norms.sample_norm(x, p)
        gradient = inner.gradient(norm, x)
    return outer.jacobian(gradient, x, unconnected_gradients="zero").numpy()[
        0, :, 0, :
    ]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", PRECISION)
def test_norm_is_numpys(dtype, scale, p):
    x = samples(scale)
    norm, _ = norm_and_gradient(x, p, dtype)
    assert norm.dtype == dtype
    assert norm.shape == (4,)
    np.testing.assert_allclose(norm, numpy_norm(x, p), PRECISION[dtype])


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", PRECISION)
def test_gradient_of_the_norm_is_the_closed_form(dtype, scale, p):
    x = samples(scale)
    _, gradient = norm_and_gradient(x, p, dtype)
    np.testing.assert_allclose(
        gradient, numpy_gradient(x, p), 10 * PRECISION[dtype], 1e-12
    )


@pytest.mark.parametrize("p", NORMS)
def test_gradient_of_the_norm_is_the_finite_difference(p):
    x = np.random.default_rng(1).normal(size=(2, 5))
    _, gradient = norm_and_gradient(x, p)
    step = 1e-6
    for i in range(x.shape[1]):
        move = step * np.eye(x.shape[1])[i]
        up, _ = norm_and_gradient(x + move, p)
        down, _ = norm_and_gradient(x - move, p)
        np.testing.assert_allclose(
            gradient[:, i], (up - down) / (2 * step), atol=1e-8
        )


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", PRECISION)
def test_zero_sample_has_norm_zero_and_gradient_exactly_zero(dtype, p):
    x = samples()
    x[2] = 0.0
    norm, gradient = norm_and_gradient(x, p, dtype)
    assert norm[2] == 0.0
    np.testing.assert_array_equal(gradient[2], 0.0)
    np.testing.assert_allclose(
        np.delete(gradient, 2, 0),
        numpy_gradient(np.delete(x, 2, 0), p),
        10 * PRECISION[dtype],
        1e-12,
    )


def test_second_derivative_of_the_euclidean_norm_is_the_closed_form():
    x = np.array([3.0, -4.0, 12.0])  # norm 13
    unit = x / 13
    expected = (np.eye(3) - np.outer(unit, unit)) / 13
    np.testing.assert_allclose(hessian(x, 2), expected, atol=1e-12)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    "x", [[0.0, 0.0, 0.0], [0.0, -2.0, 1.0], [0.0, 0.0, 5.0]]
)
def test_second_derivative_is_finite_at_zeros(x, p):
    assert np.isfinite(hessian(np.array(x), p)).all()


@pytest.mark.parametrize("p", NORMS)
def test_second_derivative_is_the_finite_difference(p):
    x = np.array([0.3, -1.1, 0.7])
    step = 1e-6
    for i in range(3):
        move = step * np.eye(3)[i]
        _, up = norm_and_gradient((x + move)[None], p)
        _, down = norm_and_gradient((x - move)[None], p)
        np.testing.assert_allclose(
            hessian(x, p)[i], (up - down)[0] / (2 * step), atol=1e-7
        )


@pytest.mark.parametrize("p", NORMS)
def test_norm_of_a_sample_with_nan_is_nan(p):
    norm, _ = norm_and_gradient([[math.nan, 1.0], [3.0, 0.0]], p)
    np.testing.assert_allclose(norm, [math.nan, 3.0])


@pytest.mark.parametrize("p", NORMS)
def test_norm_takes_empty_batches_scalars_and_unknown_batch_sizes(p):
    assert norms.sample_norm(tf.zeros((0, 3, 2)), p).shape == (0,)
    scalars = norms.sample_norm(tf.constant([-2.0, 0.0, 3.0]), p)
    np.testing.assert_allclose(scalars, [2.0, 0.0, 3.0])
    norm = tf.function(
        lambda x: norms.sample_norm(x, p),
        input_signature=[tf.TensorSpec((None, 3, 2), tf.float64)],
    )
    np.testing.assert_allclose(norm(samples()), numpy_norm(samples(), p))


def test_norm_is_euclidean_by_default():
    assert float(norms.sample_norm(tf.constant([[3.0, 4.0]]))[0]) == 5.0
    ratio = norms.rho(tf.constant([[3.0, 4.0]]), tf.constant([[0.0, 2.0]]))
    assert float(ratio[0]) == 2.5


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", SCALES)
def test_rho_is_the_ratio_of_norms(scale, p):
    perturbation, x = samples(scale), np.flip(samples(scale), 0) + scale
    ratio = norms.rho(
        tf.constant(perturbation, "float32"), tf.constant(x, "float32"), p
    )
    expected = numpy_norm(perturbation, p) / numpy_norm(x, p)
    np.testing.assert_allclose(ratio, expected, 1e-5)


def test_gradient_of_rho_is_the_closed_form():
    perturbation = tf.constant([[3.0, 4.0]])
    x = tf.constant([[0.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch([perturbation, x])
        ratio = norms.rho(perturbation, x)
    by_perturbation, by_x = tape.gradient(ratio, [perturbation, x])
    # d(||r|| / ||x||) = r / (||r|| ||x||) dr - ||r|| x / ||x||^3 dx
    np.testing.assert_allclose(by_perturbation, [[0.3, 0.4]], 1e-6)
    np.testing.assert_allclose(by_x, [[0.0, -1.25]], 1e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("perturbation", "x"),
    [([1.0, -2.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 2.0]), ([0.0] * 2,) * 2],
    ids=["zero image", "zero perturbation", "both zero"],
)
def test_rho_of_zeros_is_zero_with_zero_gradient(perturbation, x, p):
    perturbation, x = tf.constant([perturbation]), tf.constant([x])
    with tf.GradientTape() as tape:
        tape.watch([perturbation, x])
        ratio = norms.rho(perturbation, x, p)
    assert float(ratio[0]) == 0.0
    for gradient in tape.gradient(ratio, [perturbation, x]):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
    ("p", "q"),
    [(1, math.inf), (1.5, 3.0), (2, 2.0), (3, 1.5), (math.inf, 1.0)],
)
def test_dual_norm(p, q):
    assert norms.dual_norm(p) == pytest.approx(q)
    assert norms.dual_norm(float(p)) == pytest.approx(q)


@pytest.mark.parametrize("norm", NORMS)
def test_valid_orders_become_floats(norm):
    order = validation.validate_norm(norm)
    assert order == norm
    assert type(order) is float


@pytest.mark.parametrize(
    "norm", [0.5, 0, -1, -math.inf, math.nan, True, "2", None, [2]]
)
def test_invalid_orders_are_named(norm):
    message = (
        "norm: expected a number in [1, inf], the order p of an l_p norm; "
        f"received {norm!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        validation.validate_norm(norm)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (None, None),
        ((0, 255), (0.0, 255.0)),
        ([-1.5, np.float32(2)], (-1.5, 2.0)),
        (np.array([0, 1]), (0.0, 1.0)),
        (([0, 1], [2, 3]), ([0.0, 1.0], [2.0, 3.0])),
        (np.array([[[0]], [[1]]]), ([[0.0]], [[1.0]])),
        ((0, [1, 2]), (0.0, [1.0, 2.0])),
        (([[0], [1]], 2), ([[0.0], [1.0]], 2.0)),
    ],
    ids=repr,
)
def test_valid_bounds_become_plain_numbers(bounds, expected):
    found = validation.validate_bounds(bounds)
    assert found == expected
    assert json.loads(json.dumps(found)) == (found and list(found))
    if found is not None:
        assert type(found) is tuple
        assert type(np.ravel(found[0]).tolist()[0]) is float
        assert validation.validate_bounds(found) == found


@pytest.mark.parametrize(
    "bounds",
    [
        1, (), (0,), (0, 1, 2), (1, 0), (0, 0), (0, math.inf), (math.nan, 1),
        (None, 1), "ab", ("low", "high"), (0, 1j), {}, True,
        ([0, 0], [1, 2, 3]), (1, [1, 2]), ([0, 1], [1, 1]),
        ([0, math.nan], [1, 2]),
    ],
    ids=repr,
)  # fmt: skip
def test_invalid_bounds_are_named(bounds):
    message = (
        "bounds: expected a pair (low, high) of finite numbers or arrays "
        "that broadcast, low below high everywhere, or None; received "
        f"{bounds!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        validation.validate_bounds(bounds)


def test_invalid_arrays_are_named_in_short():
    low = np.zeros((50, 50))
    with pytest.raises(ValueError, match="bounds: expected") as error:
        validation.validate_bounds((low, low))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("bounds", "value"),
    [
        ({"at_least": 0}, 0), ({"at_least": 0}, 1e30), ({"above": 0}, 1e-30),
        ({"at_least": 0, "at_most": 1}, 0), ({"at_least": 0, "at_most": 1}, 1),
        ({"above": 0, "at_most": 1}, np.float32(0.5)),
        ({"above": 0, "at_most": 1}, np.int64(1)),
        ({"at_least": -2, "at_most": -2}, -2),
    ],
)  # fmt: skip
def test_valid_numbers_become_floats(bounds, value):
    number = validation.validate_number("share", value, **bounds)
    assert number == value
    assert type(number) is float


@pytest.mark.parametrize(
    ("bounds", "expected", "value"),
    [
        ({"at_least": 0}, ">= 0", -1e-9),
        ({"above": 0}, "> 0", 0),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", 1.0001),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", -0.5),
        ({"above": 0, "at_most": 0.5}, "> 0 and <= 0.5", 0.0),
        ({"above": 0, "at_most": 0.5}, "> 0 and <= 0.5", 1),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", math.nan),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", math.inf),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", True),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", "1"),
        ({"at_least": 0, "at_most": 1}, ">= 0 and <= 1", None),
    ],
)
def test_numbers_out_of_bounds_are_named(bounds, expected, value):
    message = f"share: expected a finite number {expected}; received {value!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        validation.validate_number("share", value, **bounds)


def test_values_gain_axes_to_match_the_samples():
    values = tf.constant([1.0, 2.0])
    expanded = norms.expand_like(values, tf.zeros((2, 3, 4, 5)))
    assert expanded.shape == (2, 1, 1, 1)
    assert norms.expand_like(values, tf.zeros(2)).shape == (2,)
    np.testing.assert_array_equal(tf.reshape(expanded, [-1]), values)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_tracing_for_xla_is_told_from_other_tracing(jit_compile):
    answers = []

    @tf.function(jit_compile=jit_compile)
    def traced(x):
        answers.append(keras_internals.compiled_by_xla())

        def body(i):
            answers.append(keras_internals.compiled_by_xla())
            return i + 1

        tf.while_loop(lambda i: i < 2, body, [tf.constant(0)])
        return x

    traced(tf.constant(1.0))
    assert set(answers) == {jit_compile}
    assert len(answers) >= 2
    assert not keras_internals.compiled_by_xla()
