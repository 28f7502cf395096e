"""Properties that hold for all values, of any size, at any edge.

Tracing TensorFlow's graphs costs seconds, so what shapes them (classes, norm,
shape, dtype) is a parameter of each test, and Hypothesis draws the values.
DD_KERAS_EXAMPLES_SCALE=5 draws five times as many.
"""

import functools
import math
import os
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dd_keras import attacks, defenses, evaluation
from dd_keras.classifier import logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.defenses import split_penalty
from dd_keras.evaluation import metrics, statistics
from dd_keras.utils import norms, validation

NORMS = (1, 1.5, 2, 3, math.inf)
CLASSES = (2, 3, 10, 17, 40)
SHAPES = ((1,), (5,), (2, 3), (2, 3, 2))  # of samples
DTYPES = ("float16", "float32", "float64")
# So large that a sum of a few still is finite: rho of two infinite lengths is
# NaN.
LARGEST = {"float16": 1e3, "float32": 1e30, "float64": 1e300}
INTEGERS = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
NO_NUMBERS = (math.nan, math.inf, -math.inf)
OVERSHOOT = 0.02
CLEAR_ERRORS = (ValueError, TypeError, tf.errors.InvalidArgumentError)

every = pytest.mark.parametrize


def examples(number):
    """Settings for `number` examples, the same ones in every run."""
    scale = int(os.environ.get("DD_KERAS_EXAMPLES_SCALE", "1"))
    return settings(
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=number * scale,
        # The first example of each test traces a graph.
        suppress_health_check=[HealthCheck.too_slow],
    )


# Values


def extremes(dtype, largest=None, low=None, high=None):
    """Arrays' elements: ordinary ones, the edges of the dtype, and ties."""
    info = np.finfo(dtype)
    largest = largest or LARGEST[dtype]
    low = -largest if low is None else low
    high = largest if high is None else high
    edges = [0.0, -0.0, 1.0, 1e-30, float(info.tiny), low, high]
    edges += [float(info.smallest_subnormal), float(info.eps), 1e30, largest]
    edges = [e for edge in edges for e in (edge, -edge)]
    return st.one_of(
        st.sampled_from([e for e in edges if low <= e <= high]),
        st.floats(max(low, -4), min(high, 4)),
        st.floats(low, high),
    )


def arrays(dtype, shape, elements):
    """Arrays of a dtype; elements that it cannot hold are rounded."""
    found = hnp.arrays("float64", shape, elements=elements)
    return found.map(lambda values: values.astype(dtype))


@st.composite
def batches(draw, dtypes=DTYPES, number=1):
    """Some floating arrays of one shape (B, ...) and one dtype."""
    dtype = draw(st.sampled_from(dtypes))
    shape = (draw(st.integers(1, 4)), *draw(st.sampled_from(SHAPES)))
    return [draw(arrays(dtype, shape, extremes(dtype))) for _ in range(number)]


