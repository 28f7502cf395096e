"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016), batched and differentiable.

Section 3.1 of the Deep Defense paper (Yan, Guo, Zhang, NeurIPS 2018): Eq. 1
is the step, Eq. 2 the sum of the steps; section 3.2's "recursive network",
through which the gradient travels back, is `_pull_back`.
"""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras import numerics
from dd_keras.attacks import attack
from dd_keras.logits import sparse_labels

# Up to this many target classes, their gradients are written out one after
# the other; beyond, and under XLA, a loop keeps graph and memory small.
_UNROLLED_CLASSES = 16


@keras.saving.register_keras_serializable("dd_keras")
class DeepFool(attack.Attack):
    """The smallest perturbation that changes a classifier's decision.

    At x_i, the clean input plus all earlier steps, the classifier f is taken
    as affine, and each sample steps onto the nearest of its class boundaries:

        step = |f_k - f_s| / ||w||_q^q * |w|^(q-1) sign(w),
        w = grad f_k - grad f_s,   1/p + 1/q = 1,

    from the source class s to the target k with the smallest distance
    |f_k - f_s| / ||w||_q. A sample stops once f decides otherwise at the
    clean input plus (1 + overshoot) times the sum of its steps, which is the
    perturbation. Samples whose label differs from their prediction are pulled
    to the label instead: k is the label, s the likeliest other class at x_i.

    The result is differentiable with respect to the inputs and to all weights
    of the model, through every step and every x_i; not through the choice of
    s and k and the stopping, which are piecewise constant. The gradient costs
    no memory that grows with the network times `max_iter`: each iteration is
    computed anew on the way back. The attack sees the network in inference
    mode. Samples that have stopped leave the batch (under XLA, where shapes
    are static, they are masked), and so do those with a zero gradient.

    Args:
        norm: the order p of the norm that is minimised, in [1, inf].
        max_iter: most steps a sample takes, at least 1.
        overshoot: by how much the sum of the steps is stretched to cross the
            boundary, at least 0.
        candidates: number of target classes considered, the likeliest ones
            at the clean input, in [1, classes - 1]; None for all.

    Raises:
        ValueError: if an argument is outside of its range; `candidates` is
            held against the number of classes when a model is attacked.
    """

    def __init__(self, norm=2, max_iter=50, overshoot=0.02, candidates=None):
        self.norm = numerics.validate_norm(norm)
        self.max_iter = numerics.validate_integer(
            "max_iter", max_iter, at_least=1
        )
        self.overshoot = numerics.validate_number(
            "overshoot", overshoot, at_least=0
        )
        if candidates is not None:
            candidates = numerics.validate_integer(
                "candidates", candidates, at_least=1
            )
        self.candidates = candidates

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "norm": self.norm,
            "max_iter": self.max_iter,
            "overshoot": self.overshoot,
            "candidates": self.candidates,
        }

    def search(self, network, x, y=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        f, weights = attack.functional_form(network)

        @tf.custom_gradient
        def deepfool(x, *weights):
            result, path = self._follow(f, weights, x, y)

            def gradient(upstream, *_):
                return self._pull_back(f, weights, path, upstream)

            return result, gradient

        return attack.AttackResult(*deepfool(x, *weights))

    def _follow(self, f, weights, x, y):
        """Runs the attack; returns its result and the path it took."""
        logits = f(x, weights)  # (B, n)
        predictions = _decide(logits)  # (B,)
        y = predictions if y is None else sparse_labels(y, logits.shape[-1])
        correct = tf.equal(predictions, y)
        samples = (x, y, correct, self._candidates(logits, y))
        stretch = 1.0 + self.overshoot

        def iterate(i, state, path):
            rows = _rows_to_move(state.active)  # (A,)
            x_0, y_0, right, classes = (tf.gather(t, rows) for t in samples)
            total = tf.gather(state.total, rows)
            # All ones where rows are dropped; under XLA, zero for the stopped.
            moving = tf.cast(tf.gather(state.active, rows), x.dtype)
            x_i = x_0 + total
            gap, w, k, s = self._nearest(f, weights, x_i, y_0, right, classes)
            step = _minimal_step(moving * gap, w, self.norm)  # Eq. 1
            total += step  # Eq. 2
            decision = _decide(f(x_0 + stretch * total, weights))
            fooled = tf.equal(decision, y_0) != right
            moved = numerics.sample_norm(step, math.inf) > 0
            state = _State(
                active=_put(state.active, rows, moved & ~fooled),
                fooled=_put(state.fooled, rows, fooled),
                iterations=state.iterations + tf.cast(state.active, tf.int32),
                total=_put(state.total, rows, total),
            )
            return i + 1, state, path.write(i, rows, moving, x_i, k, s)

        no_one = tf.zeros_like(correct)
        steps, state, path = tf.while_loop(
            lambda i, state, path: tf.reduce_any(state.active),
            iterate,
            (
                0,
                _State(
                    ~no_one,
                    no_one,
                    tf.cast(no_one, tf.int32),
                    tf.zeros_like(x),
                ),
                _Path.empty(self.max_iter, x),
            ),
            maximum_iterations=self.max_iter,
        )
        result = (
            stretch * state.total,
            predictions,
            state.fooled,
            state.iterations,
        )
        return result, (steps, path)

    def _candidates(self, logits, y):
        """The target classes considered: (B, m), the likeliest first."""
        others = logits.shape[-1] - 1
        if self.candidates is not None and self.candidates > others:
            raise ValueError(
                f"candidates: expected at most {others}, the classes other "
                f"than the source; received {self.candidates}."
            )
        return tf.math.top_k(_mask(logits, y), self.candidates or others)[1]

    def _nearest(self, f, weights, x, y, correct, classes):
        """The boundary nearest to x: |f_k - f_s|, its gradient w, k and s."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            logits = f(x, weights)  # (A, n)
        rival = _decide(_mask(logits, y))  # (A,)
        s = tf.where(correct, y, rival)
        q = numerics.dual_norm(self.norm)

        def consider(k, nearest):
            k = tf.where(correct, k, y)
            difference = _difference(k, s, logits)  # (A, n)
            gap = tf.abs(tf.reduce_sum(difference * logits, axis=1))
            w = tape.gradient(logits, x, difference)  # (A, ...)
            slope = numerics.sample_norm(w, q)
            steep = slope > numerics.ZERO_NORM
            distance = tf.where(steep, gap / slope, math.inf)
            closer = distance < nearest[0]
            return tuple(
                tf.where(numerics.expand_like(closer, new), new, old)
                for new, old in zip((distance, gap, w, k), nearest, strict=True)
            )

        infinite = tf.fill(tf.shape(y), tf.constant(math.inf, x.dtype))
        nearest = (infinite, tf.zeros_like(infinite), tf.zeros_like(x), y)
        m = classes.shape[-1]
        if m <= _UNROLLED_CLASSES and not numerics.compiled_by_xla():
            for j in range(m):
                nearest = consider(classes[:, j], nearest)
        else:
            _, nearest = tf.while_loop(
                lambda j, _: j < m,
                lambda j, nearest: (
                    j + 1,
                    consider(tf.gather(classes, j, axis=1), nearest),
                ),
                (0, nearest),
                parallel_iterations=1,
            )
        _, gap, w, k = nearest
        return gap, w, k, s

    def _step(self, f, weights, x, k, s, moving):
        """The step at x towards class k (Eq. 1), for a tape to record."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = f(x, weights)
            gap = tf.reduce_sum(_difference(k, s, logits) * logits, axis=1)
        w = tape.gradient(gap, x)
        return _minimal_step(moving * tf.abs(gap), w, self.norm)

    def _pull_back(self, f, weights, path, upstream):
        """The gradient of the perturbation, back along its path.

        With u_i the sum of the first i steps, u_(i+1) = u_i + step(x + u_i),
        so the adjoint a of u obeys a_i = a_(i+1) + (d step / d x)^T a_(i+1),
        and each step adds (d step / d weights)^T a_(i+1) to the weights'
        gradient.
        """
        steps, path = path
        adjoint = (1.0 + self.overshoot) * upstream

        def unwind(i, adjoint, gradients):
            rows, moving, x_i, k, s = path.read(i)
            with tf.GradientTape() as tape:
                tape.watch([x_i, *weights])
                step = self._step(f, weights, x_i, k, s, moving)
            to_x, *to_weights = tape.gradient(
                step,
                [x_i, *weights],
                tf.gather(adjoint, rows),
                tf.UnconnectedGradients.ZERO,
            )
            return (
                i - 1,
                tf.tensor_scatter_nd_add(adjoint, rows[:, None], to_x),
                [g + new for g, new in zip(gradients, to_weights, strict=True)],
            )

        _, total, gradients = tf.while_loop(
            lambda i, *_: i >= 0,
            unwind,
            (steps - 1, adjoint, [tf.zeros_like(v) for v in weights]),
            maximum_iterations=self.max_iter,
            parallel_iterations=1,
        )
        return total - adjoint, *gradients


class _State(NamedTuple):
    """Where each sample of the batch stands."""

    active: tf.Tensor  # (B,) bool: goes on
    fooled: tf.Tensor  # (B,) bool: is across the boundary
    iterations: tf.Tensor  # (B,) int32: steps taken
    total: tf.Tensor  # (B, ...): their sum


class _Path(NamedTuple):
    """What each iteration did, to be retraced by the gradient."""

    rows: tf.TensorArray  # (A,): which samples it moved
    moving: tf.TensorArray  # (A,): 1 for those that really moved, else 0
    x: tf.TensorArray  # (A, ...): from where
    k: tf.TensorArray  # (A,): to which class
    s: tf.TensorArray  # (A,): from which class

    @classmethod
    def empty(cls, size, x):
        """Room for `size` iterations on inputs like `x`."""
        integers, one_each = tf.int32, [None]
        return cls(
            *(
                tf.TensorArray(
                    dtype, size, element_shape=shape, infer_shape=False
                )
                for dtype, shape in (
                    (integers, one_each),
                    (x.dtype, one_each),
                    (x.dtype, [None, *x.shape[1:]]),
                    (integers, one_each),
                    (integers, one_each),
                )
            )
        )

    def write(self, i, *values):
        """The path with iteration `i` noted down."""
        pairs = zip(self, values, strict=True)
        return _Path(*(array.write(i, value) for array, value in pairs))

    def read(self, i):
        """What iteration `i` did."""
        return [array.read(i) for array in self]


def _rows_to_move(active):
    """The rows still active; under XLA, which needs fixed shapes, all."""
    if numerics.compiled_by_xla():
        return tf.range(tf.size(active))
    return tf.cast(tf.where(active)[:, 0], tf.int32)


def _put(values, rows, new):
    """`values` with `new` in the given rows."""
    return tf.tensor_scatter_nd_update(values, rows[:, None], new)


def _decide(logits):
    """The class decided for: (B,) int32."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def _mask(logits, y):
    """The logits with class y ruled out."""
    others = tf.range(logits.shape[-1]) != y[:, None]  # (B, n)
    return tf.where(others, logits, float("-inf"))


