"""What the attack of Carlini and Wagner keeps of its samples, and its loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from dd_keras.utils import norms


class Samples(NamedTuple):
    """What is attacked."""

    x: tf.Tensor  # (B, ...): the clean inputs
    y: tf.Tensor  # (B,) int32: the classes to leave, or to reach
    scale: tf.Tensor  # (B,): the unit of length
    origin: tf.Tensor  # (B, ...): the w that stands for x


class State(NamedTuple):
    """The samples of a batch, between two steps."""

    active: tf.Tensor  # (B,) bool: their search is not over
    descents: tf.Tensor  # (B,) int32: those that are over
    iterations: tf.Tensor  # (B,) int32: steps, of all descents
    # Of the search for const:
    const: tf.Tensor  # (B,)
    largest_failing: tf.Tensor  # (B,): the largest const that failed, or 0
    smallest_succeeding: tf.Tensor  # (B,): the smallest that did not, or inf
    learning_rate: tf.Tensor  # (B,): Adam's
    # Of this descent:
    found: tf.Tensor  # (B,) bool: it has succeeded
    evaluations: tf.Tensor  # (B,) int32: of the objective, before each step
    w: tf.Tensor  # (B, ...): where it is evaluated next
    first_moment: tf.Tensor  # (B, ...): Adam's, of the gradient
    second_moment: tf.Tensor  # (B, ...): Adam's, of its square
    lowest: tf.Tensor  # (B,): the lowest objective since the last check
    lowest_before: tf.Tensor  # (B,): and between the two checks before it
    # Of all descents:
    best_w: tf.Tensor  # (B, ...): the w of the result
    distance: tf.Tensor  # (B,): its ||delta / scale||_2^2; inf if it fails
    margin: tf.Tensor  # (B,): its margin


def choose(condition: tf.Tensor, state: State, other: State) -> State:
    """Sample by sample, `state` where the condition (B,) holds, or `other`."""
    return State(
        *(
            tf.where(norms.expand_like(condition, one), one, two)
            for one, two in zip(state, other, strict=True)
        )
    )


def repeat(
    body: Callable[[State], State],
    state: State,
    times: int,
    condition: Callable[[State], Any] = lambda state: True,
) -> State:
    """Applies `body` to a state `times` times, or while `condition` holds."""
    (state,) = tf.while_loop(
        condition,
        lambda state: (body(state),),
        (state,),
        maximum_iterations=times,
        parallel_iterations=1,
    )
    return state