@st.composite
def ordinary(draw, dtype, *shapes):
    """Normal random arrays of some common size: no ties, no edges."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e3]))
    return [(scale * rng.normal(size=s)).astype(dtype) for s in shapes]


# Norms


def flat(x):
    """(B, D) in extended precision, in which nothing here overflows."""
    return np.reshape(x, (len(x), -1)).astype(np.longdouble)


def exact_norm(x, p):
    size = np.abs(flat(x))
    largest = size.max(axis=1)
    if p == math.inf:
        return largest
    share = size / np.where(largest == 0, 1, largest)[:, None]
    return largest * np.sum(share**p, axis=1) ** (np.longdouble(1) / p)


def sample_norm(x, p):
    found = norms.sample_norm(tf.constant(x), p)
    assert found.dtype.as_numpy_dtype == x.dtype
    return found.numpy().astype(np.longdouble)


def tolerances(x, factor=64):
    """Relative, and absolute: denormal numbers may count as zero."""
    info = np.finfo(x.dtype)
    return {
        "rtol": factor * float(info.eps),
        "atol": x[0].size * float(info.tiny),
    }


@every("p", NORMS)
@examples(12)
@given(batches())
def test_norms_are_what_extended_precision_says(p, drawn):
    (x,) = drawn
    np.testing.assert_allclose(
        sample_norm(x, p), exact_norm(x, p), **tolerances(x)
    )


@every("p", NORMS)
@examples(12)
@given(batches(number=2), st.sampled_from([-2.0, 0.5, 0.1, 0.0]))
def test_norms_are_homogeneous_and_keep_the_triangle(p, drawn, factor):
    x, y = (0.5 * values for values in drawn)
    tol = tolerances(x)
    length, other = sample_norm(x, p), sample_norm(y, p)
    factor = x.dtype.type(factor)
    np.testing.assert_allclose(
        sample_norm(factor * x, p), abs(factor) * length, **tol
    )
    total = length + other
    assert np.all(
        sample_norm(x + y, p) <= total * (1 + tol["rtol"]) + tol["atol"]
    )


@every("p", NORMS)
@examples(12)
@given(batches(number=2))
def test_norms_and_their_duals_keep_hoelder(p, drawn):
    x, w = drawn
    q = norms.dual_norm(p)
    assert norms.dual_norm(q) == pytest.approx(p)
    tol = tolerances(x)
    length, slope = sample_norm(x, p), sample_norm(w, q)
    product = np.abs(np.sum(flat(x) * flat(w), axis=1))
    flushed = tol["atol"] * (1 + length + slope)
    # Entries of denormal size may be lost from either factor.
    lost = tol["atol"] * np.sum(np.abs(flat(x)) + np.abs(flat(w)), axis=1)
    assert np.all(
        product <= length * slope * (1 + tol["rtol"]) + flushed + lost
    )


@every("p", NORMS)
@examples(12)
@given(batches(dtypes=("float32", "float64")))
def test_a_norms_gradient_has_dual_length_one(p, drawn):
    (x,) = drawn
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        length = norms.sample_norm(tensor, p)
    gradient = tape.gradient(length, tensor).numpy()
    assert np.all(np.isfinite(gradient))
    found = exact_norm(gradient, norms.dual_norm(p))
    zero = np.all(x == 0, axis=tuple(range(1, x.ndim)))
    np.testing.assert_array_equal(found[zero], 0)
    # Of smaller ones, entries may count as zero.
    normal = length.numpy() > 1e6 * np.finfo(x.dtype).tiny
    np.testing.assert_allclose(found[normal], 1, rtol=1e-4)


@every("p", NORMS)
@examples(12)
@given(batches(number=2), st.sampled_from([2.0, 0.5]))
def test_rho_is_a_ratio_of_any_scale(p, drawn, factor):
    perturbation, x = (0.5 * values for values in drawn)
    found = norms.rho(tf.constant(perturbation), tf.constant(x), p).numpy()
    assert not np.any(np.isnan(found))
    assert np.all(found >= 0)
    length = exact_norm(x, p)
    np.testing.assert_array_equal(found[length == 0], 0)
    info = np.finfo(x.dtype)
    # The quotient neither overflows nor vanishes, nor do its parts.
    ratio = exact_norm(perturbation, p) / np.where(length == 0, 1, length)
    sizes = np.stack([length, exact_norm(perturbation, p), ratio])
    fair = np.all((sizes > 1e3 * info.tiny) & (sizes < info.max / 2), axis=0)
    np.testing.assert_allclose(
        found[fair], ratio[fair], rtol=tolerances(x, 128)["rtol"]
    )
    factor = x.dtype.type(factor)
    scaled = norms.rho(
        tf.constant(factor * perturbation), tf.constant(factor * x), p
    )
    np.testing.assert_allclose(
        scaled.numpy()[fair], found[fair], rtol=tolerances(x)["rtol"]
    )


@every("p", NORMS)
@examples(5)
@given(batches())
def test_an_input_is_as_long_as_itself(p, drawn):
    (x,) = drawn
    found = norms.rho(tf.constant(x), tf.constant(x), p).numpy()
    length = exact_norm(x, p)
    normal = length > np.finfo(x.dtype).tiny * 1e3
    np.testing.assert_array_equal(found[normal], 1)
    assert np.all((found == 0) | (found == 1))


@examples(30)
@given(
    st.one_of(
        st.floats(),
        st.integers(),
        st.booleans(),
        st.none(),
        st.text(max_size=3),
    )
)
def test_a_norms_order_is_valid_or_a_clear_error(p):
    number = isinstance(p, (int, float)) and not isinstance(p, bool)
    if number and p >= 1:
        assert validation.validate_norm(p) == float(p)
    else:
        with pytest.raises(ValueError, match="norm: expected"):
            validation.validate_norm(p)


# The penalty

# In float32, c or d above 3e38 is infinite, and NaN times a rho of zero: left
# out until it is refused.
STEEPNESS = st.one_of(
    st.floats(1e-3, 1e3), st.sampled_from([1e-30, 1.0, 25.0, 1e30])
)
RHO = extremes("float32", low=0.0)


@examples(50)
@given(STEEPNESS, STEEPNESS, st.lists(RHO, min_size=2, max_size=6))
def test_the_penalty_is_finite_in_range_and_monotone(c, d, rho):
    penalty = split_penalty.SplitExponential(c, d, reduction=None)
    rho = tf.constant(sorted(rho), tf.float32)
    ceiling = math.exp(split_penalty.MAX_EXPONENT)
    for correct in (1.0, 0.0):
        with tf.GradientTape() as tape:
            tape.watch(rho)
            found = penalty(tf.fill(rho.shape, correct), rho)
        slope = tape.gradient(found, rho).numpy()
        found = found.numpy().astype(np.float64)
        assert np.all(np.isfinite(found))
        assert np.all(np.isfinite(slope))
        if correct:
            assert np.all((found >= 0) & (found <= 1))
            assert np.all(np.diff(found) <= 0)
            assert np.all(slope <= 0)
            exact = -c * rho.numpy().astype(np.float64)
        else:
            assert np.all((found >= 1) & (found <= ceiling * (1 + 1e-5)))
            assert np.all(np.diff(found) >= 0)
            assert np.all(slope >= 0)
            exact = d * rho.numpy().astype(np.float64)
        exact = np.exp(np.clip(exact, -200, split_penalty.MAX_EXPONENT))
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-37)


@examples(25)
@given(
    st.lists(st.tuples(st.booleans(), RHO), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_penalty_of_a_batch_is_the_mean_in_any_order(samples, random):
    penalty = split_penalty.SplitExponential()

    def value(pairs):
        correct, rho = zip(*pairs, strict=True)
        return float(penalty(tf.constant(correct), tf.constant(rho)))

    shuffled = random.sample(samples, len(samples))
    assert value(shuffled) == pytest.approx(value(samples), rel=1e-5)
    single = np.mean([value([pair]) for pair in samples])
    assert value(samples) == pytest.approx(single, rel=1e-5)


@examples(20)
@given(
    st.one_of(st.floats(), st.booleans(), st.none(), st.text(max_size=2)),
    st.sampled_from(["c", "d"]),
)
def test_a_steepness_is_valid_or_a_clear_error(value, name):
    valid = isinstance(value, float) and math.isfinite(value) and value > 0
    if valid:
        penalty = split_penalty.SplitExponential(**{name: value})
        assert penalty.get_config()[name] == value
    else:
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            split_penalty.SplitExponential(**{name: value})


# Labels


def label_forms(y, num_classes, dtype):
    """One set of labels, as users hand it in."""
    one_hot = np.eye(num_classes)[y]
    return [
        y.astype(dtype),
        y.astype(dtype)[:, None],
        y.astype("float32"),
        one_hot.astype(dtype),
        one_hot.astype(bool),
        # Smoothed, as label smoothing does.
        0.9 * one_hot + 0.1 / num_classes,
        (0.9 * one_hot + 0.1 / num_classes).astype("float32"),
    ]


@every("num_classes", CLASSES)
@examples(10)
@given(st.data(), st.sampled_from(INTEGERS))
def test_labels_of_all_forms_are_the_same_classes(num_classes, data, dtype):
    y = np.array(
        data.draw(st.lists(st.integers(0, num_classes - 1), max_size=6)), int
    )
    for form in label_forms(y, num_classes, dtype):
        found = sparse_labels(form, num_classes)
        assert found.dtype == tf.int32
        np.testing.assert_array_equal(found, y)
    if len(y):
        listed = sparse_labels(y.tolist(), num_classes)
        np.testing.assert_array_equal(listed, y)


@every("num_classes", CLASSES)
@examples(15)
@given(st.data(), st.sampled_from((*INTEGERS, *DTYPES)))
def test_labels_that_are_no_class_are_clear_errors(num_classes, data, dtype):
    y = np.array(
        data.draw(
            st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=4)
        ),
        dtype,
    )
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        bad = st.integers(num_classes, info.max)
        if info.max > 2**32:  # what is left of it in 32 bits is a class
            bad = st.one_of(st.just(2**32 + num_classes - 1), bad)
        if info.min < 0:
            bad = st.one_of(st.integers(info.min, -1), bad)
    else:
        bad = st.sampled_from(
            [-1.0, 0.5, -0.5, num_classes, num_classes - 0.5, 6e4, *NO_NUMBERS]
        )
    y[data.draw(st.integers(0, len(y) - 1))] = data.draw(bad)
    message = "y: expected (labels in|whole numbers)"
    for form in (y, y[:, None]):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            sparse_labels(form, num_classes)


@every("num_classes", CLASSES)
@examples(12)
@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
def test_labels_of_another_shape_are_clear_errors(num_classes, shape):
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, num_classes))
    if fits:
        labels = np.zeros(shape, int)
        if len(shape) == 2 and shape[1] == num_classes:
            labels[:, 0] = 1  # one-hot
        found = sparse_labels(labels, num_classes)
        assert found.shape == shape[:1]
    else:
        with pytest.raises(ValueError, match="y: expected labels of shape"):
            sparse_labels(np.zeros(shape, int), num_classes)


@examples(12)
@given(arrays("float64", (3, 1), extremes("float32")), st.sampled_from(DTYPES))
def test_one_logit_is_two_classes(z, dtype):
    with np.errstate(over="ignore"):  # to infinity, in float16
        z = z.astype(dtype)
    found = logits.class_logits(tf.constant(z))
    assert found.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_array_equal(found[:, 1], z[:, 0])


# DeepFool


@functools.lru_cache
def affine(shape, outputs, dtype):
    """f(x) = x W + b of samples of a shape."""
    size = math.prod(shape)
    if len(shape) == 1:
        zeros = np.zeros((size, outputs)), np.zeros(outputs)
        return affine_classifier(*zeros, dtype)
    return keras.Sequential(
        [
            keras.Input(shape, dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(outputs, dtype=dtype),
        ]
    )


class Boundaries:
    """Where an affine classifier's decisions end, in closed form."""

    def __init__(self, weights, biases, x, p):
        weights = weights.astype(np.float64)
        biases = biases.astype(np.float64)
        if weights.shape[1] == 1:  # f = (0, z)
            weights = np.pad(weights, [(0, 0), (1, 0)])
            biases = np.pad(biases, (1, 0))
        x = np.reshape(x, (len(x), -1)).astype(np.float64)
        f = x @ weights + biases
        self.source = f.argmax(axis=1)
        rows = np.arange(len(x))
        gap = f[rows, self.source][:, None] - f  # (B, n)
        w = weights[None] - weights.T[self.source][:, :, None]  # (B, D, n)
        slope = np.linalg.norm(w, norms.dual_norm(p), axis=1)  # (B, n)
        steep = slope > norms.ZERO_NORM
        distance = np.where(steep, gap / np.where(steep, slope, 1), np.inf)
        distance[rows, self.source] = np.inf
        self.target = distance.argmin(axis=1)
        self.distance = distance[rows, self.target]
        gap = gap[rows, self.target]
        # How large the terms are whose difference is the gap, where the
        # attack ends: their rounding must be small against it.
        reach = np.minimum(OVERSHOOT + self.distance, 1e300)
        terms = (np.abs(x) + reach[:, None]).sum(1) * np.abs(weights).max()
        terms += np.abs(biases).max()
        self.resolved = np.isfinite(self.distance) & (
            terms * np.finfo(np.float32).eps < 1e-3 * gap
        )
        others = distance.copy()
        others[rows, self.target] = np.inf
        self.one_nearest = others.min(axis=1) > 1.001 * self.distance


