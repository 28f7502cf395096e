"""Square Attack (Andriushchenko et al., ECCV 2020): black-box random search.

It asks the network for logits alone. What is proposed at each query is in
square_proposals.py.
"""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dd_keras.attacks import (
    base,
    decisions,
    lp_ball,
    rows,
    square_proposals,
    stateless_random,
)
from dd_keras.attacks.forward import Forward, inference_form, source_classes
from dd_keras.utils import keras_internals, validation


@keras.saving.register_keras_serializable("dd_keras")
class Square(base.Attack):
    """Random search in square windows; a change that cuts the margin is kept.

    For p = inf, the start is vertical stripes of eps and -eps, and a query
    sets a window of the perturbation to eps or -eps, channel by channel. For
    p = 2, the start is bumps all over the image, and a query moves the mass of
    one window into another and adds a bump there. The window's share of the
    image, `initial_share` at first, is halved after 10, 50, 200, 500, 1000,
    2000, 4000, 6000 and 8000 queries. The attack is a black-box one: it uses
    no gradient. If it fools samples that attacks along the gradient do not,
    the gradients are masked.

    A sample leaves the batch once it is fooled; an already misclassified one
    is not perturbed. For a sample that is never fooled, the result is the
    perturbation with the smallest margin.

    The network is not evaluated for a proposal whose answer is known: one that
    changes nothing, as most small windows do for p = inf, or one that was
    already rejected for the same perturbation. Such proposals count as
    queries, so the result is the same as with an evaluation each.

    Inputs of shape (H, W) or (H, W, C) are images, channels last; all others
    are treated as sequences, in which a window is an interval.

    Args:
        eps: radius of the l_p ball, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        queries: maximum number of queries for a sample, at least 1.
        initial_share: share of the image that the first windows cover, in
            (0, 1].
        bounds: as in `FGSM`.
        seed: seed of the proposals, an integer of at least 0. A sample's
            proposals depend on the seed and the sample, not on the rest of the
            batch.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.Square(eps=0.2, queries=99, bounds=(0, 1))
        >>> found = attack.run(classifier, x_test, y_test)
        >>> print(1 - np.mean(found.fooled) < 0.9)  # robust accuracy
        True
    """

    def __init__(
        self,
        eps: float,
        norm: float = math.inf,
        queries: int = 5000,
        initial_share: float = 0.8,
        bounds: tuple | None = None,
        seed: int = 0,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.norm = lp_ball.validate_order(norm)
        self.queries = validation.validate_integer(
            "queries", queries, at_least=1
        )
        self.initial_share = validation.validate_number(
            "initial_share", initial_share, above=0, at_most=1
        )
        self.bounds = validation.validate_bounds(bounds)
        self.seed = validation.validate_integer("seed", seed, at_least=0)

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> base.AttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        f = inference_form(network)
        logits = forward.logits if forward else f(x)  # no gradient is needed
        predictions = decisions.predicted_class(logits)
        y = source_classes(y, predictions, logits)
        make = (
            square_proposals.LinfProposals
            if self.norm == math.inf
            else square_proposals.L2Proposals
        )
        proposals = make(self.eps, self.initial_share, self.queries, x.shape)
        images = tf.reshape(x, proposals.image_shape)
        low, high = (
            tf.reshape(tf.broadcast_to(end, tf.shape(x)), proposals.image_shape)
            for end in self.limits(x)
        )
        samples = _Samples(
            x=images,
            y=y,
            room=square_proposals.Room(low - images, high - images),
            key=stateless_random.keys(x, self.seed),
        )

        def evaluate(images, y, perturbation):
            """The margins, and which samples are fooled."""
            points = tf.reshape(images + perturbation, [-1, *x.shape[1:]])
            logits = f(points)
            return decisions.margin(logits, y), decisions.is_fooled(logits, y)

        start = proposals.start(samples.key, samples.room)
        margin, fooled = evaluate(images, y, start)
        clean_fooled = decisions.is_fooled(logits, y)
        state = _State(
            active=~(clean_fooled | fooled),
            perturbation=start,
            margin=margin,
            rejected=proposals.none_rejected(y),
            iterations=tf.zeros_like(y),
        )
        state = rows.repeat_on_active(
            lambda i, samples, now: _query(
                i, samples, now, proposals, evaluate
            ),
            samples,
            state,
            self.queries,
        )
        # Where nothing came closer than the clean input, that is the result.
        closer = ~state.active | (state.margin < decisions.margin(logits, y))
        perturbation = tf.reshape(state.perturbation, tf.shape(x))
        return base.AttackResult(
            rows.choose_rows(
                closer & ~clean_fooled, perturbation, tf.zeros_like(x)
            ),
            predictions,
            ~state.active,
            state.iterations,
        )


class _Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, H, W, C): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave
    room: square_proposals.Room
    key: tf.Tensor  # (B,) int64: of its random numbers


class _State(NamedTuple):
    """The samples of a batch, between two queries."""

    active: tf.Tensor  # (B,) bool: not fooled yet
    perturbation: tf.Tensor  # (B, H, W, C): of the smallest margin
    margin: tf.Tensor  # (B,): that margin
    rejected: tf.Tensor  # (B, K) bool: proposals that are no use from here
    iterations: tf.Tensor  # (B,) int32: queries


def _query(i, samples, now, proposals, evaluate):
    """One proposal for each sample, accepted or not."""
    proposed, number = proposals.propose(
        i, samples.key, samples.room, now.perturbation
    )
    rejected = proposals.forget_other_sizes(i, now.rejected)
    known = proposals.known(proposed, number, now.perturbation, rejected)
    question = samples.x, samples.y, proposed
    if known is None:
        margin, fooled = evaluate(*question)
    else:
        margin, fooled = _ask(evaluate, question, known, now.margin)
    accepted = fooled | (margin < now.margin)
    return _State(
        active=~fooled,
        perturbation=rows.choose_rows(accepted, proposed, now.perturbation),
        margin=tf.where(accepted, margin, now.margin),
        rejected=proposals.remember(rejected, number, accepted),
        iterations=now.iterations + 1,
    )


def _ask(evaluate, question, known, margin):
    """Margins and decisions; where the answer is known, as they are."""
    if keras_internals.compiled_by_xla():
        new, fooled = evaluate(*question)
        return tf.where(known, margin, new), fooled & ~known
    unknown = rows.active_rows(~known)
    as_they_are = margin, tf.zeros_like(known)

    def ask():
        answers = evaluate(*rows.gather_rows(question, unknown))
        return rows.scatter_rows(as_they_are, unknown, answers)

    return tf.cond(tf.size(unknown) > 0, ask, lambda: as_they_are)
