"""The judge of second derivatives: central differences of the value.

Deep Defense's regulariser is made of gradients by the inputs; its gradient by
the weights is a second derivative of every layer. TensorFlow's are wrong in
places, so no derivative of TensorFlow's can be the judge. The value is: its
differences along a direction are the gradient's product with it, in float64 to
nine digits. A layer agrees to `TOLERANCE`, or it is refused by an error that
names it; there is nothing third.
"""

import contextlib
import re
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import dd_keras
from dd_keras import attacks

TOLERANCE = 1e-5
# Of what computes in float32 whatever it is given.
FLOAT32_TOLERANCE = 1e-3
# How far weights are moved, all together, in float64 and in float32.
WIDTH, FLOAT32_WIDTH = 1e-5, 1e-2
# Differences over one width and over two that differ by more are a kink's.
_KINK, _FLOAT32_KINK = 1e-5, 1e-2
# The second iteration is differentiated by a way of its own.
ATTACK = attacks.DeepFool(max_iter=2)
MODES = ("eager", "graph", "xla")
# What an error must say: the layer, and what has no second derivative.
REFUSAL = re.compile(
    r"layer '(?P<layer>[^']+)' computes (?P<operation>[\w.]+), "
    r"which has no (second )?derivative"
)
_FEATURES, _CLASSES, _SAMPLES = 16, 3, 4
# Networks tried until one has no kink where its weights are moved.
_TRIALS = 10
# Longer perturbations drown the others in the exponential.
_LARGEST_RHO = 5.0
# Its own layers, which nothing may be refused for.
_OURS = ("before", "shape", "flat", "bent", "logits")


class Verdict(NamedTuple):
    """What was found of a form.

    Attributes:
        error: the larger of the relative errors along two directions; None
            if the form was refused.
        refused: the operation named by the error; None if there was none.
        tolerance: the largest error allowed.
    """

    error: float | None
    refused: str | None
    tolerance: float

    @property
    def right(self):
        """Whether the gradient agrees with the differences."""
        return self.error is not None and self.error < self.tolerance


@contextlib.contextmanager
def float64():
    """What is built meanwhile computes in float64."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def judge(form, mode="eager"):
    """Compares the regulariser's gradient with differences of its value.

    Args:
        form: a `layer_forms.Form`.
        mode: how the regulariser runs, one of `MODES`.

    Returns:
        `Verdict`.

    Raises:
        ValueError: if the attack does not get anywhere on any network tried,
            or the values have a kink on each.
        Exception: whatever the form raises, but for refusals.
    """
    tolerance = TOLERANCE if form.rounds is None else FLOAT32_TOLERANCE
    reason = None
    with float64():
        for seed in range(_TRIALS):
            model = network(form, seed)
            try:
                trial = _Trial(model, seed, mode, form.rounds is not None)
                reason = trial.unfit()
                gradients = reason or trial.gradients()
            except ValueError as error:
                return Verdict(None, _refusal(error, model), tolerance)
            if reason is None:
                error = trial.error(gradients)
                if error is not None:
                    return Verdict(error, None, tolerance)
                reason = "the value has a kink where the weights are moved"
    raise ValueError(
        f"{form.title}: expected one of {_TRIALS} random networks that "
        f"differences can judge; of the last one: {reason}."
    )


def network(form, seed):
    """A classifier of vectors with the form in its middle, no weight zero."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((_FEATURES,))
    size = int(np.prod(form.shape))
    t = layers.Dense(size, activation="tanh", name="before")(inputs)
    t = form.build(layers.Reshape(form.shape, name="shape")(t))
    t = t[0] if isinstance(t, (list, tuple)) else t
    t = layers.Flatten(name="flat")(t)
    t = layers.Activation("tanh", name="bent")(t)
    model = keras.Model(inputs, layers.Dense(_CLASSES, name="logits")(t))
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        noise = rng.normal(scale=0.2, size=weight.shape)
        if weight.trainable:
            weight.assign_add(noise)
        elif weight.path.endswith(("moving_mean", "moving_variance")):
            weight.assign_add(np.abs(noise))
    return model