# Each number of classes that is treated differently, each norm and each rank.
DEEPFOOL = (
    (1, 2, (5,), "float64"),
    (2, 1, (5,), "float64"),
    (2, math.inf, (1,), "float32"),
    (3, 3, (2, 3), "float64"),
    (3, 2, (2, 3, 2), "float32"),
    (10, 1.5, (2, 3), "float64"),
    (18, 2, (5,), "float64"),  # so many that a loop takes their gradients
)
each_deepfool = every(("outputs", "p", "shape", "dtype"), DEEPFOOL)


@st.composite
def affine_values(draw, outputs, shape, dtype):
    """Weights, biases and inputs: ordinary, or with ties and zeros."""
    size, batch = math.prod(shape), draw(st.integers(1, 5))
    shapes = (size, outputs), (outputs,), (batch, *shape)
    if draw(st.booleans()):
        return draw(ordinary(dtype, *shapes))
    elements = st.integers(-8, 8).map(lambda i: i / 4)
    return [draw(arrays(dtype, s, elements)) for s in shapes]


@each_deepfool
@examples(10)
@given(st.data())
def test_deepfool_is_the_closed_form_on_affine_classifiers(
    outputs, p, shape, dtype, data
):
    weights, biases, x = data.draw(affine_values(outputs, shape, dtype))
    model = affine(shape, outputs, dtype)
    model.set_weights([weights, biases])
    exact = Boundaries(weights, biases, x, p)
    attack = attacks.DeepFool(p, overshoot=OVERSHOOT)
    found = attack.run(model, x)
    perturbation = found.perturbation.numpy()

    assert perturbation.shape == x.shape
    assert perturbation.dtype == dtype
    assert np.all(np.isfinite(perturbation))
    sure = exact.resolved
    length = exact_norm(perturbation, p).astype(np.float64)
    np.testing.assert_allclose(
        length[sure], (1 + OVERSHOOT) * exact.distance[sure], rtol=2e-3
    )
    np.testing.assert_array_equal(
        found.predictions.numpy()[sure], exact.source[sure]
    )
    # Where no boundary is anywhere, there is no step towards one.
    np.testing.assert_array_equal(length[np.isinf(exact.distance)], 0)
    decision = logits.class_logits(model(x + perturbation)).numpy().argmax(1)
    assert np.all(decision[sure] != exact.source[sure])
    assert np.all(found.fooled.numpy()[sure])
    only = sure & exact.one_nearest
    np.testing.assert_array_equal(decision[only], exact.target[only])


