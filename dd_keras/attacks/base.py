"""What all attacks share: the common interface, and its compiled form.

`Attack` is the base class; a new attack implements `search`.
What a `search` is made of is in forward.py (the network and its gradients),
decisions.py (margins and losses of logits) and rows.py (the active samples).
"""

import copy
import inspect
import reprlib
from typing import Any, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import derivatives, stateless_random
from dd_keras.attacks.forward import Forward
from dd_keras.classifier import compiled, logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.utils import validation
from dd_keras.utils.config import EqualByConfig

# Share of the valid range by which an input may leave it: the rounding error
# of preprocessing in float32. A pixel this close to a bound counts as at it.
ROUNDING = 1e-5


class AttackResult(NamedTuple):
    """The result of an attack, with one row per sample.

    Attributes:
        perturbation: floating, (B, ...): to be added to the inputs.
        predictions: int32, (B,): the classes predicted for the clean inputs.
        fooled: bool, (B,): whether the class predicted for the perturbed
            input differs from `y`; for a targeted attack, whether it equals
            `y`. DeepFool moves misclassified samples to their label: for
            these, whether it equals `y`.
        iterations: int32, (B,): the number of steps taken.

    Example:
        >>> fgsm = dd_keras.attacks.FGSM(eps=0.1, bounds=(0, 1))
        >>> found = fgsm.run(classifier, x_test, y_test)
        >>> found.perturbation.shape, found.fooled.shape
        (TensorShape([100, 8, 8, 1]), TensorShape([100]))
        >>> robust_accuracy = 1 - np.mean(found.fooled)
        >>> clean_accuracy = np.mean(found.predictions == y_test)
        >>> print(robust_accuracy < clean_accuracy)
        True
    """

    perturbation: tf.Tensor
    predictions: tf.Tensor
    fooled: tf.Tensor
    iterations: tf.Tensor


