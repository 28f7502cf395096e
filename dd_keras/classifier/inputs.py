"""The input of a classifier: one tensor, alone or in a dict or list."""

from typing import Any

import keras
import tensorflow as tf


def input_spec(model: keras.Model) -> tf.TensorSpec:
    """Shape, with a free batch size, and dtype of a model's one input.

    Args:
        model: a built Keras classifier.

    Returns:
        `tf.TensorSpec`.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if it is not built, or has several inputs, or one of
            strings.
    """
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
        return input_spec(own())
    inputs = getattr(model, "inputs", None)
    if inputs is not None:
        specs = [tf.TensorSpec(s.shape, s.dtype) for s in inputs]
    else:
        shapes = _flat_shapes(_built_with(model))
        specs = [tf.TensorSpec(s, keras.config.floatx()) for s in shapes]
    if len(specs) != 1:
        raise ValueError(
            "model: expected a classifier with one input tensor; "
            f"{model.name!r} has {len(specs)}."
        )
    if specs[0].dtype == tf.string:
        raise ValueError(
            "model: expected a classifier of numbers, which can be perturbed; "
            f"{model.name!r} takes strings. Wrap the part of it behind the "
            "embedding, keras.Model(embedded, model.output)."
        )
    return tf.TensorSpec((None, *specs[0].shape[1:]), specs[0].dtype)


def takes_plain_tensor(model: keras.Model) -> bool:
    """Whether a model's input is a tensor alone, not one in a dict or list."""
    structure = _structure(model)
    return not isinstance(structure, (dict, list, tuple))


def pack(model: keras.Model, x: tf.Tensor) -> Any:
    """A tensor in the structure that a model takes, a dict for one.

    Args:
        model: a built Keras classifier with one input.
        x: (B, ...) tensor.
    """
    structure = _structure(model)
    if not isinstance(structure, (dict, list, tuple)):
        return x
    return keras.tree.pack_sequence_as(structure, [x])


def unpack(x: Any) -> Any:
    """The one tensor of what `fit` passes on, also out of a dict or list.

    Args:
        x: (B, ...) tensor or array, or a dict, list or tuple with just one.

    Returns:
        The tensor. What is none of these is returned as it came.

    Raises:
        ValueError: if there are several.
    """
    if not isinstance(x, (dict, list, tuple)):
        return x
    leaves = keras.tree.flatten(x)
    if isinstance(x, (list, tuple)) and not hasattr(leaves[0], "shape"):
        return x  # numbers, to be made a tensor of
    if len(leaves) != 1:
        raise ValueError(
            "x: expected one input tensor; received "
            f"{type(x).__name__} of {len(leaves)}."
        )
    return leaves[0]


def has_preprocessor(model: keras.Model) -> bool:
    """Whether a model's `fit` and `predict` prepare their inputs first.

    KerasHub's tasks do, by a `preprocessor` that is no part of their `call`.
    """
    return (
        callable(getattr(model, "preprocess_samples", None))
        and getattr(model, "preprocessor", None) is not None
    )


def prepare(
    model: keras.Model, x: Any, y: Any = None, sample_weight: Any = None
) -> tuple[Any, Any, Any]:
    """A batch as `fit` and `predict` of a model pass it to its `call`.

    To be called in a graph: eagerly, KerasHub rounds resized uint8 images,
    and `predict` does not.

    Args:
        model: a Keras classifier, see `has_preprocessor`.
        x: (B, ...), or a dict or list with one tensor.
        y: labels, or None.
        sample_weight: (B,), or None.

    Returns:
        (x, y, sample_weight), x being a tensor.
    """
    if has_preprocessor(model):
        batch = model.preprocess_samples(x, y, sample_weight)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    return unpack(x), y, sample_weight


def _structure(model):
    """The structure of a model's input, its leaves being anything."""
    if callable(getattr(model, "logits_model", None)):
        return None  # a `DefenseModel`, which packs them itself
    if getattr(model, "inputs", None) is None:
        built_with = _built_with(model)
        if not isinstance(built_with, dict):
            return None
        return dict.fromkeys(built_with, 0)  # None would be no leaf
    if isinstance(model, keras.Sequential):
        return None
    return getattr(model, "input", None)


def _built_with(model):
    """The shape, or dict of shapes, that a subclassed model was built with."""
    config = model.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None:
        shapes = config.get("shapes_dict") or {}
        shape = next(iter(shapes.values())) if len(shapes) == 1 else shapes
    return shape


def _flat_shapes(shape):
    """All shapes in a structure of them."""
    if _is_shape(shape):
        return [shape]
    parts = shape.values() if isinstance(shape, dict) else (shape or ())
    return [one for part in parts for one in _flat_shapes(part)]


def _is_shape(spec):
    return isinstance(spec, (tuple, list)) and all(
        size is None or isinstance(size, int) for size in spec
    )