@each_deepfool
@examples(4)
@given(st.data())
def test_deepfool_treats_samples_one_by_one(outputs, p, shape, dtype, data):
    weights, biases, x = data.draw(affine_values(outputs, shape, dtype))
    model = affine(shape, outputs, dtype)
    model.set_weights([weights, biases])
    exact = Boundaries(weights, biases, x, p)
    sure = exact.resolved & exact.one_nearest
    attack = attacks.DeepFool(p, overshoot=OVERSHOOT)
    together = [part.numpy() for part in attack.run(model, x)]
    order = data.draw(st.permutations(range(len(x))))
    for other, one in (
        (attack.run(model, x[order]), [part[order] for part in together]),
        (attack.run(model, x, batch_size=1), together),
    ):
        kept = sure[order] if one is not together else sure
        for new, old in zip(other, one, strict=True):
            new, old = new.numpy()[kept], old[kept]
            size = np.abs(old).max(initial=0) if old.dtype.kind == "f" else 0
            np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5 * size)


@each_deepfool
@examples(4)
@given(st.data())
def test_deepfool_survives_extreme_values(outputs, p, shape, dtype, data):
    # Larger ones overflow in the classifier itself.
    weights = data.draw(
        arrays(dtype, (math.prod(shape), outputs), extremes(dtype, 1e4))
    )
    biases = data.draw(arrays(dtype, (outputs,), extremes(dtype, 1e30)))
    batch = data.draw(st.integers(0, 3))
    x = data.draw(arrays(dtype, (batch, *shape), extremes(dtype, 1e30)))
    model = affine(shape, outputs, dtype)
    model.set_weights([weights, biases])
    attack = attacks.DeepFool(p, overshoot=OVERSHOOT)
    classes = max(2, outputs)
    y = data.draw(
        st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)
    )
    for labels in (None, np.array(y, int)):
        found = attack.run(model, x, labels)
        perturbation = found.perturbation.numpy()
        assert perturbation.shape == x.shape
        assert not np.any(np.isnan(perturbation))
        rho = norms.rho(found.perturbation, tf.constant(x), p).numpy()
        assert not np.any(np.isnan(rho))
        assert np.all(rho >= 0)
        assert np.all(found.predictions.numpy() < classes)
        iterations = found.iterations.numpy()
        assert np.all((iterations >= 1) & (iterations <= attack.max_iter))


