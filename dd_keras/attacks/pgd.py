"""Projected gradient attacks within an l_p ball: BIM and PGD.

BIM is the basic iterative method (Kurakin et al., 2017), PGD projected gradient
descent from random starts (Madry et al., ICLR 2018). Both are settings of
`ProjectedGradient`, whose loss, start, step and projection a new attack of the
family overrides.
"""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import base, decisions, lp_ball, rows
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.utils import norms, validation

# By default, all steps together are this many times the radius, as in Madry et
# al.: enough to get from any start to any point of the ball.
_STEPS_OVER_RADIUS = 2.5


class Iterate(NamedTuple):
    """The active samples of an iteration, and what the network says there.

    Attributes:
        step: int32, (): the number of steps since the start, 0 at the start.
        x: (A, ...): the clean inputs.
        y: (A,) int32: the classes to leave, or to reach.
        target: (A,) int32: the classes that this restart aims at, see
            `ProjectedGradient.targets`.
        perturbation: (A, ...): where the samples are.
        logits: (A, n): the network's at x + perturbation.
        gradient: (A, ...): that of the loss with respect to the inputs, there.
        memory: what the step rule remembers, see `initial_memory`.
    """

    step: tf.Tensor
    x: tf.Tensor
    y: tf.Tensor
    target: tf.Tensor
    perturbation: tf.Tensor
    logits: tf.Tensor
    gradient: tf.Tensor
    memory: Any


