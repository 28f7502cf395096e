"""One step of a training, in float64: data, networks, and what was followed."""

import keras
import numpy as np
import tensorflow as tf
from conftest import train_step


def clusters(num_classes=3, batch=12, seed=0, dtype=np.float64):
    """Noisy clusters, one a class: (x, y), 4 features."""
    rng = np.random.default_rng(seed)
    y = np.arange(batch) % num_classes
    centres = rng.normal(size=(num_classes, 4))
    return (centres[y] + rng.normal(size=(batch, 4))).astype(dtype), y


def network(*layers, outputs=3, dtype="float64", seed=0):
    """A small smooth network of some extra layers."""
    keras.utils.set_random_seed(seed)
    hidden = keras.layers.Dense(6, "tanh", dtype=dtype, name="hidden")
    top = keras.layers.Dense(outputs, dtype=dtype, name="top")
    return keras.Sequential(
        [keras.Input((4,), dtype=dtype), hidden, *layers, top]
    )


def crossentropy(y, logits, weights=1.0):
    """Its mean over the batch, of tensors."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    return tf.reduce_mean(weights * losses)


def compiled(model, rate=1.0, binary=False, **kwargs):
    """The model, whose step of SGD is the gradient."""
    kind = "BinaryCrossentropy" if binary else "SparseCategoricalCrossentropy"
    model.compile(
        keras.optimizers.SGD(rate),
        getattr(keras.losses, kind)(from_logits=model.activation == "linear"),
        **{"run_eagerly": True, **kwargs},
    )
    return model


def step(model, x, y, weights=None):
    """The logs of one step of SGD(1), and the gradients it followed."""
    before = [np.array(w) for w in model.trainable_weights]
    logs = train_step(model, x, y, sample_weight=weights)
    after = [np.array(w) for w in model.trainable_weights]
    return logs, [b - a for b, a in zip(before, after, strict=True)]


def assert_all_close(found, expected, rtol=1e-9, atol=1e-12):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# An affine classifier of three classes.
W, B = np.random.default_rng(1).normal(size=(2, 4, 3))
B = B[0]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class NoSecondDerivative(keras.layers.Layer):
    """Local response normalisation, which TensorFlow differentiates once."""

    def call(self, x):
        return tf.nn.local_response_normalization(x, depth_radius=1)

    def compute_output_shape(self, shape):
        return shape


def without_second_derivative():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Reshape((2, 2, 2)),
            NoSecondDerivative(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