def _difference(k, s, logits):
    """(A, n) rows that pick f_k - f_s out of the logits."""
    n = logits.shape[-1]
    return tf.one_hot(k, n, dtype=logits.dtype) - tf.one_hot(
        s, n, dtype=logits.dtype
    )


def _minimal_step(gap, w, p):
    """The smallest l_p step that closes `gap` along the gradient w (Eq. 1).

    Args:
        gap: (A,), |f_k - f_s|.
        w: (A, ...), grad f_k - grad f_s.
        p: the order of the norm, in [1, inf].

    Returns:
        gap / ||w||_q^q * |w|^(q-1) sign(w), of the shape of w; zero where w
        is zero, with a zero gradient there.
    """
    q = numerics.dual_norm(p)
    slope = numerics.sample_norm(w, q)
    steep = slope > numerics.ZERO_NORM
    slope = tf.where(steep, slope, 1.0)
    length = tf.where(steep, gap / slope, 0.0)
    unit = w / numerics.expand_like(slope, w)
    if p == 2:
        direction = unit
    elif p == math.inf:
        direction = tf.sign(w)
    elif p == 1:
        entries = tf.reshape(tf.abs(w), (tf.shape(w)[0], -1))
        largest = tf.argmax(entries, -1)
        one = tf.one_hot(largest, tf.shape(entries)[1], dtype=w.dtype)
        direction = tf.sign(w) * tf.reshape(one, tf.shape(w))
    else:
        size = tf.abs(unit)
        moves = size > 0  # at 0, |w|^(q-1) has an infinite slope if p > 2
        power = tf.where(moves, size, 1.0) ** (q - 1)
        direction = tf.sign(w) * tf.where(moves, power, 0.0)
    return numerics.expand_like(length, w) * direction
