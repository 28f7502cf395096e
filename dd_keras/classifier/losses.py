"""Classification losses and metrics for logits or for probabilities."""

from collections.abc import Callable
from typing import Any

import keras

# Each cross-entropy: Keras' function, its loss and its metric, if there is one.
_CROSSENTROPIES: dict[Callable, tuple[type, type | None]] = {
    keras.losses.sparse_categorical_crossentropy: (
        keras.losses.SparseCategoricalCrossentropy,
        keras.metrics.SparseCategoricalCrossentropy,
    ),
    keras.losses.categorical_crossentropy: (
        keras.losses.CategoricalCrossentropy,
        keras.metrics.CategoricalCrossentropy,
    ),
    keras.losses.categorical_focal_crossentropy: (
        keras.losses.CategoricalFocalCrossentropy,
        None,
    ),
    keras.losses.binary_crossentropy: (
        keras.losses.BinaryCrossentropy,
        keras.metrics.BinaryCrossentropy,
    ),
    keras.losses.binary_focal_crossentropy: (
        keras.losses.BinaryFocalCrossentropy,
        None,
    ),
}
# Metrics of two classes by name, with the threshold of one logit.
_AT_THRESHOLD: dict[str, tuple[type, dict[str, Any]]] = {
    **dict.fromkeys(
        ("accuracy", "acc", "binary_accuracy", "BinaryAccuracy"),
        (keras.metrics.BinaryAccuracy, {"threshold": 0.0}),
    ),
    **dict.fromkeys(
        ("precision", "Precision"), (keras.metrics.Precision, {"thresholds": 0})
    ),
    **dict.fromkeys(
        ("recall", "Recall"), (keras.metrics.Recall, {"thresholds": 0})
    ),
    **dict.fromkeys(("auc", "AUC"), (keras.metrics.AUC, {"from_logits": True})),
}
_REGRESSION = {
    "cosinesimilarity", "huber", "logcosh", "meanabsoluteerror",
    "meanabsolutepercentageerror", "meansquarederror",
    "meansquaredlogarithmicerror", "poisson",
}  # fmt: skip


def classification_loss(loss: Any, activation: str) -> Any:
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
    for function, (crossentropy, _) in _CROSSENTROPIES.items():
        # By name, "CategoricalCrossentropy", Keras makes an object of it.
        if loss is function or (by_name and type(loss) is crossentropy):
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


def classification_metrics(
    metrics: Any, activation: str, one_output: bool
) -> Any:
    """The metrics a user means, fit to logits or to probabilities.

    By name, a cross-entropy does not say which of the two it takes, and what
    decides between two classes takes 0.5 for the threshold, which for one
    logit is 0.

    Args:
        metrics: what `keras.Model.compile` takes for one output: names,
            functions, `keras.metrics.Metric`s, in lists or dicts; or None.
        activation: what the model ends in, as in `classification_loss`.
        one_output: whether the model has one output, of two classes.

    Returns:
        The same, of the same structure, with metrics in the place of the
        names concerned. Anything else is as it came.
    """
    if isinstance(metrics, dict):
        return {
            key: classification_metrics(value, activation, one_output)
            for key, value in metrics.items()
        }
    if isinstance(metrics, (list, tuple)):
        return [
            classification_metrics(metric, activation, one_output)
            for metric in metrics
        ]
    if not isinstance(metrics, str) or activation != "linear":
        return metrics
    if one_output and metrics in _AT_THRESHOLD:
        make, setting = _AT_THRESHOLD[metrics]
        return make(name=metrics, **setting)
    try:
        found = keras.metrics.get(metrics)
    except ValueError:
        return metrics  # for Keras to complain of
    for function, (_, crossentropy) in _CROSSENTROPIES.items():
        if crossentropy is not None and (
            found is function or type(found) is crossentropy
        ):
            return crossentropy(name=metrics, from_logits=True)
    return metrics
