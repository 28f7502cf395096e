"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016), batched and differentiable.

Section 3.1 of the Deep Defense paper (Yan, Guo, Zhang, NeurIPS 2018): Eq. 1
is the step, Eq. 2 the sum of the steps; section 3.2's "recursive network",
through which the gradient travels back, is `_pull_back`.
"""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base
from dd_keras.classifier.labels import sparse_labels
from dd_keras.utils import keras_internals, norms, validation

# Up to this many target classes, their gradients are written out one after
# the other; beyond, and under XLA, a loop keeps graph and memory small.
_UNROLLED_CLASSES = 16


@keras.saving.register_keras_serializable("dd_keras")
class DeepFool(base.Attack):
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
    s and k and the stopping, which are piecewise constant. Its memory does not
    grow with the network times `max_iter`: all iterations but the first are
    computed anew on the way back, one at a time. Nor does it grow with the
    classes: beyond 16, their gradients are taken one at a time.

    The attack sees the network in inference mode. Samples that have stopped
    leave the batch (under XLA, where shapes are static, they are masked), and
    so do those with a zero gradient.

    Args:
        norm: the order p of the norm that is minimised, in [1, inf].
        max_iter: most steps a sample takes, at least 1.
        overshoot: by how much the sum of the steps is stretched to cross the
            boundary, at least 0.
        candidates: number of target classes considered, the likeliest ones
            at the clean input, in [1, classes - 1]; None for all.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample. Each step is cut short where it leaves them,
            and later ones leave alone what is at its end. None, as in the
            paper, for no bounds.

    Raises:
        ValueError: if an argument is outside of its range; `candidates` is
            held against the number of classes when a model is attacked.
    """

    def __init__(
        self,
        norm=2,
        max_iter=50,
        overshoot=0.02,
        candidates=None,
        bounds=None,
    ):
        self.norm = validation.validate_norm(norm)
        self.max_iter = validation.validate_integer(
            "max_iter", max_iter, at_least=1
        )
        self.overshoot = validation.validate_number(
            "overshoot", overshoot, at_least=0
        )
        if candidates is not None:
            candidates = validation.validate_integer(
                "candidates", candidates, at_least=1
            )
        self.candidates = candidates
        self.bounds = validation.validate_bounds(bounds)

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        return {
            "norm": self.norm,
            "max_iter": self.max_iter,
            "overshoot": self.overshoot,
            "candidates": self.candidates,
            "bounds": self.bounds,
        }

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits."""
        f, weights = base.functional_form(network)
        forward = forward or base.Forward.of(lambda x: f(x, weights), x)
        logits = forward.logits
        predictions = base.decide(logits)  # (B,)
        y = predictions if y is None else sparse_labels(y, logits.shape[-1])
        right = tf.equal(predictions, y)
        samples = _Samples(x, y, right, self._candidates(logits, y))

        # The first iteration is in the open, so that the forward pass at the
        # clean inputs serves whoever else needs it, also on the way back.
        target = self._nearest(forward, samples)
        moving = tf.ones_like(logits[:, 0])
        total = self._step(forward, target, moving)
        fooled, active = self._check(f, weights, samples, total, total)
        state = _State(active, fooled, tf.ones_like(y), total)
        if self.max_iter > 1:
            state = self._continue(f, weights, samples, state)
        return base.AttackResult(
            self._stretch(x, state.total),
            predictions,
            state.fooled,
            state.iterations,
        )

    def _continue(self, f, weights, samples, state):
        """All iterations but the first, with a gradient of our own."""

        @tf.custom_gradient
        def go_on(x, total, *weights):
            start = state._replace(total=total)
            end, path = self._follow(f, weights, samples, start)

            def gradient(*upstream, variables=None):
                if variables:  # not Keras', so that they were not handed in
                    raise ValueError(
                        "model: expected all weights to be those of Keras "
                        "layers, made by add_weight; received variables that "
                        "Keras does not know of (a bare tf.Variable, a loaded "
                        "SavedModel), by which DeepFool has no gradient: "
                        f"{sorted(v.name for v in variables)[:5]}."
                    )
                adjoint = _State(*upstream).total
                return self._pull_back(f, weights, path, adjoint)

            return tuple(end), gradient

        return _State(*go_on(samples.x, state.total, *weights))

    def _follow(self, f, weights, samples, state):
        """Runs the attack to its end; returns the state and the path there."""

        def iterate(i, state, path):
            rows = base.rows_to_move(state.active)  # (A,)
            moved = _Samples(*(tf.gather(t, rows) for t in samples))
            total = tf.gather(state.total, rows)
            # All ones where rows are dropped; under XLA, zero for the stopped.
            moving = tf.cast(tf.gather(state.active, rows), total.dtype)
            x_i = moved.x + total
            forward = base.Forward.of(lambda x: f(x, weights), x_i)
            target = self._nearest(forward, moved)
            step = self._bounded(x_i, moving * target.gap, target.w)
            total += step  # Eq. 2
            fooled, active = self._check(f, weights, moved, total, step)
            state = _State(
                active=base.put(state.active, rows, active),
                fooled=base.put(state.fooled, rows, fooled),
                iterations=state.iterations + tf.cast(state.active, tf.int32),
                total=base.put(state.total, rows, total),
            )
            path = path.write(i, rows, moving, x_i, target.k, target.s)
            return i + 1, state, path

        size = self.max_iter - 1
        steps, state, path = tf.while_loop(
            lambda i, state, path: tf.reduce_any(state.active),
            iterate,
            (0, state, _Path.empty(size, samples.x)),
            maximum_iterations=size,
        )
        return state, (steps, path)

    def _candidates(self, logits, y):
        """The target classes considered: (B, m), the likeliest first."""
        others = logits.shape[-1] - 1
        if self.candidates is not None and self.candidates > others:
            raise ValueError(
                f"candidates: expected at most {others}, the classes other "
                f"than the source; received {self.candidates}."
            )
        return tf.math.top_k(
            base.mask_class(logits, y), self.candidates or others
        )[1]

    def _nearest(self, forward, samples):
        """The boundary nearest to where `forward` is, a `_Target`."""
        logits = forward.logits  # (A, n)
        rival = base.decide(base.mask_class(logits, samples.y))  # (A,)
        s = tf.where(samples.right, samples.y, rival)
        f_s = tf.gather(logits, s, batch_dims=1)
        q = norms.dual_norm(self.norm)

        def consider(k, nearest):
            k = tf.where(samples.right, k, samples.y)
            gap = tf.abs(tf.gather(logits, k, batch_dims=1) - f_s)  # (A,)
            w = forward.gradient(_difference(k, s, logits))  # (A, ...)
            slope = norms.sample_norm(self._free(forward.x, w), q)
            steep = slope > norms.ZERO_NORM
            distance = tf.where(steep, gap / slope, math.inf)
            closer = distance < nearest[0]
            return tuple(
                tf.where(norms.expand_like(closer, new), new, old)
                for new, old in zip((distance, gap, w, k), nearest, strict=True)
            )

        infinite = tf.fill(tf.shape(s), tf.constant(math.inf, logits.dtype))
        nearest = (
            infinite,
            tf.zeros_like(infinite),
            tf.zeros_like(forward.x),
            samples.y,
        )
        m = samples.classes.shape[-1]
        if m <= _UNROLLED_CLASSES and not keras_internals.compiled_by_xla():
            for j in range(m):
                nearest = consider(samples.classes[:, j], nearest)
        else:
            _, nearest = tf.while_loop(
                lambda j, _: j < m,
                lambda j, nearest: (
                    j + 1,
                    consider(tf.gather(samples.classes, j, axis=1), nearest),
                ),
                (0, nearest),
                parallel_iterations=1,
            )
        _, gap, w, k = nearest
        return _Target(k, s, gap, w)

    def _step(self, forward, target, moving):
        """The step towards a target (Eq. 1), for a tape to record."""
        difference = _difference(target.k, target.s, forward.logits)
        gap = tf.reduce_sum(difference * forward.logits, axis=1)
        w = forward.gradient(difference)
        if target.w is not None:
            w = _with_value(w, target.w)
        return self._bounded(forward.x, moving * tf.abs(gap), w)

    def _bounded(self, x, gap, w):
        """The minimal step from x (Eq. 1), cut short at the bounds."""
        step = _minimal_step(gap, self._free(x, w), self.norm)
        if self.bounds is None:
            return step
        # Rounding at a bound is no step.
        return tf.where(step != 0, self.within_bounds(x, step), step)

    def _free(self, x, w):
        """w, but zero where a step along it would leave the bounds at once."""
        if self.bounds is None:
            return w
        low, high = self.limits(x)
        slack = base.ROUNDING * (high - low)
        at_end = tf.where(w > 0, x >= high - slack, x <= low + slack)
        return tf.where(at_end, tf.zeros_like(w), w)

    def _stretch(self, x, total):
        """The perturbation: what crosses the boundary that `total` meets."""
        return self.within_bounds(x, (1.0 + self.overshoot) * total)

    def _check(self, f, weights, samples, total, step):
        """Who is across the boundary now, and who goes on."""
        stretched = samples.x + self._stretch(samples.x, total)
        decision = base.decide(f(stretched, weights))
        fooled = tf.equal(decision, samples.y) != samples.right
        moved = norms.sample_norm(step, math.inf) > 0
        return fooled, moved & ~fooled

    def _pull_back(self, f, weights, path, adjoint):
        """The gradient of the sum of all steps, back along its path.

        With u_i the sum of the first i steps, u_(i+1) = u_i + step(x + u_i),
        so the adjoint a of u obeys a_i = a_(i+1) + (d step / d x)^T a_(i+1),
        and each step adds (d step / d weights)^T a_(i+1) to the weights'
        gradient.

        Args:
            f: the network, see `functional_form`.
            weights: its weights.
            path: what `_follow` returned.
            adjoint: (B, ...), the gradient by the last u.

        Returns:
            The gradients by x, by the first u, and by all weights.
        """
        steps, path = path

        def unwind(i, a, gradients):
            rows, moving, x_i, k, s = path.read(i)
            with tf.GradientTape() as tape:
                tape.watch([x_i, *weights])
                forward = base.Forward.of(lambda x: f(x, weights), x_i)
                step = self._step(forward, _Target(k, s), moving)
            to_x, *to_weights = tape.gradient(
                step,
                [x_i, *weights],
                tf.gather(a, rows),
                tf.UnconnectedGradients.ZERO,
            )
            return (
                i - 1,
                tf.tensor_scatter_nd_add(a, rows[:, None], to_x),
                [g + new for g, new in zip(gradients, to_weights, strict=True)],
            )

        _, a, gradients = tf.while_loop(
            lambda i, *_: i >= 0,
            unwind,
            (steps - 1, adjoint, [tf.zeros_like(v) for v in weights]),
            maximum_iterations=self.max_iter - 1,
            parallel_iterations=1,
        )
        return a - adjoint, a, *gradients


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: their labels
    right: tf.Tensor  # (B,) bool: whether the network predicts these
    classes: tf.Tensor  # (B, m) int32: the targets considered


class _Target(NamedTuple):
    """The boundary each sample steps onto, from class s to class k."""

    k: tf.Tensor  # (A,) int32
    s: tf.Tensor  # (A,) int32
    gap: tf.Tensor = None  # (A,): |f_k - f_s|
    w: tf.Tensor = None  # (A, ...): grad f_k - grad f_s


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


def _difference(k, s, logits):
    """(A, n) rows that pick f_k - f_s out of the logits."""
    n = logits.shape[-1]
    return tf.one_hot(k, n, dtype=logits.dtype) - tf.one_hot(
        s, n, dtype=logits.dtype
    )


@tf.custom_gradient
def _with_value(differentiable, value):
    """`differentiable`, whose value is known: it need not be computed."""

    def gradient(upstream):
        return upstream, None

    return tf.identity(value), gradient


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
    q = norms.dual_norm(p)
    slope = norms.sample_norm(w, q)
    steep = slope > norms.ZERO_NORM
    slope = tf.where(steep, slope, 1.0)
    length = tf.where(steep, gap / slope, 0.0)
    unit = w / norms.expand_like(slope, w)
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
    return norms.expand_like(length, w) * direction
