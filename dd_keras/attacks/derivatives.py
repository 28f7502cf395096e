"""Second derivatives that TensorFlow gets wrong, or does not have.

Deep Defense differentiates the gradient by the inputs once more. TensorFlow's
first derivatives are correct; its second derivatives fail in three ways:

- `tf.nn.moments`, in LayerNormalization and GroupNormalization, treats the
  mean inside the variance as a constant. The first derivative is the same, as
  the missing term is zero; the derivative of that term is not. `exact_moments`
  differentiates the mean.
- The gradient of bilinear resizing is registered as not differentiable, so
  that terms are silently missing; the gradients of other resizings and of
  softsign have no derivative registered. They are replaced here.
- Some operations have no second derivative, here neither.
  `require_second_derivatives` refuses those known by name when a model is
  wrapped; `name_missing_gradients` reports the others in the first step.
"""

import contextlib
import re
from collections.abc import Iterator

import keras
import tensorflow as tf

from dd_keras.classifier import graphs, logits
from dd_keras.utils import keras_internals

# Operations without a second derivative, or with one that is silently zero
# (those that imitate quantisation).
WITHOUT_SECOND_DERIVATIVE = {
    "BatchNormWithGlobalNormalization",
    "CropAndResize",
    "Dilation2D",
    "FakeQuantWithMinMaxArgs",
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
    "FractionalAvgPool",
    "FractionalMaxPool",
    "LRN",
    "MaxPoolWithArgmax",
}
_SECOND = "second derivative"
_FROZEN_MEAN = "tf.nn.moments"
_WHAT_TO_DO = (
    "Deep Defense differentiates the gradient by the inputs once more. Build "
    "the layer from other operations, or choose a defence that needs no "
    "second derivative, such as AdversarialTrainingModel."
)
_TRACED_BEFORE = (
    "As it was traced before, in a tf.function of the model's own, it takes "
    "the mean for a constant. Call `call` without that tf.function (Keras "
    "compiles it anyway), and tf.nn.moments by this name."
)


def exact_moments() -> contextlib.AbstractContextManager:
    """A context in which `tf.nn.moments` has the correct second derivative.

    Values and first derivatives are the same up to rounding. What a
    `tf.function` traced earlier stays as it was.
    """
    return keras_internals.moments_replaced_by(_moments)


def _moments(x, axes, shift=None, name=None, keep_dims=None, keepdims=None):
    """As `tf.compat.v1.nn.moments`, but the mean is not a constant."""
    del shift  # TensorFlow does not use it either
    keep = bool(keep_dims or keepdims)
    with tf.name_scope(name or "moments"):
        x = tf.convert_to_tensor(x)
        # The squares overflow in half precision.
        y = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
        mean = tf.reduce_mean(y, axes, keepdims=True)
        variance = tf.reduce_mean(
            tf.math.squared_difference(y, mean), axes, keepdims=True
        )
        if not keep:
            mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def require_second_derivatives(graph: tf.Graph, layers: set[str]) -> None:
    """Refuses operations that have no second derivative, or a wrong one.

    Args:
        graph: `tf.Graph`, a forward pass traced inside of `exact_moments`.
        layers: names of the layers that may be found in it.

    Raises:
        ValueError: names the layer, the operation, and what to do.
    """
    definition = graph.as_graph_def()
    bodies = [definition.node]
    bodies += [body.node_def for body in definition.library.function]
    for nodes in bodies:
        for node in nodes:
            if node.op in WITHOUT_SECOND_DERIVATIVE:
                raise _refusal(node.op, node.name, layers)
        for name in _frozen_means(nodes):
            raise _refusal(_FROZEN_MEAN, name, layers, _TRACED_BEFORE)


def _frozen_means(nodes):
    """Names of the `stop_gradient`s inside of moments, in nodes of a graph."""
    by_name = {node.name: node for node in nodes}

    def inputs(node):
        return [re.sub("^\\^|:.*$", "", name) for name in node.input]

    for node in nodes:
        if node.op == "SquaredDifference":
            for name in inputs(node):
                stop = by_name.get(name)
                if stop is None or stop.op != "StopGradient":
                    continue
                mean = by_name.get(inputs(stop)[0])
                if mean is not None and mean.op == "Mean":
                    yield stop.name