@examples(8)
@given(st.data(), st.sampled_from(["uint8", "int64", "float16", "float64"]))
def test_inputs_of_any_dtype_are_the_same_inputs(data, dtype):
    weights, biases, _ = data.draw(affine_values(3, (5,), "float32"))
    x = data.draw(hnp.arrays("uint8", (3, 5)))
    model = affine((5,), 3, "float32")
    model.set_weights([weights, biases])
    attack = attacks.DeepFool(max_iter=3)
    expected = attack.run(model, x.astype("float32"))
    for new, old in zip(
        attack.run(model, x.astype(dtype)), expected, strict=True
    ):
        np.testing.assert_array_equal(new, old)


@every("shape", [s for s in SHAPES if s != (5,)] + [(), (4,), (6,)])
@examples(3)
@given(st.integers(0, 3))
def test_inputs_of_another_shape_are_clear_errors(shape, batch):
    model = affine((5,), 3, "float32")
    with pytest.raises(ValueError, match="x: expected inputs of shape"):
        attacks.DeepFool(max_iter=3).run(model, np.zeros((batch, *shape)))


@examples(10)
@given(st.integers(0, 4), st.integers(0, 4))
def test_each_input_needs_one_label(inputs, labels):
    assume(inputs != labels)
    model = affine((5,), 3, "float32")
    with pytest.raises(ValueError, match="y: expected"):
        attacks.DeepFool(max_iter=3).run(
            model, np.zeros((inputs, 5)), np.zeros(labels, int)
        )


# Attacks of a given size


@functools.lru_cache
def network(shape, outputs, dtype):
    """A classifier with bends, whose weights are to be set."""
    return keras.Sequential(
        [
            keras.Input(shape, dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(4, activation="relu", dtype=dtype),
            keras.layers.Dense(outputs, dtype=dtype),
        ]
    )


def set_random_weights(model, seed, scale=1.0):
    """Normal random weights, all of one scale."""
    rng = np.random.default_rng(seed)
    model.set_weights([scale * rng.normal(size=w.shape) for w in model.weights])


SEEDS = st.integers(0, 2**32 - 1)
WEIGHT_SCALES = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4])

SIZED = (
    (attacks.FGSM(0.1), (5,), 3, "float32"),
    (attacks.FGSM(8, bounds=(0, 255), targeted=True), (2, 3), 10, "float32"),
    (attacks.FGSM(1e-30), (2, 3, 2), 1, "float64"),
    (attacks.BIM(0.1, steps=3, bounds=(-1, 1)), (5,), 2, "float64"),
    (attacks.BIM(1e30, steps=2), (2, 3), 17, "float32"),
    (attacks.PGD(0.3, steps=3, bounds=(0, 1), restarts=2), (2, 3), 40,
     "float32"),
    (attacks.PGD(0.5, 2, steps=3), (2, 3, 2), 3, "float64"),
    (attacks.PGD(1e-3, 2, steps=2, bounds=(-1, 1), targeted=True), (1,), 1,
     "float32"),
)  # fmt: skip


@every(("attack", "shape", "outputs", "dtype"), SIZED)
@examples(8)
@given(st.data(), SEEDS, WEIGHT_SCALES)
def test_attacks_keep_to_their_size_and_bounds(
    attack, shape, outputs, dtype, data, seed, scale
):
    model = network(shape, outputs, dtype)
    set_random_weights(model, seed, scale)
    # Beyond 1e15 two layers of 1e4 overflow.
    low, high = attack.bounds or (-1e15, 1e15)
    batch = data.draw(st.integers(0, 4))
    elements = extremes(dtype, low=float(low), high=float(high))
    x = data.draw(arrays(dtype, (batch, *shape), elements))
    if high == 255 and data.draw(st.booleans()):
        x = x.astype("uint8")
    y = np.array(
        data.draw(
            st.lists(
                st.integers(0, max(1, outputs - 1)),
                min_size=batch,
                max_size=batch,
            )
        ),
        int,
    )
    for labels in (y,) if attack.targeted else (None, y):
        found = attack.run(model, x, labels)
        perturbation = found.perturbation.numpy()
        assert perturbation.shape == x.shape
        assert np.all(np.isfinite(perturbation))
        eps = np.finfo(dtype).eps
        length = exact_norm(perturbation, attack.norm) if batch else 0
        assert np.all(length <= attack.eps * (1 + 16 * eps))
        if attack.bounds:
            ends = x.astype(dtype) + perturbation
            slack = 2 * eps * max(abs(low), abs(high))
            assert np.all((ends >= low - slack) & (ends <= high + slack))
        assert found.fooled.shape == found.predictions.shape == (batch,)
        again = attack.run(model, x, labels).perturbation
        np.testing.assert_array_equal(again, perturbation)


