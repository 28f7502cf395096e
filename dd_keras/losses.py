"""Classification losses that fit what a model puts out."""

import keras

_CROSSENTROPIES = {
    keras.losses.sparse_categorical_crossentropy: (
        keras.losses.SparseCategoricalCrossentropy
    ),
    keras.losses.categorical_crossentropy: (
        keras.losses.CategoricalCrossentropy
    ),
    keras.losses.categorical_focal_crossentropy: (
        keras.losses.CategoricalFocalCrossentropy
    ),
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.binary_focal_crossentropy: (
        keras.losses.BinaryFocalCrossentropy
    ),
}
_REGRESSION = {
    "cosinesimilarity", "huber", "logcosh", "meanabsoluteerror",
    "meanabsolutepercentageerror", "meansquarederror",
    "meansquaredlogarithmicerror", "poisson",
}  # fmt: skip


def classification_loss(loss, activation):
    """The loss a user means, fit to logits or to probabilities.

    A cross-entropy by name does not say which of the two it takes; Keras
    would assume probabilities, and silently train on nonsense where the
    model gives logits.

    Args:
        loss: what `keras.Model.compile` takes for one output: a name, a
            function, a `keras.losses.Loss`, or None.
        activation: what the model ends in, `"softmax"`, `"sigmoid"` or
            `"linear"`, see `dd_keras.classifier.logits.output_activation`.

    Returns:
        A loss for `compile`: a named cross-entropy with the right
        `from_logits`, anything else as it came.

    Raises:
        ValueError: if `loss` is one of Keras' regression losses, or takes
            logits for probabilities or the reverse.
    """
    by_name = isinstance(loss, str)
    loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", type(loss).__name__)
    if name.replace("_", "").lower() in _REGRESSION:
        raise ValueError(
            "loss: expected a classification loss, such as "
            f"'sparse_categorical_crossentropy'; received {name}."
        )
    from_logits = activation == "linear"
    named = type(loss) if by_name else None  # "CategoricalCrossentropy"
    crossentropy = _CROSSENTROPIES.get(loss, named)
    if crossentropy in _CROSSENTROPIES.values():
        return crossentropy(from_logits=from_logits)
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    if config.get("from_logits", from_logits) != from_logits:
        outputs = "logits" if from_logits else "probabilities"
        raise ValueError(
            f"loss: expected from_logits={from_logits}, since the model's "
            f"outputs are {outputs}; received {name}"
            f"(from_logits={not from_logits})."
        )
    return loss