class Attack(EqualByConfig):
    """Base of all attacks. Subclasses implement `search`.

    Each argument of the constructor is an attribute of the same name, from
    which `get_config` collects them.

    Attacks are immutable: for other settings, construct a new one. They are
    deterministic: the same attack on the same batch has the same result.

    Attributes:
        bounds: (low, high), the range that adversarial inputs keep to, or
            None.
        targeted: whether `y` holds target classes instead of true labels.

    Example:
        >>> attack = dd_keras.attacks.PGD(eps=0.1, steps=10, bounds=(0, 1))
        >>> adversarial = attack(classifier, x_test, y_test)
        >>> adversarial.shape
        TensorShape([100, 8, 8, 1])
        >>> found = attack.run(classifier, x_test, y_test)  # and more of each
        >>> print(np.array_equal(x_test + found.perturbation, adversarial))
        True
    """

    bounds: tuple | None = None
    targeted: bool = False
    # The first stream of its random numbers, see `at_step`.
    _first_stream: int | tf.Tensor = 0

    def __call__(
        self, model: keras.Model, x: Any, y: Any = None, **kwargs: Any
    ) -> tf.Tensor:
        """The adversarial inputs: `x` + `perturb(model, x, y)`."""
        x = logits.cast_inputs(model, x)
        return x + self.perturb(model, x, y, **kwargs)

    def perturb(
        self, model: keras.Model, x: Any, y: Any = None, **kwargs: Any
    ) -> tf.Tensor:
        """The perturbation alone, of the shape of `x`; see `run`."""
        return self.run(model, x, y, **kwargs).perturbation

    # A caller's AutoGraph would rewrite the attack, constants included.
    @tf.autograph.experimental.do_not_convert
    def run(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        verbose: int = 0,
    ) -> AttackResult:
        """Attacks a batch.

        Outside a `tf.function` the attack is compiled, once for each model,
        and again when the model has changed. Inside a `tf.function` it becomes
        part of that graph.

        Args:
            model: a built Keras classifier, see `logits_model`.
            x: (B, ...), the model's inputs, of any numeric dtype.
            y: labels, integer or one-hot; for a targeted attack, the target
                classes. None: the classes that the model predicts.
            batch_size: number of samples to attack at a time, outside a
                `tf.function`; None: all at once.
            verbose: 1 shows a progress bar over these batches, 0 nothing.

        Returns:
            `AttackResult`.

        Raises:
            ValueError: if `x` or `y` does not have the model's shape, if `x`
                is not finite or not within `bounds`, or if a targeted attack
                is not given `y`. In a graph, values are not checked.
        """
        x = logits.cast_inputs(model, x)
        if self.targeted and y is None:
            raise ValueError(
                "y: a targeted attack needs the classes to reach; received "
                "None."
            )
        if not tf.executing_eagerly():
            return self.search(logits.logits_model(model), x, y)
        self.check_bounds(x)
        if not np.all(np.isfinite(x.numpy())):
            raise ValueError(
                "x: expected finite inputs; received NaN or infinity."
            )
        search, num_classes = compiled.function(
            model,
            (self, x.dtype, y is not None),
            lambda: _trace_search(self, model, x.dtype, y is not None),
        )
        batch = [x]
        if y is not None:
            batch.append(sparse_labels(y, num_classes))
            if len(batch[1]) != len(x):
                raise ValueError(
                    f"y: expected {len(x)} labels, one for each input; "
                    f"received {len(batch[1])}."
                )
        if batch_size is None:
            return search(*batch)
        size = validation.validate_integer("batch_size", batch_size, at_least=1)
        starts = range(0, max(len(x), 1), size)
        bar = keras.utils.Progbar(
            len(starts), verbose=verbose, unit_name="batch"
        )
        parts = []
        for start in starts:
            parts.append(search(*(t[start : start + size] for t in batch)))
            bar.add(1)
        # An attack may return more of each sample than `AttackResult` has.
        return type(parts[0])(
            *(tf.concat(column, 0) for column in zip(*parts, strict=True))
        )

    def at_step(self, step: tf.Tensor) -> Self:
        """The same attack, with new random numbers for a training step.

        Args:
            step: an integer tensor of shape (): the number of the step.
        """
        other = copy.copy(self)
        other._first_stream = stateless_random.first_stream(step)
        return other

    def check_bounds(self, x: tf.Tensor) -> None:
        """Checks that inputs are within `bounds`, up to rounding errors.

        Args:
            x: (B, ...), an eager tensor.

        Raises:
            ValueError: if one is not, or if `bounds` do not fit its shape.
        """
        if self.bounds is None:
            return
        low, high = self.limits(x)
        slack = ROUNDING * np.max(high - low)
        values = x.numpy()
        if not np.all((values >= low - slack) & (values <= high + slack)):
            raise ValueError(
                f"x: expected inputs within the bounds, {np.min(low):g} to "
                f"{np.max(high):g}; received values from {values.min():g} to "
                f"{values.max():g}, or beyond the bounds of their place."
            )

    def within_bounds(self, x: tf.Tensor, perturbation: tf.Tensor) -> tf.Tensor:
        """The perturbation, clipped so that `x` plus it is within `bounds`."""
        if self.bounds is None:
            return perturbation
        low, high = self.limits(x)
        return tf.minimum(tf.maximum(perturbation, low - x), high - x)

    def scale(self, x: tf.Tensor) -> tf.Tensor:
        """A unit of length for each sample, (B,), from the range of values.

        This is high - low of `bounds` (its mean if they are arrays), or
        without bounds each sample's own max x - min x.
        """
        if self.bounds is not None:
            low, high = self.limits(x)
            return tf.fill(tf.shape(x)[:1], tf.reduce_mean(high - low))
        axes = list(range(1, x.shape.rank))
        width = tf.reduce_max(x, axes) - tf.reduce_min(x, axes)
        return tf.where(width > 0, width, 1.0)

    def limits(self, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """`bounds`, or infinite ones, as arrays of the dtype of `x`.

        Raises:
            ValueError: if they do not broadcast against one sample of `x`.
        """
        bounds = self.bounds or (-np.inf, np.inf)
        low, high = (np.asarray(b, x.dtype.as_numpy_dtype) for b in bounds)
        sample = x.shape[1:]
        shape = np.broadcast_shapes(low.shape, high.shape)
        try:
            both = tf.broadcast_static_shape(sample, tf.TensorShape(shape))
            fits = both.is_compatible_with(sample)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                "bounds: expected numbers, or arrays that broadcast against "
                f"samples of shape {tuple(sample)}; received arrays of shape "
                f"{shape}."
            )
        return low, high

    def search(
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> AttackResult:
        """As `run`, in the current graph, for a network that gives logits.

        Args:
            network: a built `keras.Model` that gives logits.
            x: (B, ...), floating, of the dtype in which the network computes.
            y: as in `run`.
            forward: the network's `Forward` at `x`, in inference mode, if the
                caller already has it; it saves the attack a forward pass.

        Returns:
            `AttackResult`.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for Keras serialisation.

        Each must be an attribute of the same name. A subclass for which this
        does not hold, or that has no constructor, overrides this method.
        """
        if type(self).__init__ is object.__init__:
            raise NotImplementedError
        arguments = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The attack that `get_config` describes."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{key}={_shown(value)}" for key, value in self.get_config().items()
        )
        return f"{type(self).__name__}({arguments})"


def _shown(value):
    """A setting for people: of an array, such as a mean image, its range."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, list) and value and isinstance(value[0], list | float):
        array = np.array(value)
        return f"array {array.shape} of {array.min():g} to {array.max():g}"
    return reprlib.repr(value)


def _trace_search(attack, model, dtype, labeled):
    """`attack.search` as one graph, and the number of classes of `model`."""
    network = logits.logits_model(model)
    signature = [tf.TensorSpec(logits.input_shape(model), dtype)]
    if labeled:
        signature.append(tf.TensorSpec((None,), tf.int32))

    @tf.function(input_signature=signature, autograph=False)
    def search(*batch):
        return attack.search(network, *batch)

    with derivatives.name_missing_gradients(network):
        search.get_concrete_function()
    return search, logits.num_classes(model)