SETTLED = 4  # steps, within which rounding does not grow
STEPPING = (
    (attacks.DeepFool(2), (2, 3), 3),
    (attacks.DeepFool(1.5, overshoot=0.1), (5,), 1),
    (attacks.BIM(0.5, steps=4), (5,), 10),
)


@every(("attack", "shape", "outputs"), STEPPING)
@examples(4)
@given(st.data(), SEEDS)
def test_attacks_in_many_steps_treat_samples_one_by_one(
    attack, shape, outputs, data, seed
):
    # On a network with bends some samples stop before others.
    model = network(shape, outputs, "float64")
    set_random_weights(model, seed)
    x = np.random.default_rng(seed).normal(size=(6, *shape))
    together = [part.numpy() for part in attack.run(model, x)]
    order = data.draw(st.permutations(range(6)))
    shuffled = attack.run(model, x[order])
    single = attack.run(model, x, batch_size=1)
    # Who goes to and fro across a bend is at the mercy of rounding.
    settled = together[-1] <= SETTLED
    back = np.argsort(order)
    for new, one, old in zip(shuffled, single, together, strict=True):
        for other in (new.numpy()[back], one.numpy()):
            np.testing.assert_allclose(
                other[settled], old[settled], rtol=1e-6, atol=1e-9
            )


BOUNDED = [case for case in SIZED if case[0].bounds]


@every(("attack", "shape", "outputs", "dtype"), BOUNDED)
@examples(4)
@given(st.data())
def test_inputs_beyond_the_bounds_are_clear_errors(
    attack, shape, outputs, dtype, data
):
    low, high = attack.bounds
    x = np.full((2, math.prod(shape)), low, dtype)
    width = high - low
    x[1, data.draw(st.integers(0, x.shape[1] - 1))] = data.draw(
        st.sampled_from(
            [low - 0.01 * width, high + 0.01 * width, 1e30, *NO_NUMBERS]
        )
    )
    with pytest.raises(ValueError, match="x: expected inputs within"):
        attack.run(network(shape, outputs, dtype), x.reshape(2, *shape), [0, 1])


UNBOUNDED = [case for case in SIZED if not case[0].bounds]


@every(("attack", "shape", "outputs", "dtype"), UNBOUNDED)
@examples(3)
@given(st.data(), st.sampled_from(NO_NUMBERS))
def test_inputs_that_are_no_numbers_are_clear_errors(
    attack, shape, outputs, dtype, data, bad
):
    x = np.zeros((2, math.prod(shape)), dtype)
    x[1, data.draw(st.integers(0, x.shape[1] - 1))] = bad
    with pytest.raises(ValueError, match="x: expected finite inputs"):
        attack.run(network(shape, outputs, dtype), x.reshape(2, *shape), [0, 1])


@examples(30)
@given(st.one_of(st.floats(), st.booleans(), st.none(), st.text(max_size=2)))
def test_an_eps_is_valid_or_a_clear_error(eps):
    valid = isinstance(eps, float) and math.isfinite(eps) and eps > 0
    for make in (attacks.FGSM, attacks.BIM, attacks.PGD):
        if not valid:
            with pytest.raises(ValueError, match=r"^eps: expected"):
                make(eps)
        elif 1e-300 < eps < 1e300:  # beyond, the step size may be none
            assert make(eps).eps == eps


# Training


class Case:
    """A Deep Defense model, and the labels that it is trained on."""

    def __init__(self, shape, outputs, dtype, p, form, dropout=False):
        self.shape, self.outputs, self.dtype = shape, outputs, dtype
        self.p, self.form = p, form
        self.network = network(shape, outputs, dtype)
        if dropout:  # of nothing: training and inference look different
            self.network = keras.Sequential(
                [
                    keras.Input(shape, dtype=dtype),
                    keras.layers.Dropout(1e-9, dtype=dtype),
                    *network(shape, outputs, dtype).layers,
                ]
            )
        self.model = defenses.DeepDefenseModel(
            self.network, attack=attacks.DeepFool(p, max_iter=3)
        )
        loss = {
            "one_hot": "categorical_crossentropy",
            "binary": "binary_crossentropy",
            "binary_column": "binary_crossentropy",
        }.get(form, "sparse_categorical_crossentropy")
        self.model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)

    @property
    def classes(self):
        return max(2, self.outputs)

    def labels(self, y):
        y = np.array(y, "int64")
        if self.form == "one_hot":
            return np.eye(self.outputs, dtype="float32")[y]
        return y[:, None] if "column" in self.form else y

    def step(self, x, y):
        """The logs and the weights after one step from where it stands."""
        before = self.network.get_weights()
        self.model.reset_metrics()
        logs = self.model.train_on_batch(x, self.labels(y), return_dict=True)
        after = self.network.get_weights()
        self.network.set_weights(before)
        return {k: float(v) for k, v in logs.items()}, after


