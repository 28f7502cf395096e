"""The shortest way from a point to a hyperplane that stays within a box.

    min ||d||_p   such that   w . d = amount,   -down <= d <= up

For p > 1 each coordinate moves by min(t |w_j|^(q-1), its room) towards the
hyperplane, 1/p + 1/q = 1, with the same t for all (the Karush-Kuhn-Tucker
conditions). What is gained of |amount|,

    gain(t) = sum_j |w_j| min(t |w_j|^(q-1), room_j),

is piecewise linear and concave, so Newton's method from t = 0 on never goes
too far: each step stops more coordinates at their ends, or solves for t.
It is exact after finitely many steps, few in practice, and sorts nothing. For
p = 1 the coordinates of the largest |w_j| go first, each to its end, which
takes a sort.
"""

import tensorflow as tf

from dd_keras.utils import norms


def step_to_hyperplane(
    amount: tf.Tensor, w: tf.Tensor, down: tf.Tensor, up: tf.Tensor, p: float
) -> tf.Tensor:
    """The shortest step that reaches a hyperplane within a box.

    Args:
        amount: (N,), what w . step must be.
        w: (N, ...), the normal of the hyperplane.
        down: (N, ...), the room below each coordinate, at least 0; may be
            infinite.
        up: (N, ...), that above.
        p: the order of the norm, in [1, inf].

    Returns:
        (N, ...): the step. Where the box does not reach the hyperplane, as
        far towards it as it does; zero where w is.
    """
    size = tf.abs(w)
    largest = norms.sample_norm(w, float("inf"))
    # With slopes of at most 1 no square overflows or vanishes.
    size = tf.math.divide_no_nan(size, norms.expand_like(largest, w))
    need = tf.math.divide_no_nan(tf.abs(amount), largest)
    direction = tf.sign(w) * norms.expand_like(tf.sign(amount), w)
    room = tf.where(direction > 0, up, down)
    room = tf.where(size > 0, tf.maximum(room, 0), tf.zeros_like(room))
    shape = tf.shape(w)
    size, room = (tf.reshape(t, (shape[0], -1)) for t in (size, room))
    move = _greedy if p == 1 else _even
    return direction * tf.reshape(move(need, size, room, p), shape)


def _even(need, size, room, p):
    """min(t speed, room) with the t that gains what is needed: (N, D)."""
    speed = tf.where(size > 0, size ** (norms.dual_norm(p) - 1), 0.0)
    pace, most = size * speed, size * room  # gains by t, and at the end

    def newton(t, _):
        at_end = t[:, None] * speed >= room
        gained = tf.reduce_sum(tf.where(at_end, most, 0.0), axis=1)
        slope = tf.reduce_sum(
            tf.where(at_end, tf.zeros_like(pace), pace), axis=1
        )
        solved = tf.where(slope > 0, (need - gained) / slope, t)
        return tf.maximum(t, solved), tf.reduce_any(solved > t)

    t, _ = tf.while_loop(
        lambda t, moved: moved,
        newton,
        (tf.zeros_like(need), True),
        parallel_iterations=1,
    )
    return tf.minimum(t[:, None] * speed, room)


def _greedy(need, size, room, p):
    """The steepest coordinates first, each to its end: (N, D)."""
    del p
    order = tf.argsort(size, direction="DESCENDING", stable=True)
    steepest = tf.gather(size, order, batch_dims=1)
    most = tf.gather(room, order, batch_dims=1)
    before = tf.cumsum(steepest * most, axis=1, exclusive=True)
    rest = tf.maximum(need[:, None] - before, 0)
    taken = tf.minimum(tf.math.divide_no_nan(rest, steepest), most)
    return tf.gather(taken, tf.argsort(order), batch_dims=1)
