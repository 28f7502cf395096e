"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016), batched and differentiable.

As in Section 3.1 of the Deep Defense paper (Yan, Guo, Zhang, NeurIPS 2018):
Eq. 1 is the step, Eq. 2 the sum of the steps. The gradient through the
"recursive network" of its Section 3.2 is `DeepFool._backward`.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, minimal_step, passes, rows
from dd_keras.attacks.deepfool_state import Boundary, Path, Samples, State
from dd_keras.attacks.forward import Forward, functional_form, source_classes
from dd_keras.utils import keras_internals, norms, validation

# Up to this many target classes, their gradients are written out one after
# the other; beyond, and under XLA, a loop keeps graph and memory small.
_UNROLLED_CLASSES = 16


@keras.saving.register_keras_serializable("dd_keras")
class DeepFool(base.Attack):
    """A small perturbation that changes a classifier's decision.

    At x_i, the clean input plus all earlier steps, the classifier f is
    linearised, and each sample steps onto the nearest of its class boundaries
    (Eq. 1 of the Deep Defense paper):

        step = |f_k - f_s| / ||w||_q^q * |w|^(q-1) sign(w),
        w = grad f_k - grad f_s,   1/p + 1/q = 1,

    from the source class s to the target k with the smallest distance
    |f_k - f_s| / ||w||_q. The perturbation is (1 + overshoot) times the sum
    of the steps (Eq. 2); a sample stops as soon as this changes its decision.
    Misclassified samples are moved to their label instead: k is the label, s
    the most probable other class at x_i.

    The result is differentiable with respect to the inputs and all weights of
    the model, through every step and every x_i, but not through the choice of
    s and k and the stopping, which are piecewise constant. The backward pass
    recomputes all iterations but the first, one at a time, so its memory does
    not grow with `max_iter`. Nor does it grow with the number of classes:
    beyond 16, their gradients are computed one at a time.

    The network is attacked in inference mode. Samples that have stopped, or
    whose gradient is zero, leave the batch (under XLA, where shapes are
    static, they are masked).

    Args:
        norm: the order p of the norm that is minimised, in [1, inf].
        max_iter: maximum number of steps of a sample, at least 1.
        overshoot: the fraction by which the sum of the steps is lengthened to
            cross the boundary, at least 0.
        candidates: number of target classes considered, those that are most
            probable at the clean input, in [1, classes - 1]; None for all.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample. Each step is clipped to them, and later steps
            move only the entries that are not at their bound. None, as in
            the paper, for no bounds.

    Raises:
        ValueError: if an argument is outside its range; `candidates` is
            checked against the number of classes when a model is attacked.

    Example:
        >>> attack = dd_keras.attacks.DeepFool(norm=2)
        >>> found = attack.run(classifier, x_test)
        >>> print(np.all(found.fooled))
        True
        >>> l2 = tf.norm(tf.reshape(found.perturbation, (100, -1)), axis=1)
        >>> rho = l2 / tf.norm(x_test.reshape(100, -1), axis=1)  # Eq. 7
        >>> print(0 < np.mean(rho) < 0.3)
        True
    """

    def __init__(
        self,
        norm: float = 2,
        max_iter: int = 50,
        overshoot: float = 0.02,
        candidates: int | None = None,
        bounds: tuple | None = None,
    ):
        self.norm = validation.validate_norm(norm)
        self._direction = minimal_step.steepest_direction(self.norm)
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

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        f, weights = functional_form(network)
        forward = forward or Forward.of(lambda x: f(x, weights), x)
        logits = forward.logits
        predictions = decisions.predicted_class(logits)  # (B,)
        y = source_classes(y, predictions, logits)
        samples = Samples(
            x, y, tf.equal(predictions, y), self._candidate_classes(logits, y)
        )

        # The first iteration is outside of the custom gradient, so that the
        # caller's loss, the choice of the boundary and the step share one
        # forward pass at the clean inputs, and one backward pass through it.
        boundary = self._nearest_boundary(forward, samples)
        all_active = tf.ones_like(logits[:, 0])
        perturbation = self._step(forward, boundary, all_active)
        fooled, active = self._check(
            f, weights, samples, perturbation, perturbation
        )
        state = State(active, fooled, tf.ones_like(y), perturbation)
        if self.max_iter > 1:
            state = self._further_iterations(f, weights, samples, state)
        return base.AttackResult(
            self._overshot(x, state.perturbation),
            predictions,
            state.fooled,
            state.iterations,
        )

    def _candidate_classes(self, logits, y):
        """The target classes considered: (B, m), the most probable first."""
        others = logits.shape[-1] - 1
        if self.candidates is not None and self.candidates > others:
            raise ValueError(
                f"candidates: expected at most {others}, the classes other "
                f"than the source; received {self.candidates}."
            )
        return tf.math.top_k(
            decisions.mask_class(logits, y), self.candidates or others
        )[1]

    def _nearest_boundary(self, forward, samples):
        """The boundary nearest to where `forward` is, a `Boundary`."""
        logits = forward.logits  # (A, n)
        s = tf.where(
            samples.correct, samples.y, decisions.runner_up(logits, samples.y)
        )
        f_s = tf.gather(logits, s, batch_dims=1)
        q = norms.dual_norm(self.norm)

        def consider(k, nearest):
            """The nearer of the boundary to class k and the nearest so far."""
            k = tf.where(samples.correct, k, samples.y)
            gap = tf.abs(tf.gather(logits, k, batch_dims=1) - f_s)  # (A,)
            w = forward.gradient(decisions.logit_difference(k, s, logits))
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
        m = samples.candidates.shape[-1]
        if m <= _UNROLLED_CLASSES and not keras_internals.compiled_by_xla():
            for j in range(m):
                nearest = consider(samples.candidates[:, j], nearest)
        else:
            _, nearest = tf.while_loop(
                lambda j, _: j < m,
                lambda j, nearest: (
                    j + 1,
                    consider(tf.gather(samples.candidates, j, axis=1), nearest),
                ),
                (0, nearest),
                parallel_iterations=1,
            )
        _, gap, w, k = nearest
        return Boundary(k, s, gap, w)

    def _step(self, forward, boundary, is_active):
        """The step onto a boundary (Eq. 1), differentiable by a tape."""
        difference = decisions.logit_difference(
            boundary.k, boundary.s, forward.logits
        )
        gap = tf.reduce_sum(difference * forward.logits, axis=1)
        if boundary.w is None:
            w = forward.gradient(difference)
        else:
            with passes.not_counted():  # it is run for derivatives alone
                w = forward.gradient(difference)
            w = _with_known_value(w, boundary.w)
        return self._bounded_step(forward.x, is_active * tf.abs(gap), w)

    def _bounded_step(self, x, gap, w):
        """The minimal step from x (Eq. 1), clipped to the bounds."""
        step = minimal_step.minimal_step(
            gap, self._free(x, w), norms.dual_norm(self.norm), self._direction
        )
        if self.bounds is None:
            return step
        # At a bound, rounding must not count as a step.
        return tf.where(step != 0, self.within_bounds(x, step), step)

    def _free(self, x, w):
        """w, but zero where a step along it would leave the bounds at once."""
        if self.bounds is None:
            return w
        low, high = self.limits(x)
        slack = base.ROUNDING * (high - low)
        at_bound = tf.where(w > 0, x >= high - slack, x <= low + slack)
        return tf.where(at_bound, tf.zeros_like(w), w)

    def _check(self, f, weights, samples, perturbation, step):
        """Which samples are across the boundary now, and which are active."""
        adversarial = samples.x + self._overshot(samples.x, perturbation)
        decision = decisions.predicted_class(f(adversarial, weights))
        fooled = tf.equal(decision, samples.y) != samples.correct
        has_moved = norms.sample_norm(step, math.inf) > 0
        return fooled, has_moved & ~fooled

    def _overshot(self, x, perturbation):
        """The sum of the steps, lengthened to cross the boundary it ends on."""
        return self.within_bounds(x, (1.0 + self.overshoot) * perturbation)

    def _further_iterations(self, f, weights, samples, state):
        """All iterations but the first, with a gradient of their own."""

        @tf.custom_gradient
        def iterations(x, perturbation, *weights):
            first = state._replace(perturbation=perturbation)
            last, path = self._forward_iterations(f, weights, samples, first)

            def gradient(*upstream, variables=None):
                if variables:  # not Keras', so not among `weights`
                    raise ValueError(
                        "model: expected all weights to be those of Keras "
                        "layers, made by add_weight; received variables that "
                        "Keras does not know of (a bare tf.Variable, a loaded "
                        "SavedModel), by which DeepFool has no gradient: "
                        f"{sorted(v.name for v in variables)[:5]}."
                    )
                adjoint = State(*upstream).perturbation
                return self._backward(f, weights, path, adjoint)

            return tuple(last), gradient

        return State(*iterations(samples.x, state.perturbation, *weights))

    def _forward_iterations(self, f, weights, samples, state):
        """Iterates to the end; returns the last state and the path there."""

        def iterate(i, state, path):
            active_rows = rows.active_rows(state.active)  # (A,)
            chosen = rows.gather_rows(samples, active_rows)
            perturbation = tf.gather(state.perturbation, active_rows)
            # All ones where rows are dropped; under XLA zero for the stopped.
            is_active = tf.cast(
                tf.gather(state.active, active_rows), perturbation.dtype
            )
            x_i = chosen.x + perturbation
            forward = Forward.of(lambda x: f(x, weights), x_i)
            boundary = self._nearest_boundary(forward, chosen)
            step = self._bounded_step(x_i, is_active * boundary.gap, boundary.w)
            perturbation += step  # Eq. 2
            fooled, active = self._check(f, weights, chosen, perturbation, step)
            path = path.write(
                i, active_rows, is_active, x_i, boundary.k, boundary.s
            )
            iterations = state.iterations + tf.cast(state.active, tf.int32)
            active, fooled, perturbation = rows.scatter_rows(
                (state.active, state.fooled, state.perturbation),
                active_rows,
                (active, fooled, perturbation),
            )
            return i + 1, State(active, fooled, iterations, perturbation), path

        most = self.max_iter - 1
        steps, state, path = tf.while_loop(
            lambda i, state, path: tf.reduce_any(state.active),
            iterate,
            (0, state, Path.empty(most, samples.x)),
            maximum_iterations=most,
        )
        return state, (steps, path)

    def _backward(self, f, weights, path, adjoint):
        """The gradient of the sum of all steps, back along its path.

        With u_i the sum of the first i steps, u_(i+1) = u_i + step(x + u_i),
        so the adjoint a of u obeys a_i = a_(i+1) + (d step / d x)^T a_(i+1),
        and each step adds (d step / d weights)^T a_(i+1) to the weights'
        gradient.

        Args:
            f: the network, see `functional_form`.
            weights: its weights.
            path: what `_forward_iterations` returned.
            adjoint: (B, ...), the gradient by the last u.

        Returns:
            The gradients by x, by the first u, and by all weights.
        """
        steps, path = path

        def iterate_back(i, a, gradients):
            active_rows, is_active, x_i, k, s = path.read(i)
            with tf.GradientTape() as tape:
                tape.watch([x_i, *weights])
                forward = Forward.of(lambda x: f(x, weights), x_i)
                step = self._step(forward, Boundary(k, s), is_active)
            to_x, *to_weights = tape.gradient(
                step,
                [x_i, *weights],
                tf.gather(a, active_rows),
                tf.UnconnectedGradients.ZERO,
            )
            return (
                i - 1,
                tf.tensor_scatter_nd_add(a, active_rows[:, None], to_x),
                [g + new for g, new in zip(gradients, to_weights, strict=True)],
            )

        _, a, gradients = tf.while_loop(
            lambda i, *_: i >= 0,
            iterate_back,
            (steps - 1, adjoint, [tf.zeros_like(v) for v in weights]),
            maximum_iterations=self.max_iter - 1,
            parallel_iterations=1,
        )
        return a - adjoint, a, *gradients


@tf.custom_gradient
def _with_known_value(differentiable, value):
    """`differentiable`, with its value given, so that none is computed."""

    def gradient(upstream):
        return upstream, None

    return tf.identity(value), gradient
