"""From any Keras classifier to its logits.

Cross-entropy, DeepFool and every decision rule here work on logits: the
softmax saturates, its gradients vanish, and the class it favours is the same.
"""

from typing import Any

import keras
import tensorflow as tf

from dd_keras.classifier import graphs, inputs
from dd_keras.classifier.logit_layers import (
    Logits,
    ProbabilitiesToLogits,
    WithoutActivation,
    probabilities_to_logits,
)
from dd_keras.utils import keras_internals

ACTIVATIONS = ("softmax", "sigmoid", "linear")


def logits_model(
    model: keras.Model, activation: str | None = None
) -> keras.Model:
    """The classifier without its final activation, with shared weights.

    The softmax or sigmoid at the end of a `Sequential` or functional model is
    removed, whether it is a layer or the last layer's activation, and also in
    a nested model. If the model has a method `logits_model()`, its result is
    returned. For others (subclassed models, custom softmax layers, averaged
    ensembles) the logits are recovered from the probabilities: log p after a
    softmax (equal to the logits up to a constant per sample, so differences
    are the same) and log p - log(1 - p) after a sigmoid. In float32 their
    gradient vanishes where p < 1e-37, and a sigmoid's also where p rounds to
    1.

    Args:
        model: a built Keras classifier with one numeric input (a tensor, or a
            dict or list of one) and one output of shape (B, n), for n classes,
            or (B, 1), a single logit or probability.
        activation: the final activation of the model, `"softmax"`,
            `"sigmoid"` or `"linear"` (the outputs are logits). None: found
            from the model or its graph.

    Returns:
        A `keras.Model` from one floating tensor of the same shape to logits,
        (B, n) or (B, 1); the model itself if it already is one.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if it is not built, has several inputs or outputs, outputs
            of another rank, an unknown final activation, or no gradient with
            respect to its input.

    Example:
        >>> softmax = keras.Sequential([classifier, keras.layers.Softmax()])
        >>> network = dd_keras.logits_model(softmax)
        >>> print(np.allclose(network(x_test), classifier(x_test), atol=1e-4))
        True
    """
    own = getattr(model, "logits_model", None)
    if callable(own):  # a wrapper knows better than its graph shows
        return own()
    given, activation = activation, output_activation(model, activation)
    model = _of_floating_tensor(model)
    if activation == "linear":
        known = given is None or _found_activation(model) == activation
        return model if known else _marked(model)
    network = _without_activation(model, activation)
    if network is None:
        return _recovered(model, activation)
    # What is below a softmax may end in anything: mark it as logits, so that
    # `activation` need not be given again.
    known = _activation_by_layer(network) == "linear"
    return network if known else _marked(network)


def output_activation(model: keras.Model, activation: str | None = None) -> str:
    """What a classifier ends in: `"softmax"`, `"sigmoid"` or `"linear"`.

    Args and Raises: see `logits_model`.
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(
            f"activation: expected one of {ACTIVATIONS} or None; received "
            f"{activation!r}."
        )
    own = getattr(model, "logits_model", None)
    if callable(own):  # a `DefenseModel`, which found out already
        activation = activation or getattr(model, "activation", None)
    _check_outputs(model)
    activation = activation or _found_activation(model)
    if activation is None:
        last = graphs.last_operation(_traced_output(model))
        raise ValueError(
            "model: cannot tell whether the outputs of "
            f"{model.name!r} are logits or probabilities (its last operation "
            f"is {last}). Say which: pass activation= with one of "
            f"{ACTIVATIONS}."
        )
    return activation


def num_outputs(model: keras.Model) -> int:
    """The number of columns of a classifier's output."""
    return _check_outputs(model)[-1]


def num_classes(model: keras.Model) -> int:
    """The number of classes of a classifier; 2 for one output."""
    return max(2, num_outputs(model))


