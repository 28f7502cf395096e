"""What every attack shares: its face, and its compiled form."""

import reprlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import derivatives, kernels
from dd_keras.classifier import compiled, graphs, logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.utils import keras_internals, validation
from dd_keras.utils.config import EqualByConfig

# Share of the valid range by which an input may leave it: what preprocessing
# in float32 does to the pixels at its ends. So near to an end is at that end.
ROUNDING = 1e-5


class AttackResult(NamedTuple):
    """What an attack found, sample by sample.

    Attributes:
        perturbation: floating, (B, ...): what to add to the inputs.
        predictions: int32, (B,): the classes of the clean inputs.
        fooled: bool, (B,): whether the perturbed class is no longer the
            source (of a targeted attack: whether it is the target; of
            DeepFool on samples that were misclassified and are pulled to
            their label: whether it is the label).
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
        """The gradient of sum(upstream * logits) by `x`, of its shape.

        Raises:
            ValueError: if there is none.
        """
        gradient = self.tape.gradient(self.logits, self.x, upstream)
        if gradient is None:
            raise ValueError(
                "model: expected logits that depend on the inputs in a "
                "differentiable way; received one whose gradient is none, as "
                "behind an Embedding, an argmax or any rounding to integers. "
                "Wrap the part behind it."
            )
        return gradient


class Attack(EqualByConfig):
    """Base of all attacks. Subclasses implement `search` and `get_config`.

    Attacks are immutable: make a new one for other settings. They are
    deterministic: the same attack on the same batch finds the same.

    Attributes:
        bounds: None, or the (low, high) that adversarial inputs keep to.
        targeted: whether `y` holds the classes to reach, not to leave.
    """

    bounds = None
    targeted = False

    def __call__(self, model, x, y=None, **kwargs):
        """The adversarial inputs: `x` + `perturb(model, x, y)`."""
        x = logits.cast_inputs(model, x)
        return x + self.perturb(model, x, y, **kwargs)

    def perturb(self, model, x, y=None, **kwargs):
        """The perturbation alone, of the shape of `x`. See `run`."""
        return self.run(model, x, y, **kwargs).perturbation

    # A caller's AutoGraph would rewrite the attack, constants included.
    @tf.autograph.experimental.do_not_convert
    def run(self, model, x, y=None, *, batch_size=None, verbose=0):
        """Attacks a batch.

        Outside of a `tf.function` the attack is compiled, once for each
        model, and again when the model has changed (`compiled.function`);
        inside one it becomes part of it.

        Args:
            model: a built Keras classifier, see `logits_model`.
            x: (B, ...), what the model takes, of any number dtype.
            y: labels, see `sparse_labels`; of a targeted attack the classes
                to reach. None: the labels that the model predicts.
            batch_size: attacks so many samples at a time, outside of a
                `tf.function`; None: all at once.
            verbose: 1 shows a progress bar over these batches, 0 nothing.

        Returns:
            `AttackResult`.

        Raises:
            ValueError: if `x` or `y` do not have the model's shapes, `x` is
                not finite or not within `bounds`, or a targeted attack has no
                `y`. In a graph, values are not looked at.
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
            lambda: _traced(self, model, x.dtype, y is not None),
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
        return AttackResult(
            *(tf.concat(column, 0) for column in zip(*parts, strict=True))
        )

    def check_bounds(self, x):
        """Makes sure that inputs keep to `bounds`, but for rounding.

        Args:
            x: (B, ...) tensor that has a value.

        Raises:
            ValueError: if one does not, or `bounds` are of another shape.
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

    def within_bounds(self, x, perturbation):
        """The perturbation cut short where `x` + it leaves `bounds`."""
        if self.bounds is None:
            return perturbation
        low, high = self.limits(x)
        return tf.minimum(tf.maximum(perturbation, low - x), high - x)

    def limits(self, x):
        """The bounds of inputs like `x`, (low, high), of its dtype.

        Raises:
            ValueError: if these do not broadcast against one sample.
        """
        low, high = (np.asarray(b, x.dtype.as_numpy_dtype) for b in self.bounds)
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
            f"{key}={reprlib.repr(value)}"
            for key, value in self.get_config().items()
        )
        return f"{type(self).__name__}({arguments})"


def _traced(attack, model, dtype, labeled):
    """`attack.search` as one graph, and the number of classes of `model`."""
    network = logits.logits_model(model)
    signature = [tf.TensorSpec(logits.input_shape(model), dtype)]
    if labeled:
        signature.append(tf.TensorSpec((None,), tf.int32))

    @tf.function(input_signature=signature, autograph=False)
    def search(*batch):
        return attack.search(network, *batch)

    with derivatives.missing_named(network):
        search.get_concrete_function()
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


def traced(network):
    """A network in inference mode, as attacks see it, as a graph.

    Args:
        network: a built `keras.Model` that gives logits.

    Returns:
        A concrete function of the inputs.
    """
    spec = logits.working_spec(network)
    with kernels.better_gradients(network):
        return graphs.trace(lambda x: network(x, training=False), spec)


def inference_form(network):
    """A network as a function of its inputs alone, to their `class_logits`.

    For attacks that no gradient travels back through; see `functional_form`.
    """
    f, weights = functional_form(network)
    return lambda x: f(x, weights)


def decide(logits):
    """The class decided for: (B,) int32."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def mask_class(logits, y):
    """The logits with class y ruled out."""
    others = tf.range(logits.shape[-1]) != y[:, None]  # (B, n)
    return tf.where(others, logits, float("-inf"))


def margin(logits, y, targeted=False):
    """By how much a decision holds: what an attack brings below zero.

    Args:
        logits: (B, n).
        y: (B,) int32, the class to leave, or to reach if `targeted`.
        targeted: which of the two.

    Returns:
        (B,): f_y - max_(k != y) f_k, or its negative if `targeted`.
    """
    own = tf.gather(logits, y, batch_dims=1)
    difference = own - tf.reduce_max(mask_class(logits, y), axis=-1)
    return -difference if targeted else difference


def ascent(logits, y, targeted=False):
    """The cross-entropy's gradient by the logits, up to a positive factor.

    It is p - onehot(y) = (1 - p_y) * (r - onehot(y)), with p the softmax and
    r the softmax over all classes but y. Attacks need its direction only;
    without the factor it does not vanish where the softmax saturates, and in
    float32 1 - p_y is zero from logits 17 apart.

    Args:
        logits: (B, n).
        y: (B,) int32.
        targeted: whether to go down instead.

    Returns:
        (B, n), to be handed to `Forward.gradient`.
    """
    others = tf.nn.softmax(mask_class(logits, y))
    own = tf.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    return own - others if targeted else others - own


def reached(logits, y, targeted=False):
    """Whether an attack is at its end: (B,) bool. Arguments as in `margin`."""
    return tf.equal(decide(logits), y) == targeted


def rows_to_move(active):
    """The rows still active; under XLA, which needs fixed shapes, all."""
    if keras_internals.compiled_by_xla():
        return tf.range(tf.size(active))
    return tf.cast(tf.where(active)[:, 0], tf.int32)


def put(values, rows, new):
    """`values` with `new` in the given rows."""
    return tf.tensor_scatter_nd_update(values, rows[:, None], new)