class ProjectedGradient(base.Attack):
    """Steps along the gradient of a loss, each projected back into a ball.

        perturbation <- project(step(perturbation, grad_x loss))

    A sample leaves the batch once it is fooled; an already misclassified one
    gets a zero perturbation. For a sample that is never fooled, the result is
    the perturbation with the smallest margin. Without `early_stop` this holds
    for every sample, and all steps are taken.

    A subclass sets the attributes below, and overrides what differs:
    `targets`, `loss_gradient`, `start`, `initial_memory`, `step` or `project`.

    Attributes:
        eps: the radius of the ball, in units of the inputs.
        norm: its order p, 2 or inf.
        steps: of each restart, at least 1.
        step_size: the l_p length of a step.
        random_start: whether a restart begins at random.
        restarts: at least 1, for each of the `targets`.
        seed: of the random starts.
        early_stop: whether a sample is done once it is fooled.
        bounds: None, or the (low, high) that adversarial inputs keep to.
        targeted: whether `y` holds the classes to reach, not to leave.
    """

    eps: float
    norm: float
    steps: int
    step_size: float
    random_start: bool = False
    restarts: int = 1
    seed: int = 0
    early_stop: bool = True

    def targets(self, logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The classes, (B, m) int32, that the loss aims at, one by one.

        Each has restarts of its own. By default there is one, `y` itself.

        Args:
            logits: (B, n), those of the clean inputs.
            y: (B,) int32.
        """
        del logits
        return y[:, None]

    def loss_gradient(
        self, logits: tf.Tensor, y: tf.Tensor, target: tf.Tensor
    ) -> tf.Tensor:
        """The gradient of the maximised loss by the logits, (A, n)."""
        del target
        return decisions.cross_entropy_logit_gradient(logits, y, self.targeted)

    def start(self, x: tf.Tensor, restart: tf.Tensor) -> tf.Tensor:
        """The perturbation, (A, ...), that a restart begins with."""
        if not self.random_start:
            return tf.zeros_like(x)
        stream = self.stream_of(restart)
        return lp_ball.uniform_point(x, self.eps, self.norm, self.seed, stream)

    def stream_of(self, restart: tf.Tensor) -> tf.Tensor:
        """The first stream of random numbers of a restart: int64, ()."""
        restart = tf.cast(restart, tf.int64)
        return self._first_stream + lp_ball.STREAMS_OF_A_POINT * restart

    def initial_memory(self, x: tf.Tensor) -> Any:
        """What `step` remembers, at the start of each restart.

        A nested structure of tensors with one row for each sample of `x`,
        such as a momentum, (A, ...), or a step size, (A,).
        """
        del x
        return ()

    def step(self, here: Iterate) -> tuple[tf.Tensor, Any]:
        """One step, before its projection.

        Returns:
            The new perturbation, (A, ...), and the new memory.
        """
        direction = lp_ball.steepest_ascent(here.gradient, self.norm)
        return here.perturbation + self.step_size * direction, here.memory

    def project(self, perturbation: tf.Tensor) -> tf.Tensor:
        """The closest point of the ball. `bounds` are seen to elsewhere."""
        return lp_ball.project(perturbation, self.eps, self.norm)

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        samples = _Samples(x, clean.y, self.targets(clean.logits, clean.y))
        fooled = decisions.is_fooled(clean.logits, clean.y, self.targeted)
        state = _State(
            active=self._goes_on(fooled),
            fooled=fooled,
            iterations=tf.zeros_like(clean.y),
            perturbation=tf.zeros_like(x),
            memory=self.initial_memory(x),
            best=tf.zeros_like(x),
            margin=decisions.margin(clean.logits, clean.y, self.targeted),
        )
        # Each restart evaluates its start and the result of every step.
        evaluations = self.steps + 1

        def iterate(i, samples, now):
            restart, step = i // evaluations, i % evaluations
            perturbation, memory = tf.cond(
                step == 0,
                lambda: (
                    self.start(samples.x, restart),
                    self.initial_memory(samples.x),
                ),
                lambda: (now.perturbation, now.memory),
            )
            perturbation = self.within_bounds(samples.x, perturbation)
            target = tf.gather(
                samples.targets, restart // self.restarts, axis=1
            )
            at = Forward.of(clean.f, samples.x + perturbation)
            here = Iterate(
                step=step,
                x=samples.x,
                y=samples.y,
                target=target,
                perturbation=perturbation,
                logits=at.logits,
                gradient=at.gradient(
                    self.loss_gradient(at.logits, samples.y, target)
                ),
                memory=memory,
            )
            moved, memory = self.step(here)
            return self._keep_best(now, here)._replace(
                perturbation=self.project(moved), memory=memory
            )

        state = rows.repeat_on_active(
            iterate,
            samples,
            state,
            samples.targets.shape[1] * self.restarts * evaluations,
        )
        return base.AttackResult(
            state.best, clean.predictions, state.fooled, state.iterations
        )

    def _goes_on(self, fooled):
        """Which samples are attacked further: (B,) bool."""
        return ~fooled if self.early_stop else tf.ones_like(fooled)

    def _keep_best(self, now, here):
        """The state with what the evaluation of an iterate has shown."""
        margin = decisions.margin(here.logits, here.y, self.targeted)
        fooled = decisions.is_fooled(here.logits, here.y, self.targeted)
        # Where classes tie, a decision may change at the same margin.
        better = (fooled & ~now.fooled) | (margin < now.margin)
        return now._replace(
            active=self._goes_on(fooled),
            fooled=now.fooled | fooled,
            iterations=now.iterations + tf.cast(here.step > 0, tf.int32),
            best=tf.where(
                norms.expand_like(better, here.x),
                here.perturbation,
                now.best,
            ),
            margin=tf.where(better, margin, now.margin),
        )


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave, or to reach
    targets: tf.Tensor  # (B, m) int32: what the losses aim at, one by one


class _State(NamedTuple):
    """The samples of a batch, between two iterations."""

    active: tf.Tensor  # (B,) bool: to be attacked further
    fooled: tf.Tensor  # (B,) bool
    iterations: tf.Tensor  # (B,) int32: steps taken
    perturbation: tf.Tensor  # (B, ...): to be evaluated next
    memory: Any  # of the step rule
    best: tf.Tensor  # (B, ...): the perturbation of the smallest margin
    margin: tf.Tensor  # (B,): that margin


@keras.saving.register_keras_serializable("dd_keras")
class BIM(ProjectedGradient):
    """FGSM in small steps: the basic iterative method.

    From the clean input, `steps` times

        perturbation <- clip(perturbation + step_size * sign(gradient)),

    clipped to the l_inf ball of radius eps and to `bounds`. A sample stops as
    soon as it is fooled; an already misclassified one is not perturbed.

    Args:
        eps: radius of the l_inf ball, above 0, in units of the inputs.
        steps: maximum number of steps, at least 1.
        step_size: l_inf length of a step, above 0; by default
            2.5 * eps / steps.
        bounds: as in `FGSM`.
        targeted: whether `y` holds target classes instead of true labels.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.BIM(eps=0.3, bounds=(0, 1), targeted=True)
        >>> target = (y_test + 1) % 10
        >>> found = attack.run(classifier, x_test, target)
        >>> print(np.mean(found.fooled) > 0.5)  # share that reach their target
        True
    """

    norm = math.inf

    def __init__(
        self,
        eps: float,
        steps: int = 10,
        step_size: float | None = None,
        bounds: tuple | None = None,
        targeted: bool = False,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        self.step_size = _step_size(step_size, self.eps, self.steps)
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)


@keras.saving.register_keras_serializable("dd_keras")
class PGD(ProjectedGradient):
    """Projected gradient descent, with random restarts.

    From a point drawn uniformly from the l_p ball of radius eps, `steps`
    times

        perturbation <- project(perturbation + step_size * direction),

    projected to the ball and to `bounds`. The direction is the sign of the
    gradient of the cross-entropy for p = inf, and the gradient over its l_2
    norm for p = 2. A sample stops as soon as it is fooled, in any restart; an
    already misclassified one is not perturbed. For a sample that is never
    fooled, the result is the perturbation with the smallest margin.

    Args:
        eps: radius of the l_p ball, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        steps: number of steps of a restart, at least 1.
        step_size: l_p length of a step, above 0; by default 2.5 * eps / steps,
            as in Madry et al.
        random_start: whether to start at a random point; if not, at the clean
            input.
        restarts: number of starts, at least 1; without `random_start`, 1.
        bounds: as in `FGSM`.
        targeted: whether `y` holds target classes instead of true labels.
        seed: seed of the random starts, an integer of at least 0. A sample's
            starts depend on the seed and the sample, not on the rest of the
            batch; equal samples have equal starts. (In adversarial training
            they change with each step.)
        early_stop: whether a sample stops as soon as it is fooled. If not,
            every sample takes all steps, even if it is already misclassified,
            and the result is the perturbation with the smallest margin, as in
            the training of Madry et al.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.PGD(
        ...     eps=0.1, steps=20, restarts=2, bounds=(0, 1)
        ... )
        >>> found = attack.run(classifier, x_test, y_test)
        >>> robust_accuracy = 1 - np.mean(found.fooled)
        >>> print(robust_accuracy < 0.9)
        True
        >>> print(np.max(np.abs(found.perturbation)) <= 0.1 + 1e-6)
        True
    """

    def __init__(
        self,
        eps: float,
        norm: float = math.inf,
        steps: int = 40,
        step_size: float | None = None,
        random_start: bool = True,
        restarts: int = 1,
        bounds: tuple | None = None,
        targeted: bool = False,
        seed: int = 0,
        early_stop: bool = True,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.norm = lp_ball.validate_order(norm)
        self.steps = validation.validate_integer("steps", steps, at_least=1)
        self.step_size = _step_size(step_size, self.eps, self.steps)
        self.random_start = bool(random_start)
        self.restarts = validation.validate_integer(
            "restarts", restarts, at_least=1
        )
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                "restarts: expected 1 without random_start, since all would "
                f"be the same; received {restarts}."
            )
        self.bounds = validation.validate_bounds(bounds)
        self.targeted = bool(targeted)
        self.seed = validation.validate_integer("seed", seed, at_least=0)
        self.early_stop = bool(early_stop)


def _step_size(step_size, eps, steps):
    """The given step size, validated, or the default."""
    if step_size is None:
        step_size = _STEPS_OVER_RADIUS * eps / steps
    return validation.validate_number("step_size", step_size, above=0)