TRAINING = (
    ((5,), 3, "float32", 2, "sparse"),
    ((2, 3), 10, "float32", math.inf, "one_hot"),
    ((2, 3, 2), 1, "float32", 1, "binary"),
    ((5,), 2, "float64", 1.5, "column"),
    ((5,), 1, "float32", 2, "binary_column"),
    ((1,), 3, "float32", 3, "sparse", True),
)
case = functools.lru_cache(Case)
BATCH = 4


def drawn_labels(case):
    return st.lists(
        st.integers(0, case.classes - 1), min_size=BATCH, max_size=BATCH
    )


@every("arguments", TRAINING)
@examples(8)
@given(st.data(), SEEDS, st.sampled_from([0.0, 1e-3, 1.0, 1e2]))
def test_a_training_step_stays_finite(arguments, data, seed, scale):
    one = case(*arguments)
    set_random_weights(one.network, seed, scale)
    elements = extremes(one.dtype, 1e15)
    x = data.draw(arrays(one.dtype, (BATCH, *one.shape), elements))
    logs, weights = one.step(x, data.draw(drawn_labels(one)))
    assert math.isfinite(logs["loss"])
    assert all(np.all(np.isfinite(w)) for w in weights)
    assert logs["loss"] >= 0
    assert 0 <= logs["regularization"] <= math.exp(30) * 1.001
    (rho,) = (v for k, v in logs.items() if k.startswith("rho"))
    assert rho >= 0
    # Relative to an input of, say, 1e-38 a perturbation is infinite.
    length = exact_norm(x, one.p)
    if np.all((length == 0) | (length > norms.ZERO_NORM)):
        assert math.isfinite(rho)


@every("arguments", TRAINING)
@examples(4)
@given(st.data(), SEEDS)
def test_a_training_step_is_blind_to_the_order(arguments, data, seed):
    one = case(*arguments)
    set_random_weights(one.network, seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, *one.shape)).astype(one.dtype)
    y = np.array(data.draw(drawn_labels(one)))
    order = data.draw(st.permutations(range(BATCH)))
    logs, weights = one.step(x, y)
    other_logs, other_weights = one.step(x[order], y[order])
    assert other_logs == pytest.approx(logs, rel=1e-4, abs=1e-6)
    for new, old in zip(other_weights, weights, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


@every("arguments", [TRAINING[0], TRAINING[-1]])
@examples(4)
@given(st.data(), SEEDS)
def test_training_inputs_of_integers_are_the_same_inputs(arguments, data, seed):
    one = case(*arguments)
    set_random_weights(one.network, seed, 0.1)
    x = data.draw(hnp.arrays("uint8", (BATCH, *one.shape)))
    y = data.draw(drawn_labels(one))
    logs, weights = one.step(x, y)
    expected, others = one.step(x.astype(one.dtype), y)
    assert logs == pytest.approx(expected, rel=1e-5)
    for new, old in zip(weights, others, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


@every("arguments", [each for each in TRAINING if "one_hot" not in each])
@examples(3)
@given(st.data())
def test_training_labels_that_are_no_class_are_clear_errors(arguments, data):
    one = case(*arguments)
    y = data.draw(drawn_labels(one))
    bad = st.sampled_from([-1, one.classes, 2**31 - 1])
    y[data.draw(st.integers(0, BATCH - 1))] = data.draw(bad)
    x = np.zeros((BATCH, *one.shape), one.dtype)
    with pytest.raises(CLEAR_ERRORS, match="y: expected labels in"):
        one.step(x, y)


# Evaluation

BOUNDS = (0.0, 1.0)
EPS = (0.05, 0.3)
EVALUATED = ((5,), 3, "float32"), ((2, 3, 2), 1, "float64")


def evaluate(model, x, y, size, policy="predicted"):
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(size)
    chosen = (
        "accuracy",
        "rho2",
        attacks.DeepFool(math.inf, max_iter=5),
        evaluation.metrics.SmallestEps(
            attacks.MinimalFGSM(steps=4, tolerance=1e-2, bounds=BOUNDS)
        ),
        metrics.EpsSweep(EPS, BOUNDS),
        attacks.PGD(0.1, steps=2, bounds=BOUNDS),
    )
    with warnings.catch_warnings():  # of dead units and the like, in place
        warnings.simplefilter("ignore")
        return evaluation.evaluate_robustness(
            model,
            data,
            metrics=chosen,
            bounds=BOUNDS,
            misclassified=policy,
            verbose=0,
        )


@every(("shape", "outputs", "dtype"), EVALUATED)
@examples(5)
@given(
    st.data(),
    SEEDS,
    WEIGHT_SCALES,
    st.sampled_from(metrics.POLICIES),
)
def test_evaluations_lie_in_their_ranges(
    shape, outputs, dtype, data, seed, scale, policy
):
    model = network(shape, outputs, dtype)
    set_random_weights(model, seed, scale)
    number = data.draw(st.integers(1, 6))
    elements = extremes(dtype, low=0.0, high=1.0)
    x = data.draw(arrays(dtype, (number, *shape), elements))
    classes = st.integers(0, max(1, outputs - 1))
    y = np.array(data.draw(st.lists(classes, min_size=number, max_size=number)))
    report = evaluate(model, x, y, data.draw(st.integers(1, 6)), policy)
    found = report.summary()
    decided = logits.class_logits(model(x)).numpy().argmax(axis=1)
    right = np.mean(report.predictions == y)
    # Relative to these a perturbation may be infinite, see above.
    length = exact_norm(x, math.inf)
    tiny = np.any((length > 0) & (length <= norms.ZERO_NORM))
    assert found.pop("samples") == number == len(report)
    assert found["accuracy"] == pytest.approx(right)
    if scale in (1e-3, 1.0):
        np.testing.assert_array_equal(report.predictions, decided)
    for name, (low, high) in report.intervals().items():
        value = found[name]
        if value is None:  # none counts, or none is ever fooled
            infinite = "rho" in name and tiny
            assert policy == "exclude" or name == "eps_ref" or infinite
            continue
        assert math.isfinite(value)
        assert value >= 0
        assert low is None or low <= value + 1e-9
        assert high is None or value <= high + 1e-9
        if "accuracy" in name or name.endswith("fooled"):
            assert 0 <= value <= 1
            assert low >= 0
            assert high <= 1
        if name in ("fgsm_eps", "eps_ref"):
            assert value <= 1 + 1e-6
        if name.startswith(("fgs_", "pgd")) and policy != "exclude":
            assert value <= found["accuracy"] + 1e-9
    curve = report.success_rate()
    assert np.all((curve["success_rate"] >= 0) | np.isnan(curve["low"]))


@every(("shape", "outputs", "dtype"), EVALUATED)
@examples(3)
@given(st.data(), SEEDS)
def test_evaluations_are_blind_to_order_and_batches(
    shape, outputs, dtype, data, seed
):
    model = network(shape, outputs, dtype)
    set_random_weights(model, seed)
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(5, *shape)).astype(dtype)
    y = rng.integers(0, max(2, outputs), 5)
    order = data.draw(st.permutations(range(5)))
    report = evaluate(model, x, y, 5)
    for name in ("rho2", "rhoinf"):
        assume(np.all(report.values[f"{name}_iterations"] <= SETTLED))
    one = report.summary()
    other = evaluate(
        model, x[order], y[order], data.draw(st.integers(1, 4))
    ).summary()
    for name, value in one.items():
        if value is None:  # eps_ref where half of them withstand every eps
            assert other[name] is None
        else:
            near = pytest.approx(value, rel=1e-3, abs=1e-5)
            assert other[name] == near, name


@every(("shape", "outputs", "dtype"), EVALUATED)
@examples(3)
@given(
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1.0]),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_inputs_that_are_unfit_end_an_evaluation(
    shape, outputs, dtype, bad, place, size
):
    model = network(shape, outputs, dtype)
    set_random_weights(model, 0)
    x = np.full((5, *shape), 0.5, dtype)
    x[place].flat[0] = bad
    with pytest.raises(ValueError, match=r"expected (inputs|finite outputs)"):
        evaluate(model, x, np.zeros(5, int), size)


