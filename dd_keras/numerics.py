"""Per-sample norms with safe gradients, and small tensor helpers."""

import math
import numbers
import reprlib

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

# Norms below this are taken as zero: dividing by them overflows float32 once
# the quotient is squared, and no network trained in float32 resolves them.
ZERO_NORM = 1e-12


def validate_number(name, value, *, at_least=None, above=None, at_most=None):
    """Checks a finite number against its bounds.

    Args:
        name: of the argument, for the error.
        value: what was received.
        at_least: smallest value allowed, or
        above: a value that is just too small.
        at_most: largest value allowed; None for any.

    Returns:
        `value` as a float.

    Raises:
        ValueError: if it is not a finite number within the bounds.
    """
    bound = f">= {at_least:g}" if above is None else f"> {above:g}"
    if at_most is not None:
        bound += f" and <= {at_most:g}"
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or (above is None and value < at_least)
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
    ):
        raise ValueError(
            f"{name}: expected a finite number {bound}; received {value!r}."
        )
    return float(value)


def validate_integer(name, value, *, at_least):
    """Checks an integer against its lower bound; see `validate_number`."""
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or value < at_least
    ):
        raise ValueError(
            f"{name}: expected an integer of at least {at_least}; received "
            f"{value!r}."
        )
    return int(value)


def validate_norm(norm):
    """Checks the order of an l_p norm.

    Args:
        norm: a number in [1, inf].

    Returns:
        `norm` as a float.

    Raises:
        ValueError: if it is not a number or is less than 1.
    """
    is_number = isinstance(norm, numbers.Real) and not isinstance(norm, bool)
    if not is_number or not norm >= 1:
        raise ValueError(
            "norm: expected a number in [1, inf], the order p of an l_p norm;"
            f" received {norm!r}."
        )
    return float(norm)


def validate_bounds(bounds):
    """Checks the range of valid inputs.

    Args:
        bounds: None, or a pair (low, high), each a number or an array that
            broadcasts against one sample, and against the other.

    Returns:
        None, or the pair as floats or nested lists of floats, which JSON can
        hold.

    Raises:
        ValueError: if it is no such pair, or low is not below high.
    """
    if bounds is None:
        return None
    try:
        low, high = (np.asarray(b, np.float64) for b in bounds)
        valid = np.all(low < high) and all(
            np.all(np.isfinite(end)) for end in (low, high)
        )
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "bounds: expected a pair (low, high) of finite numbers or arrays "
            "that broadcast, low below high everywhere, or None; received "
            f"{reprlib.repr(bounds)}."
        )
    return low.tolist(), high.tolist()


def dual_norm(p):
    """The order q of the dual norm, 1/p + 1/q = 1, for p in [1, inf]."""
    if p == 1:
        return math.inf
    if p == math.inf:
        return 1.0
    return p / (p - 1)


def sample_norm(x, p=2.0):
    """The l_p norm of each sample.

    Its gradient is zero, not NaN, where a sample is zero: there the norm has
    a kink, and zero is one of its subgradients.

    Args:
        x: floating tensor of shape (B, ...).
        p: order of the norm, in [1, inf].

    Returns:
        Tensor of shape (B,), of the dtype of `x`.
    """
    size = tf.abs(x)
    axes = list(range(1, x.shape.rank))
    if p == 1:
        return tf.reduce_sum(size, axes)
    largest = tf.reduce_max(size, axes)
    if p == math.inf:
        return largest
    # Scaled by its largest entry, so that squares neither overflow nor vanish.
    # The value does not depend on the scale, so neither does the gradient.
    nonzero = largest != 0
    scale = tf.stop_gradient(tf.where(nonzero, largest, 1.0))
    size = size / expand_like(scale, x)  # in [0, 1]
    if p == 2:
        total = tf.reduce_sum(tf.square(size), axes)
    else:
        power = tf.where(size != 0, size, 1.0) ** p  # its slope at 0 is 0
        total = tf.reduce_sum(tf.where(size != 0, power, 0.0), axes)
    root = tf.where(nonzero, total, 1.0) ** (1 / p)
    return tf.where(nonzero, scale * root, 0.0)


def rho(perturbation, x, p=2.0):
    """The relative size of perturbations, ||perturbation||_p / ||x||_p.

    Eq. 7 of the Deep Defense paper, sample by sample. A zero input has no
    scale to compare with; its rho is 0, with a zero gradient.

    Args:
        perturbation: floating tensor of shape (B, ...).
        x: the clean inputs, of the same shape and dtype.
        p: order of the norm, in [1, inf].

    Returns:
        Tensor of shape (B,), at least 0.
    """
    return tf.math.divide_no_nan(
        sample_norm(perturbation, p), sample_norm(x, p)
    )


def expand_like(values, x):
    """Reshapes `values` of shape (B,) to (B, 1, ...), of the rank of `x`."""
    return tf.reshape(values, [-1] + [1] * (x.shape.rank - 1))


def compiled_by_xla():
    """Whether the code running now is traced for XLA (`jit_compile=True`).

    There, shapes must be static: a loop masks what it would drop elsewhere.
    TensorFlow has no public name for this question.
    """
    return control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )
