"""From any Keras classifier to its logits, and from any labels to classes.

Cross-entropy, DeepFool and every decision rule here work on logits: the
softmax saturates, its gradients vanish, and the class it favours is the same.
"""

import keras
import tensorflow as tf

ACTIVATIONS = ("softmax", "sigmoid", "linear")

# Operations that hand their first input on unchanged, up to shape and dtype.
_TRANSPARENT = {"Identity", "Cast", "Reshape", "Squeeze", "ExpandDims"}
_SATURATING = {"Softmax", "Sigmoid"}
# Operations that classifiers end in when their outputs are logits. A
# log-softmax counts: differences of log-probabilities are those of logits.
_LINEAR = {
    "MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "BiasAdd",
    "Add", "AddV2", "Mean", "LogSoftmax",
}  # fmt: skip
# Smallest probability told from zero. The logarithm of less is -inf in
# float32 arithmetic that flushes denormal numbers.
_SMALLEST_PROBABILITY = 1e-37
# Largest distance of a sigmoid's value from 1 that float32 cannot resolve.
_SIGMOID_MARGIN = 6e-8


def logits_model(model, activation=None):
    """The same classifier up to its logits, sharing its weights.

    The softmax or sigmoid at the end of a `Sequential` or functional model,
    as a layer or as the last layer's activation, also inside a nested model,
    is left out. A model with a method `logits_model()` is asked for its own.
    In other subclassed models the logits are recovered from the
    probabilities: log p after a softmax (equal to the logits up to one
    constant a sample, so that differences are the same) and log p -
    log(1 - p) after a sigmoid. In float32 these lose their gradient where
    p < 1e-37, and a sigmoid's also where p rounds to 1.

    Args:
        model: a built Keras classifier with one input and one output of shape
            (B, n), n classes, or (B, 1), one logit or probability.
        activation: what the model ends in, `"softmax"`, `"sigmoid"` or
            `"linear"` (its outputs are logits). By default read off the
            graph of the model.

    Returns:
        A `keras.Model` from the same input to logits, (B, n) or (B, 1); the
        model itself if it already gives logits.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if it is not built, has several inputs or outputs, outputs
            of another rank, or an ending that cannot be told.
    """
    own = getattr(model, "logits_model", None)
    if callable(own):  # a wrapper that knows better than its graph tells
        return own()
    activation = output_activation(model, activation)
    if activation == "linear":
        return model
    return _without_activation(model, activation) or ProbabilitiesToLogits(
        model, activation
    )


def output_activation(model, activation=None):
    """What a classifier ends in: `"softmax"`, `"sigmoid"` or `"linear"`.

    Args and Raises: see `logits_model`.
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(
            f"activation: expected one of {ACTIVATIONS} or None; received "
            f"{activation!r}."
        )
    output = _trace(model)
    if activation is not None:
        return activation
    op = _origin(output)
    if op.type in _SATURATING:
        return op.type.lower()
    # A mean or a sum of probabilities is no logit.
    mixes = any(_origin(tensor).type in _SATURATING for tensor in op.inputs)
    if op.type in _LINEAR and not mixes:
        return "linear"
    raise ValueError(
        f"model: cannot tell whether the outputs of {model.name!r} are logits "
        f"or probabilities (its last operation is {op.type}). Say which: pass "
        f"activation= with one of {ACTIVATIONS}."
    )


def _origin(tensor):
    """The operation a tensor comes from, but for shape and dtype."""
    op = tensor.op
    while op.type in _TRANSPARENT:
        op = op.inputs[0].op
    return op


def num_classes(model):
    """The number of classes a classifier tells apart; 2 for one output."""
    return max(2, _trace(model).shape[-1])


def same_in_training(model):
    """Whether a model computes the same in training as in inference.

    Dropout, batch statistics and the like make it False; whatever cannot be
    told to be the same does, too.

    Args:
        model: a built Keras classifier.
    """
    graphs = [_trace(model, training).graph for training in (True, False)]
    one, other = (
        graph.as_graph_def().SerializeToString(deterministic=True)
        for graph in graphs
    )
    return one == other


def input_shape(model):
    """The shape of a batch of inputs, (None, ...)."""
    return _input_spec(model).shape


def working_dtype(model):
    """What norms and logits are computed in, also under mixed precision.

    `"float64"` for a model with float64 weights, else `"float32"`.
    """
    precise = any(v.dtype == "float64" for v in model.variables)
    return "float64" if precise else "float32"


def cast_inputs(model, x):
    """Inputs in the precision that norms and logits are computed in.

    Args:
        model: a built Keras classifier.
        x: (B, ...) tensor or array of any number dtype.

    Returns:
        `x` as a tensor of the model's `working_dtype`.

    Raises:
        ValueError: if `x` does not have the shape that the model takes.
    """
    x = tf.convert_to_tensor(x)
    expected = input_shape(model)
    if not expected.is_compatible_with(x.shape):
        raise ValueError(
            f"x: expected inputs of shape {tuple(expected)}; received "
            f"{tuple(x.shape)}."
        )
    return tf.cast(x, working_dtype(model))


def class_logits(logits):
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


def sparse_labels(y, num_classes):
    """Labels as class numbers, whatever form they came in.

    Args:
        y: classes of shape (B,) or (B, 1), of any number dtype, or one-hot
            (also smoothed) rows of shape (B, num_classes).
        num_classes: number of classes n.

    Returns:
        int32 tensor of shape (B,), in [0, n).

    Raises:
        ValueError: if the shape is another.
        tf.errors.InvalidArgumentError: if a label is outside [0, n), no
            whole number, or not finite. XLA has no assertions: there this is
            not checked.
    """
    y = tf.convert_to_tensor(y)
    width = y.shape[-1] if y.shape.rank == 2 else 1
    if y.shape.rank not in (1, 2) or width not in (1, num_classes):
        known = y.shape.rank is not None
        raise ValueError(
            "y: expected labels of shape (batch,), (batch, 1) or one-hot "
            f"(batch, {num_classes}); received shape "
            f"{tuple(y.shape) if known else 'unknown'}."
        )
    if width == num_classes and num_classes > 1:
        if y.dtype.is_floating:
            y = tf.debugging.assert_all_finite(y, "y: expected finite labels.")
        return tf.argmax(y, axis=-1, output_type=tf.int32)
    labels = tf.cast(tf.reshape(y, [-1]), tf.int64)
    limit = tf.constant(num_classes, tf.int64)
    message = f"y: expected labels in [0, {num_classes})."
    # Before they are cast to int32, where 2^32 + 1 is 1.
    assertions = [
        tf.debugging.assert_non_negative(labels, message),
        tf.debugging.assert_less(labels, limit, message),
    ]
    if y.dtype.is_floating:
        assertions.append(
            tf.debugging.assert_equal(
                tf.cast(labels, y.dtype),
                tf.reshape(y, [-1]),
                "y: expected whole numbers as labels.",
            )
        )
    with tf.control_dependencies(assertions):
        return tf.cast(labels, tf.int32)


@keras.saving.register_keras_serializable("dd_keras")
class WithoutActivation(keras.layers.Layer):
    """Applies a layer with its activation left out, sharing its weights.

    Args:
        layer: a built Keras layer with an `activation` attribute.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
        self.layer = layer

    def call(self, inputs):
        """Returns the layer's pre-activation outputs."""
        activation = self.layer.activation
        self.layer.activation = keras.activations.linear
        try:
            return self.layer(inputs)
        finally:
            self.layer.activation = activation

    def get_config(self):
        """Returns the constructor's arguments."""
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        """Builds the layer from what `get_config` returned."""
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        config.pop("dtype", None)
        return cls(layer, **config)


@keras.saving.register_keras_serializable("dd_keras")
class ProbabilitiesToLogits(keras.Model):
    """A classifier's logits, recovered from its probabilities.

    Args:
        model: a built Keras classifier that gives probabilities.
        activation: `"softmax"` or `"sigmoid"`.
    """

    def __init__(self, model, activation, **kwargs):
        super().__init__(**kwargs)
        self.model = model
        self.activation = activation
        self.built = True

    def call(self, inputs, training=None):
        """Maps inputs to log p (softmax) or log p - log(1 - p) (sigmoid)."""
        p = self.model(inputs, training=training)
        if p.dtype != tf.float64:
            p = tf.cast(p, tf.float32)
        log_p = tf.math.log(tf.maximum(p, _SMALLEST_PROBABILITY))
        if self.activation == "softmax":
            return log_p
        return log_p - tf.math.log(tf.maximum(1.0 - p, _SIGMOID_MARGIN))

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config):
        """Builds the model from what `get_config` returned."""
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        return cls(model, **config)


def _input_spec(model):
    """Shape, with a free batch size, and dtype of a model's one input."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "model: expected a keras.Model; received "
            f"{type(model).__name__} {model!r}."
        )
    if not model.built:
        raise ValueError(
            f"model: expected a built model; {model.name!r} has no weights "
            "yet. Call it on a batch, or model.build((None, ...)), first."
        )
    own = getattr(model, "logits_model", None)
    if callable(own):
        return _input_spec(own())
    inputs = getattr(model, "inputs", None)
    if inputs is None:
        config = model.get_build_config() or {}
        shape = config.get("input_shape", config.get("shapes_dict"))
        shapes = [shape] if _is_shape(shape) else list((shape or {}).values())
        specs = [tf.TensorSpec(s, keras.config.floatx()) for s in shapes]
    else:
        specs = [tf.TensorSpec(s.shape, s.dtype) for s in inputs]
    if len(specs) != 1:
        raise ValueError(
            "model: expected a classifier with one input tensor; "
            f"{model.name!r} has {len(specs)}."
        )
    return tf.TensorSpec((None, *specs[0].shape[1:]), specs[0].dtype)


def _trace(model, training=False):
    """The symbolic output of a model; checks its form."""
    call = tf.function(lambda x: model(x, training=training), autograph=False)
    spec = _input_spec(model)
    outputs = call.get_concrete_function(spec).structured_outputs
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    if not tf.is_tensor(outputs):
        is_list = isinstance(outputs, (list, tuple))
        found = len(outputs) if is_list else f"a {type(outputs).__name__}"
        raise ValueError(
            "model: expected a classifier with one output tensor; "
            f"{model.name!r} has {found}. Wrap the one to defend: "
            "keras.Model(model.input, model.outputs[0])."
        )
    if outputs.shape.rank != 2 or outputs.shape[-1] is None:
        raise ValueError(
            "model: expected outputs of shape (batch, classes); those of "
            f"{model.name!r} are {tuple(outputs.shape)}."
        )
    return outputs


def _is_shape(spec):
    return isinstance(spec, (tuple, list)) and all(
        size is None or isinstance(size, int) for size in spec
    )


def _without_activation(model, activation):
    """A functional model without its last activation, or None."""
    if getattr(model, "outputs", None) is None:
        return None  # subclassed: its call is opaque
    operation, node_index, _ = model.outputs[0]._keras_history
    inputs = operation._inbound_nodes[node_index].input_tensors
    # The activation must be the one meant, and the layer one of Keras': only
    # there is it known to be the last thing that happens.
    ends_in_it = getattr(operation, "activation", None) is getattr(
        keras.activations, activation
    ) and type(operation).__module__.startswith("keras.")
    nothing_else = (
        activation == "softmax" and isinstance(operation, keras.layers.Softmax)
    ) or (ends_in_it and isinstance(operation, keras.layers.Activation))
    if len(inputs) != 1:
        return None
    if isinstance(operation, keras.Model):
        logits = logits_model(operation, activation)(inputs[0])
    elif nothing_else:
        logits = inputs[0]
    elif ends_in_it:
        logits = WithoutActivation(operation)(inputs[0])
    else:
        return None
    return keras.Model(model.inputs[0], logits, name=f"{model.name}_logits")
