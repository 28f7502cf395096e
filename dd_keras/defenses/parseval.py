"""Parseval networks (Cisse et al., ICML 2017): nearly orthonormal weights."""

import keras
import tensorflow as tf
from keras import ops

from dd_keras.utils import keras_internals, validation

# Layers whose kernel is a matrix for each patch of the inputs, or for all.
_MATRICES = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


@keras.saving.register_keras_serializable("dd_keras")
class ParsevalConstraint(keras.constraints.Constraint):
    """A weight constraint that keeps the rows of W nearly orthonormal.

    After each update of the weights it takes one gradient step of size beta
    on ||W_S W_S^T - I||^2 / 4 (Cisse et al., Section 4.2):

        W_S <- (1 + beta) W_S - beta W_S W_S^T W_S

    for a new random set S of the rows, 30 % of them in the Deep Defense
    paper. A row of W holds the weights of one unit or filter: W is the
    transpose of a kernel of shape (inputs, units), or of a convolution's
    kernel (height, width, channels, filters) reshaped to (inputs, filters).

    Args:
        beta: step size, in (0, 1]; in the Deep Defense paper 1e-4 on MNIST
            and 3e-4 on CIFAR-10. The steps converge if the singular values of
            W are below sqrt(1 + 2 / beta).
        fraction: share of the rows in S, in (0, 1]; at least one row is
            chosen.
        groups: number of groups of a convolution; each group has a W of its
            own.
        seed: seed of the choice of rows; None draws one.

    Raises:
        ValueError: if an argument is outside of its range.

    Example:
        >>> constraint = dd_keras.ParsevalConstraint(beta=0.2, fraction=1.0)
        >>> layer = keras.layers.Dense(3, kernel_constraint=constraint)
        >>> w = 1.5 * np.eye(3, dtype="float32")
        >>> for _ in range(50):  # as after 50 updates that change nothing
        ...     w = constraint(w)
        >>> print(np.allclose(w, np.eye(3), atol=1e-4))
        True
    """

    def __init__(
        self,
        beta: float = 1e-4,
        fraction: float = 0.3,
        groups: int = 1,
        seed: int | None = None,
    ):
        number = validation.validate_number
        self.beta = number("beta", beta, above=0, at_most=1)
        self.fraction = number("fraction", fraction, above=0, at_most=1)
        self.groups = validation.validate_integer("groups", groups, at_least=1)
        self.seed = seed
        self._seeds = keras.random.SeedGenerator(seed)

    @property
    def variables(self) -> list[keras.Variable]:
        """The random state of the choice of rows, for checkpoints."""
        return [self._seeds.state]

    def __call__(self, w: tf.Tensor) -> tf.Tensor:
        """The kernel after one step, of its shape and dtype."""
        units = w.shape[-1]
        rows = ops.reshape(w, (-1, self.groups, units // self.groups))
        rows = ops.transpose(rows, (1, 2, 0))  # (groups, rows, inputs)
        chosen = self._choose(rows.shape[1])
        some = ops.take(rows, chosen, axis=1)  # (groups, |S|, inputs)
        gram = ops.matmul(some, ops.transpose(some, (0, 2, 1)))
        step = self.beta * (some - ops.matmul(gram, some))
        rows = ops.scatter_update(
            ops.transpose(rows, (1, 0, 2)),
            chosen[:, None],
            ops.transpose(some + step, (1, 0, 2)),
        )
        return ops.reshape(ops.transpose(rows, (2, 1, 0)), w.shape)

    def _choose(self, rows):
        """The numbers of the rows in S, (|S|,)."""
        size = max(1, round(self.fraction * rows))
        order = keras.random.shuffle(ops.arange(rows), seed=self._seeds)
        return order[:size]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "beta": self.beta,
            "fraction": self.fraction,
            "groups": self.groups,
            "seed": self.seed,
        }


def add_parseval_constraints(
    model: keras.Model,
    beta: float = 1e-4,
    fraction: float = 0.3,
    seed: int | None = None,
) -> list[str]:
    """Puts a `ParsevalConstraint` on all dense and convolutional layers.

    Layers of nested models are included. Training applies the constraint once
    `model` is compiled again, and a saved model includes it. Depthwise,
    transposed and recurrent kernels are not of the form (inputs, units) and
    stay unconstrained.

    Args:
        model: a built `keras.Model`.
        beta: see `ParsevalConstraint`.
        fraction: see `ParsevalConstraint`.
        seed: the k-th layer's choice of rows has the seed `seed` + k, from 0;
            None draws the seeds.

    Returns:
        The names of the constrained layers: a list of str.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if it is not built, if it has no layer to constrain, or if
            such a layer already has another constraint.

    Example:
        >>> dd_keras.add_parseval_constraints(classifier, beta=1e-4)
        ['hidden', 'logits']
        >>> history = classifier.fit(x_train, y_train, verbose=0)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model: expected a keras.Model; received {type(model).__name__}."
        )
    layers = [
        layer
        for layer in keras_internals.layers_of(model, include_self=False)
        if isinstance(layer, _MATRICES)
    ]
    if not layers or not all(layer.built for layer in layers):
        raise ValueError(
            "model: expected a built model with dense or convolutional "
            f"layers; {model.name!r} has {len(layers)} such layers, "
            f"{sum(layer.built for layer in layers)} of them built."
        )
    for layer in layers:
        given = layer.kernel_constraint
        if not isinstance(given, (type(None), ParsevalConstraint)):
            raise ValueError(
                f"model: expected no other constraint; the kernel of "
                f"{layer.name!r} has a {type(given).__name__}."
            )
    for place, layer in enumerate(layers):
        layer.kernel_constraint = layer.kernel.constraint = ParsevalConstraint(
            beta,
            fraction,
            getattr(layer, "groups", 1),
            None if seed is None else seed + place,
        )
    return [layer.name for layer in layers]
