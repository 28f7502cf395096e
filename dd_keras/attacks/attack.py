"""What every attack shares: its face, and its compiled form."""

import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras import logits
from dd_keras.attacks import kernels


class AttackResult(NamedTuple):
    """What an attack found, sample by sample.

    Attributes:
        perturbation: floating, (B, ...): what to add to the inputs.
        predictions: int32, (B,): the classes of the clean inputs.
        fooled: bool, (B,): whether the perturbed class is no longer the
            source (for samples that were misclassified and pulled to their
            label: whether it is the label now).
        iterations: int32, (B,): steps taken.
    """

    perturbation: tf.Tensor
    predictions: tf.Tensor
    fooled: tf.Tensor
    iterations: tf.Tensor


class Forward(NamedTuple):
    """One forward pass, ready to be differentiated by its inputs.

    Attributes:
        x: floating, (B, ...).
        logits: floating, (B, n): the network's `class_logits` at `x`.
        tape: a persistent `tf.GradientTape` that watched `x` meanwhile.
    """

    x: tf.Tensor
    logits: tf.Tensor
    tape: tf.GradientTape

    @classmethod
    def of(cls, f, x):
        """The forward pass of the function `f` at `x`."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            logits = f(x)
        return cls(x, logits, tape)

    @classmethod
    def of_model(cls, model, x, training):
        """A model's outputs, which must be logits, and the `Forward`."""
        with (
            tf.GradientTape(persistent=True) as tape,
            kernels.better_gradients(model),
        ):
            tape.watch(x)
            outputs = model(x, training=training)
            class_logits = logits.class_logits(outputs)
        return outputs, cls(x, class_logits, tape)

    def gradient(self, upstream):
        """The gradient of sum(upstream * logits) by `x`, of its shape."""
        return self.tape.gradient(self.logits, self.x, upstream)


class Attack:
    """Base of all attacks. Subclasses implement `search` and `get_config`.

    Attacks are immutable: make a new one for other settings.
    """

    def __call__(self, model, x, y=None):
        """The adversarial inputs: `x` + `perturb(model, x, y)`."""
        return logits.cast_inputs(model, x) + self.perturb(model, x, y)

    def perturb(self, model, x, y=None):
        """The perturbation alone, of the shape of `x`. See `run`."""
        return self.run(model, x, y).perturbation

    # A caller's AutoGraph would rewrite the attack, constants included.
    @tf.autograph.experimental.do_not_convert
    def run(self, model, x, y=None):
        """Attacks a batch.

        Outside of a `tf.function` the attack is compiled, once for each
        model; inside one it becomes part of it.

        Args:
            model: a built Keras classifier, see `logits_model`.
            x: (B, ...), what the model takes, of any number dtype.
            y: labels, see `sparse_labels`. None: those that the model
                predicts.

        Returns:
            `AttackResult`.

        Raises:
            ValueError: if `x` or `y` do not have the model's shapes.
        """
        x = logits.cast_inputs(model, x)
        if not tf.executing_eagerly():
            return self.search(logits.logits_model(model), x, y)
        search, num_classes = _compiled(self, model, x.dtype, y is not None)
        if y is None:
            return search(x)
        y = logits.sparse_labels(y, num_classes)
        if len(y) != len(x):
            raise ValueError(
                f"y: expected {len(x)} labels, one for each input; received "
                f"{len(y)}."
            )
        return search(x, y)

    def search(self, network, x, y=None, forward=None):
        """As `run`, in the graph at hand, for a network that gives logits.

        Args:
            network: a built `keras.Model` that gives logits.
            x: (B, ...), of the network's `working_dtype`.
            y: as in `run`.
            forward: the network's `Forward` at `x`, in inference mode, where
                the caller has it already; attacks may save one by it.

        Returns:
            `AttackResult`.
        """
        raise NotImplementedError

    def get_config(self):
        """The constructor's arguments, for Keras serialisation."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config):
        """The attack that `get_config` describes."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(
            f"{key}={value!r}" for key, value in self.get_config().items()
        )
        return f"{type(self).__name__}({arguments})"

    # Attacks of equal settings are equal, and share what is compiled.
    def __eq__(self, other):
        return repr(self) == repr(other)

    def __hash__(self):
        return hash(repr(self))


@functools.lru_cache(maxsize=16)
def _compiled(attack, model, dtype, labeled):
    """`attack.search` as one graph, and the number of classes of `model`."""
    network = logits.logits_model(model)
    signature = [tf.TensorSpec(logits.input_shape(model), dtype)]
    if labeled:
        signature.append(tf.TensorSpec((None,), tf.int32))

    @tf.function(input_signature=signature, autograph=False)
    def search(*batch):
        return attack.search(network, *batch)

    return search, logits.num_classes(model)


def functional_form(network):
    """A network as a function of its inputs and of its weights.

    Reading the weights once, outside, and passing them in lets a gradient
    reach them through `tf.custom_gradient`, and leaves losses, seeds and
    statistics of the network untouched.

    Args:
        network: a built `keras.Model` that gives logits.

    Returns:
        (f, weights): `f(x, weights)` gives the `class_logits` in inference
        mode; `weights` is a list of the network's floating weights' values.
    """
    variables = [v for v in network.variables if "float" in v.dtype]

    def f(x, weights):
        mapping = list(zip(variables, weights, strict=True))
        with (
            keras.StatelessScope(state_mapping=mapping),
            kernels.better_gradients(network),
        ):
            return logits.class_logits(network(x, training=False))

    return f, [tf.convert_to_tensor(v.value) for v in variables]