class _Trial:
    """A network, a batch, and the regulariser as a function of the weights."""

    def __init__(self, model, seed, mode, rounds):
        self.model = dd_keras.DeepDefenseModel(
            model, lam=1.0, c=3.0, d=1.0, attack=ATTACK
        )
        self.weights = model.trainable_weights
        self.rng = np.random.default_rng(100 + seed)
        self.x = tf.constant(self.rng.normal(size=(_SAMPLES, _FEATURES)))
        order = np.argsort(model(self.x, training=False), axis=-1)
        # Half of the samples are misclassified.
        half = np.arange(_SAMPLES) % 2
        self.y = tf.constant(
            np.where(half, order[:, -2], order[:, -1]), "int32"
        )
        self.rounds = rounds
        self.width = FLOAT32_WIDTH if rounds else WIDTH
        self.kink = _FLOAT32_KINK if rounds else _KINK
        self.eager = mode == "eager"
        self.run = self._value_and_gradients
        if not self.eager:
            self.run = tf.function(
                self.run, autograph=False, jit_compile=mode == "xla"
            )

    def value(self):
        """The regulariser at the weights as they are."""
        value = self._regularizer() if self.eager else self.run()[0]
        return float(value)

    def gradients(self):
        """Its gradients by the weights, arrays; zeros where there is none."""
        return [g.numpy() for g in self.run()[1]]

    def _regularizer(self):
        return self.model.regularizer(self.x, self.y, None, None)[0]

    def _value_and_gradients(self):
        with tf.GradientTape() as tape:
            value = self._regularizer()
        gradients = tape.gradient(
            value, self.weights, unconnected_gradients="zero"
        )
        return value, [tf.convert_to_tensor(g) for g in gradients]

    def unfit(self):
        """Why this network is no test of the gradient, None if it is one."""
        found, rho = self.model._attack_batch(ATTACK, self.x, self.y)
        moved = np.mean(rho.numpy() > 1e-6)
        if moved < 0.5 or not np.all(rho.numpy() < _LARGEST_RHO):
            return f"rho is {rho.numpy()}"
        if np.max(found.iterations) < ATTACK.max_iter:
            return "the attack takes one iteration"
        return None

    def error(self, gradients):
        """The largest relative error, or None where there is a kink.

        Along all weights together, and along the first kernel alone. What is
        1 is the size that products of the gradient with directions have.
        """
        everywhere = [self.rng.normal(size=w.shape) for w in self.weights]
        first = [d * (i == 0) for i, d in enumerate(everywhere)]
        errors = []
        for directions in (everywhere, first):
            length = np.sqrt(sum(np.sum(d**2) for d in directions))
            directions = [d / length for d in directions]
            terms = np.concatenate(
                [
                    np.ravel(g * d)
                    for g, d in zip(gradients, directions, strict=True)
                ]
            )
            expected = self.difference(directions, self.width)
            scale = max(abs(expected), np.linalg.norm(terms))
            error = abs(np.sum(terms) - expected) / scale
            if self.rounds or error > TOLERANCE:
                wide = self.difference(directions, 2 * self.width)
                if not abs(wide - expected) < self.kink * scale:
                    return None
                # Richardson: errors fall with the square of the width.
                expected += (expected - wide) / 3
                error = abs(np.sum(terms) - expected) / scale
            errors.append(error)
        return float(np.max(errors))  # NaN if one is

    def difference(self, directions, width):
        """The central difference of the value along a direction."""
        values = [weight.numpy() for weight in self.weights]
        sides = []
        for sign in (1, -1):
            for weight, value, d in zip(
                self.weights, values, directions, strict=True
            ):
                weight.assign(value + sign * width * d)
            sides.append(self.value())
        for weight, value in zip(self.weights, values, strict=True):
            weight.assign(value)
        return (sides[0] - sides[1]) / (2 * width)


def _refusal(error, model):
    """The operation that an error names; raises it if it is no refusal."""
    said = REFUSAL.search(str(error))
    names = {layer.name for layer in model._flatten_layers()} - {*_OURS}
    if said is None or said["layer"] not in names:
        raise error
    return said["operation"]