@contextlib.contextmanager
def name_missing_gradients(network: keras.Model) -> Iterator[None]:
    """A context in which an error for a missing gradient names the layer.

    Args:
        network: the `keras.Model` that is differentiated.

    Raises:
        ValueError: in place of TensorFlow's LookupError; names the layer, the
            operation, and what to do.
    """
    try:
        yield
    except LookupError as error:
        missing = re.search(r"registry has no entry for: (\w+)", str(error))
        if missing is None:
            raise
        layers = keras_internals.layer_names(network)
        scope, order = _place_of(missing[1], network)
        raise _refusal(missing[1], scope, layers, order=order) from error


def _place_of(op_type, network):
    """The name of an operation in a network, and which derivative it lacks.

    Args:
        op_type: the type of the operation.
        network: a `keras.Model`.

    Returns:
        (str, empty if it is not found; `"derivative"` if it is in the forward
        pass, `"second derivative"` if it is in its gradient).
    """

    def forward(x):
        return network(x, training=False)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        return tape.gradient(y, x)

    spec = logits.working_spec(network)
    for call, order in ((forward, "derivative"), (gradient, _SECOND)):
        for op in graphs.trace(call, spec).graph.get_operations():
            if op.type == op_type:
                return op.name, order
    return "", _SECOND


def _refusal(op, scope, layers, advice=_WHAT_TO_DO, order=_SECOND):
    """The error for an operation, found at this place of a graph."""
    layer = graphs.layer_at(scope, layers)
    named = f"layer {layer!r}" if layer else "a layer"
    return ValueError(
        f"model: {named} computes {op}, which has no {order} in TensorFlow, "
        f"or a wrong one. {advice}"
    )


def _replace_gradient(op_type):
    """Registers a function as the gradient of an operation, for TensorFlow's.

    The values are the same; but TensorFlow's gradient has a wrong derivative,
    or none. If it cannot be replaced, the operation is refused.
    """

    def decorate(function):
        entry = keras_internals.gradient_registry().get(op_type)
        if entry is None:
            WITHOUT_SECOND_DERIVATIVE.add(op_type)
        else:
            entry["type"] = function
        return function

    return decorate


@_replace_gradient("Softsign")
def _softsign(op, upstream):
    """The slope of x / (1 + |x|) is 1 / (1 + |x|)^2."""
    return upstream / tf.square(1.0 + tf.abs(op.inputs[0]))


# Resizing is linear: its gradient is its adjoint, whose gradient is the
# resizing itself. Images of any dtype become float32, and so do upstreams.


def _resizing(op, upstream):
    """The gradient of nearest, bilinear and bicubic resizing."""
    image, size = op.inputs[0], tf.shape(upstream)[1:3]
    resize = getattr(tf.raw_ops, op.type)
    adjoint = getattr(tf.raw_ops, f"{op.type}Grad")
    settings = {
        name: op.get_attr(name)
        for name in ("align_corners", "half_pixel_centers")
    }
    if op.type == "ResizeNearestNeighbor":
        like = {"size": tf.shape(image)[1:3]}
    else:
        like = {"original_image": image}
    by_image = _adjoint_pair(
        lambda values: adjoint(grads=values, **like, **settings),
        lambda images: resize(images=images, size=size, **settings),
    )
    return by_image(upstream), None


for _op_type in ("ResizeNearestNeighbor", "ResizeBilinear", "ResizeBicubic"):
    _replace_gradient(_op_type)(_resizing)


@_replace_gradient("ScaleAndTranslate")
def _scale_and_translate(op, upstream):
    """The gradient of resizing with antialiasing."""
    image, size = op.inputs[0], tf.shape(upstream)[1:3]
    settings = {
        "scale": op.inputs[2],
        "translation": op.inputs[3],
        "kernel_type": op.get_attr("kernel_type"),
        "antialias": op.get_attr("antialias"),
    }

    def adjoint(values):
        gradient = tf.raw_ops.ScaleAndTranslateGrad(
            grads=values,
            original_image=tf.cast(image, tf.float32),  # it takes no other
            **settings,
        )
        return tf.cast(gradient, image.dtype)

    by_image = _adjoint_pair(
        adjoint,
        lambda images: tf.raw_ops.ScaleAndTranslate(
            images=images, size=size, **settings
        ),
    )
    return by_image(upstream), None, None, None


def _adjoint_pair(adjoint, forward):
    """The adjoint of a linear function, whose gradient is the function."""

    @tf.custom_gradient
    def apply_adjoint(values):
        def gradient(images):
            return tf.cast(forward(images), values.dtype)

        return adjoint(values), gradient

    return apply_adjoint
