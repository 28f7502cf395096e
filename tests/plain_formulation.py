"""Deep Defense's attack written down as the paper has it, and no faster.

All class gradients at once as a Jacobian, every iteration unrolled for every
sample, everything under whatever tape is outside. The benchmarks time it, and
the tests hold `attacks.DeepFool` to its values and gradients.
"""

import math

import tensorflow as tf

from dd_keras import attacks
from dd_keras.classifier import logits
from dd_keras.classifier.labels import sparse_labels


class PlainDeepFool(attacks.DeepFool):
    """`attacks.DeepFool`, formulated plainly. Same arguments, same results."""

    def search(self, network, x, y=None, forward=None):
        """As `attacks.DeepFool.search`; what `forward` holds is not used."""
        del forward
        f = network_in_inference_mode(network)
        clean = f(x)
        n = clean.shape[-1]
        predictions = decide(clean)
        y = predictions if y is None else sparse_labels(y, n)
        correct = predictions == y
        considered = tf.one_hot(y, n) == 0  # (B, n)
        if self.candidates is not None:
            others = tf.where(considered, clean, -math.inf)
            kth = tf.math.top_k(others, self.candidates)[0][:, -1:]
            considered = others >= kth
        total = tf.zeros_like(x)
        active = tf.ones_like(correct)
        fooled = tf.zeros_like(correct)
        iterations = tf.zeros_like(predictions)
        for _ in range(self.max_iter):
            step = self.minimal_step(f, x + total, y, correct, considered)
            total += tf.where(like(active, x), step, 0.0)
            decision = decide(f(x + (1 + self.overshoot) * total))
            fooled = tf.where(active, (decision == y) != correct, fooled)
            iterations += tf.cast(active, tf.int32)
            active &= ~fooled & tf.reduce_any(step != 0, axes(x))
        return attacks.AttackResult(
            (1 + self.overshoot) * total, predictions, fooled, iterations
        )

    def minimal_step(self, f, x, y, correct, considered):
        """Eq. 1 at x, onto the nearest of the considered boundaries."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            scores = f(x)  # (B, n)
        n = scores.shape[-1]
        jacobian = tape.batch_jacobian(scores, x)  # (B, n, ...)
        rival = decide(tf.where(tf.one_hot(y, n) == 0, scores, -math.inf))
        s = tf.where(correct, y, rival)
        gaps = scores - tf.gather(scores, s, batch_dims=1)[:, None]
        w = jacobian - tf.gather(jacobian, s, batch_dims=1)[:, None]
        size = tf.reshape(tf.abs(w), [tf.shape(w)[0], n, -1])  # (B, n, D)
        slope = self.dual_norm(size)  # (B, n)
        reachable = considered & (slope > 0)
        distances = tf.where(reachable, tf.abs(gaps) / slope, math.inf)
        nearest = tf.argmin(distances, -1, tf.int32)
        k = tf.where(correct, nearest, y)
        gap = tf.abs(tf.gather(gaps, k, batch_dims=1))
        size = tf.gather(size, k, batch_dims=1)
        slope = self.dual_norm(size)  # (B,)
        w = tf.gather(w, k, batch_dims=1)
        if self.norm == 1:
            one = tf.one_hot(
                tf.argmax(size, -1), tf.shape(size)[-1], dtype=w.dtype
            )
            direction = tf.sign(w) * tf.reshape(one, tf.shape(w))
        elif self.norm == math.inf:
            direction = tf.sign(w)
        else:
            power = tf.abs(w / like(slope, w)) ** (1 / (self.norm - 1))
            direction = tf.sign(w) * power
        return like(gap / slope, w) * direction

    def dual_norm(self, size):
        """The dual norm of vectors of absolute values, over the last axis."""
        if self.norm == 1:
            return tf.reduce_max(size, -1)
        if self.norm == math.inf:
            return tf.reduce_sum(size, -1)
        q = self.norm / (self.norm - 1)
        return tf.reduce_sum(size**q, -1) ** (1 / q)


def network_in_inference_mode(network):
    """The network's class logits as a function of its inputs."""
    return lambda x: logits.class_logits(network(x, training=False))


def decide(scores):
    """The class with the largest score, int32."""
    return tf.argmax(scores, -1, tf.int32)


def axes(x):
    """All axes but the batch's."""
    return list(range(1, x.shape.rank))


def like(values, x):
    """(B,) to (B, 1, ...), of the rank of x."""
    return tf.reshape(values, [-1] + [1] * (x.shape.rank - 1))