def same_in_training(model: keras.Model) -> bool:
    """Whether a model computes the same in training as in inference.

    Dropout, batch statistics and the like make it False; so does whatever
    cannot be shown to be the same.

    Args:
        model: a built Keras classifier.
    """
    one, other = (
        _trace(model, training)
        .graph.as_graph_def()
        .SerializeToString(deterministic=True)
        for training in (True, False)
    )
    return one == other


def input_shape(model: keras.Model) -> tf.TensorShape:
    """The shape of a batch of inputs, (None, ...)."""
    return inputs.input_spec(model).shape


def working_dtype(model: keras.Model) -> str:
    """What norms and logits are computed in, also under mixed precision.

    `"float64"` for a model with float64 weights, else `"float32"`.
    """
    precise = any(v.dtype == "float64" for v in model.variables)
    return "float64" if precise else "float32"


def working_spec(model: keras.Model) -> tf.TensorSpec:
    """A batch of inputs as attacks see it: `tf.TensorSpec`."""
    return tf.TensorSpec(input_shape(model), working_dtype(model))


def cast_inputs(model: keras.Model, x: Any) -> tf.Tensor:
    """Inputs in the precision that norms and logits are computed in.

    Args:
        model: a built Keras classifier.
        x: (B, ...) tensor or array of any number dtype, or a dict or list
            with one.

    Returns:
        `x` as a tensor of the model's `working_dtype`.

    Raises:
        ValueError: if `x` does not have the shape that the model takes.
    """
    x = tf.convert_to_tensor(inputs.unpack(x))
    expected = input_shape(model)
    if not expected.is_compatible_with(x.shape):
        raise ValueError(
            f"x: expected inputs of shape {tuple(expected)}; received "
            f"{tuple(x.shape)}."
        )
    return tf.cast(x, working_dtype(model))


def class_logits(logits: tf.Tensor) -> tf.Tensor:
    """Logits with one column a class, in float32 or float64.

    Args:
        logits: (B, n), or (B, 1) for a binary classifier with one logit z.

    Returns:
        (B, n), or (B, 2): the two-class case f = (0, z). Half precision
        becomes float32.
    """
    if logits.dtype != tf.float64:
        logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        logits = tf.concat([tf.zeros_like(logits), logits], axis=-1)
    return logits


def log_probabilities(outputs: tf.Tensor, activation: str) -> tf.Tensor:
    """The logarithms of the classes' probabilities, by a model's outputs.

    Args:
        outputs: (B, n) or (B, 1), of a classifier.
        activation: what it ends in, `"softmax"`, `"sigmoid"` or `"linear"`.

    Returns:
        (B, n), or (B, 2) of one output, in float32 or float64.
    """
    if activation != "linear":
        outputs = probabilities_to_logits(outputs, activation)
    return tf.nn.log_softmax(class_logits(outputs))


def _check_outputs(model):
    """The shape of a model's one output, (None, n).

    Raises:
        ValueError: if it has several, or one of another form.
    """
    inputs.input_spec(model)  # checks the model, too
    outputs = getattr(model, "outputs", None)
    if outputs is None:
        outputs = _trace(model).structured_outputs
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    if not hasattr(outputs, "shape"):
        is_list = isinstance(outputs, (list, tuple))
        found = len(outputs) if is_list else f"a {type(outputs).__name__}"
        raise ValueError(
            "model: expected a classifier with one output tensor; "
            f"{model.name!r} has {found}. Wrap the one to defend: "
            "keras.Model(model.input, model.outputs[0])."
        )
    shape = tf.TensorShape(outputs.shape)
    if shape.rank != 2 or shape[-1] is None:
        raise ValueError(
            "model: expected outputs of shape (batch, classes); those of "
            f"{model.name!r} are {tuple(shape)}."
        )
    return shape


def _trace(model, training=False):
    """A model's call, with its input in a tensor alone, as a graph."""

    def call(x):
        return model(inputs.pack(model, x), training=training)

    return graphs.trace(call, inputs.input_spec(model))


