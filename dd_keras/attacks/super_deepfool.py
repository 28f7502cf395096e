"""SuperDeepFool (Abdollahpoorrostam et al., 2024): DeepFool, and straight on.

SDF(inf, 1) of "SuperDeepFool: a new fast and accurate minimal adversarial
attack".
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, deepfool, rows
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.utils import norms, validation

# The line search halves the way to the clean input as often: to a thousandth.
_BISECTIONS = 10


@keras.saving.register_keras_serializable("dd_keras")
class SuperDeepFool(base.Attack):
    """DeepFool's l_2 perturbation, made orthogonal to the decision boundary.

    The shortest perturbation meets the boundary at a right angle; DeepFool's
    does so only approximately. From x_0 = x,

        x~ = DeepFool(x_i),   w = grad f_k - grad f_y at x~,
        x_(i+1) = x + ((x~ - x) . w) w / ||w||^2,

    where k is the class at x~, until x_(i+1) fools the network. Finally, a
    line search towards x shortens the perturbation. The result is the shortest
    one found that fools the network, or zero if there is none. An already
    misclassified sample is not perturbed.

    Args:
        max_iter: maximum number of projections, at least 1.
        deepfool_steps: maximum number of DeepFool steps before each, at least
            1.
        overshoot: DeepFool's overshoot, at least 0.
        candidates: number of classes that DeepFool considers; None for all.
        bounds: (low, high) of valid inputs, numbers or arrays that broadcast
            against a sample; None for no bounds.

    Raises:
        ValueError: if an argument is outside its range; `candidates` is
            checked against the number of classes when a model is attacked.

    Example:
        >>> def mean_l2(attack):
        ...     perturbation = attack.perturb(classifier, x_test)
        ...     flat = tf.reshape(perturbation, (100, -1))
        ...     return np.mean(tf.norm(flat, axis=1))
        >>> shorter = mean_l2(dd_keras.attacks.SuperDeepFool(max_iter=3))
        >>> print(shorter < mean_l2(dd_keras.attacks.DeepFool()))
        True
    """

    norm = 2.0

    def __init__(
        self,
        max_iter: int = 10,
        deepfool_steps: int = 50,
        overshoot: float = 0.02,
        candidates: int | None = None,
        bounds: tuple | None = None,
    ):
        self.max_iter = validation.validate_integer(
            "max_iter", max_iter, at_least=1
        )
        self.deepfool_steps = validation.validate_integer(
            "deepfool_steps", deepfool_steps, at_least=1
        )
        self._deepfool = deepfool.DeepFool(
            2, self.deepfool_steps, overshoot, candidates, bounds
        )
        self.overshoot = self._deepfool.overshoot
        self.candidates = self._deepfool.candidates
        self.bounds = self._deepfool.bounds

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        fooled = decisions.is_fooled(clean.logits, clean.y)
        zero = tf.zeros_like(x)
        none = tf.zeros_like(clean.logits[:, 0])
        state = rows.repeat_on_active(
            lambda i, samples, now: self._step(network, clean.f, samples, now),
            _Samples(x, clean.y),
            _State(
                active=~fooled,
                perturbation=zero,
                iterations=tf.zeros_like(clean.y),
                best=zero,
                length=tf.where(fooled, none, float("inf")),
            ),
            self.max_iter,
        )
        found = tf.math.is_finite(state.length)
        best = _shortened(clean.f, x, clean.y, state.best, found)
        return base.AttackResult(
            best, clean.predictions, found, state.iterations
        )

    def _step(self, network, f, samples, now):
        """DeepFool from where the samples are, and its way made orthogonal."""
        way = now.perturbation + tf.stop_gradient(
            self._deepfool.search(
                network, samples.x + now.perturbation, samples.y
            ).perturbation
        )
        at = Forward.of(f, samples.x + way)
        now = _keep_shorter(now, samples, way, at.logits)
        w = at.gradient(
            decisions.logit_difference(
                decisions.runner_up(at.logits, samples.y), samples.y, at.logits
            )
        )
        axes = list(range(1, w.shape.rank))
        slope = norms.sample_norm(w)
        unit = tf.math.divide_no_nan(w, norms.expand_like(slope, w))
        distance = tf.reduce_sum(way * unit, axes)
        turned = norms.expand_like(distance, w) * unit
        turned = self.within_bounds(samples.x, turned)
        logits = f(samples.x + turned)
        now = _keep_shorter(now, samples, turned, logits)
        stuck = tf.reduce_all(tf.equal(turned, now.perturbation), axes)
        return now._replace(
            active=~(decisions.is_fooled(logits, samples.y) | stuck),
            perturbation=turned,
            iterations=now.iterations + 1,
        )


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave


class _State(NamedTuple):
    """The samples of a batch, between two repetitions."""

    active: tf.Tensor  # (B,) bool
    perturbation: tf.Tensor  # (B, ...): where they are
    iterations: tf.Tensor  # (B,) int32: repetitions
    best: tf.Tensor  # (B, ...): the shortest that fools
    length: tf.Tensor  # (B,): its length; inf if there is none


def _keep_shorter(now, samples, perturbation, logits):
    """The state, with this perturbation where it fools and is shorter."""
    length = norms.sample_norm(perturbation)
    better = decisions.is_fooled(logits, samples.y) & (length < now.length)
    return now._replace(
        best=rows.choose_rows(better, perturbation, now.best),
        length=tf.where(better, length, now.length),
    )


def _shortened(f, x, y, perturbation, found):
    """The line search: as little of each perturbation as still fools."""

    def halve(low, high):
        middle = (low + high) / 2
        share = norms.expand_like(middle, x)
        fools = decisions.is_fooled(f(x + share * perturbation), y)
        return tf.where(fools, low, middle), tf.where(fools, middle, high)

    high = tf.ones_like(norms.sample_norm(x))
    _, high = tf.while_loop(
        lambda *_: True,
        halve,
        (tf.zeros_like(high), high),
        maximum_iterations=_BISECTIONS,
        parallel_iterations=1,
    )
    share = norms.expand_like(tf.where(found, high, 1.0), x)
    return share * perturbation