@every(("shape", "outputs", "dtype"), EVALUATED)
@examples(3)
@given(st.sampled_from(NO_NUMBERS), st.integers(0, 4), st.integers(1, 5))
def test_outputs_that_are_no_numbers_end_an_evaluation(
    shape, outputs, dtype, bad, place, size
):
    model = network(shape, outputs, dtype)  # its ReLU may make zeros of NaN
    set_random_weights(model, 0)
    x = np.full((5, *shape), 0.5, dtype)
    x[place] = bad
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(5, int)))
    message = f"expected finite outputs.* batch {place // size};"
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate_robustness(
            model, data.batch(size), metrics="accuracy", verbose=0
        )


@every(("shape", "outputs", "dtype"), EVALUATED)
@examples(3)
@given(st.sampled_from([-1, 100, 2**31 - 1]), st.integers(0, 4))
def test_labels_that_are_unfit_end_an_evaluation(
    shape, outputs, dtype, bad, place
):
    model = network(shape, outputs, dtype)
    y = np.zeros(5, int)
    y[place] = bad
    with pytest.raises(ValueError, match=r"data, batch .*y: expected"):
        evaluate(model, np.full((5, *shape), 0.5, dtype), y, 2)


@examples(30)
@given(st.lists(st.booleans(), max_size=12))
def test_shares_lie_in_their_intervals(values):
    found = statistics.proportion(np.array(values, bool))
    if not values:
        assert math.isnan(found.value)
        return
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12 <= 1 + 2e-12


@examples(30)
@given(
    st.lists(
        st.one_of(st.floats(0, 10), st.just(math.inf)), min_size=1, max_size=12
    )
)
def test_medians_are_values_that_half_do_not_exceed(values):
    found = statistics.median(values)
    if math.isnan(found.value):
        assert np.mean(np.isinf(values)) > 0.5
        return
    assert found.value in values
    assert np.mean(np.array(values) <= found.value) >= 0.5
    assert np.mean(np.array(values) < found.value) < 0.5
    assert not found.low > found.value
    assert not found.high < found.value