def _traced_output(model):
    """The output of a model in its graph."""
    output = _trace(model).structured_outputs
    return output[0] if isinstance(output, (list, tuple)) else output


def _found_activation(model):
    """The activation by a model's last layer, or its graph; else None."""
    return _activation_by_layer(model) or graphs.ending(_traced_output(model))


def _last_layer(model):
    """The layer or model that a functional model ends in; None for others."""
    outputs = getattr(model, "outputs", None)
    return keras_internals.operation_of(outputs[0]) if outputs else None


def _activation_by_layer(model):
    """The activation that a model's last layer shows; else None."""
    layer = _last_layer(model)
    if isinstance(layer, (Logits, WithoutActivation, ProbabilitiesToLogits)):
        return "linear"
    if isinstance(layer, keras.Model):
        return _activation_by_layer(layer)
    if not _is_keras(layer):
        return None
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    # What goes into an `Activation("linear")` may be anything.
    affine = isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))
    if name == "linear" and affine:
        return name
    is_activation = affine or isinstance(layer, keras.layers.Activation)
    return name if name in ("softmax", "sigmoid") and is_activation else None


def _is_keras(layer):
    """Whether a layer is one of Keras' own, whose call is known."""
    return type(layer).__module__.startswith("keras.")


def _of_floating_tensor(model):
    """The same model, from one floating tensor that is in no dict or list."""
    dtype = inputs.input_spec(model).dtype
    functional = getattr(model, "inputs", None) is not None
    if functional and not dtype.is_floating:
        floating = keras.Input(
            model.inputs[0].shape[1:], dtype=working_dtype(model)
        )
        model = keras.models.clone_model(
            keras.Model(model.inputs[0], model.outputs[0], name=model.name),
            input_tensors=floating,
            clone_function=lambda layer: layer,  # shared, not copied
        )
    if inputs.takes_plain_tensor(model):
        return model
    if functional:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    x = keras.Input(inputs.input_spec(model).shape[1:], dtype=dtype)
    return keras.Model(x, model(inputs.pack(model, x)), name=model.name)


def _recovered(model, activation):
    """The logits of a model, from its probabilities."""
    layer = ProbabilitiesToLogits(activation, dtype=working_dtype(model))
    return _followed_by(layer, model)


def _marked(model):
    """A model that is known, from then on, to give logits."""
    return _followed_by(Logits(), model)


def _followed_by(layer, model):
    """A functional model of a model and a layer on top of it."""
    if getattr(model, "inputs", None) is None:
        x = keras.Input(
            inputs.input_spec(model).shape[1:], dtype=working_dtype(model)
        )
        y = model(x)
    else:
        x, y = model.inputs[0], model.outputs[0]
    return keras.Model(x, layer(y), name=f"{model.name}_logits")


def _without_activation(model, activation):
    """A functional model without its last activation, or None."""
    layer = _last_layer(model)
    if layer is None:
        return None  # subclassed: its call is opaque
    given = keras_internals.arguments_of(model.outputs[0])
    if len(given) != 1:
        return None
    # The activation must be the one meant, and the layer one of Keras': only
    # there is it known to be the last thing that happens.
    ends_in_it = getattr(layer, "activation", None) is getattr(
        keras.activations, activation
    ) and _is_keras(layer)
    nothing_else = (
        activation == "softmax" and isinstance(layer, keras.layers.Softmax)
    ) or (ends_in_it and isinstance(layer, keras.layers.Activation))
    if isinstance(layer, keras.Model):
        if getattr(layer, "outputs", None) is None:
            return None
        logits = logits_model(layer, activation)(given[0])
    elif nothing_else:
        logits = given[0]
    elif ends_in_it:
        logits = WithoutActivation(layer)(given[0])
    else:
        return None
    return keras.Model(model.inputs[0], logits, name=f"{model.name}_logits")
