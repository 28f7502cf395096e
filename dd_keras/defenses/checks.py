"""Checks of models, inputs and labels, before and while a defence trains."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import derivatives
from dd_keras.attacks.forward import trace_inference
from dd_keras.classifier import graphs, logits
from dd_keras.classifier.inputs import unpack
from dd_keras.classifier.labels import sparse_labels
from dd_keras.defenses.regularization_warmup import RegularizationWarmup
from dd_keras.training import StopAtNaN
from dd_keras.utils import keras_internals


def check_model(
    model: keras.Model,
    network: keras.Model,
    needs_second_derivatives: bool,
    defense: str,
) -> None:
    """Refuses a model that cannot be defended, and warns of what may surprise.

    Args:
        model: the classifier.
        network: its logits model.
        needs_second_derivatives: whether training differentiates the gradient
            by the inputs once more.
        defense: the name of the defence's class.

    Raises:
        ValueError: if the logits have no gradient by the inputs, or, where it
            is needed, no right second derivative.
    """
    concrete = trace_inference(network)
    if not graphs.differentiable(concrete):
        raise ValueError(
            "model: expected logits that depend on the inputs in a "
            f"differentiable way; those of {model.name!r} do not, as behind "
            "an Embedding, a Discretization or an argmax. Wrap the part behind "
            "it: keras.Model(embedded, model.output)."
        )
    layers = keras_internals.layer_names(network)
    if needs_second_derivatives:
        derivatives.require_second_derivatives(concrete.graph, layers)
    random = graphs.random_operations(concrete)
    if random:
        names = {graphs.layer_at(op, layers) or op for op in random}
        warnings.warn(
            f"model: {model.name!r} is random in inference mode (layers "
            f"{sorted(names)}): two calls differ, and attacks that do not "
            "average over this make it look more robust than it is.",
            stacklevel=4,  # where the model is wrapped
        )
    if getattr(type(model), "train_step", None) is not keras.Model.train_step:
        warnings.warn(
            f"model: the train_step of {type(model).__name__} is not called; "
            f"{defense} has its own, which minimises the compiled loss. What "
            "it adds to that is lost.",
            stacklevel=4,
        )


def require_norm(argument: str, attack: Any, norm: float) -> None:
    """Checks that an attack has the norm of the attack in training.

    Raises:
        ValueError: if it has a norm, which is another.
    """
    if getattr(attack, "norm", norm) != norm:
        raise ValueError(
            f"{argument}: expected one of the norm {norm:g}, that of the "
            f"attack in training; received {attack!r}."
        )


def require_distance(argument: str, attack: Any) -> float:
    """Checks that an attack looks for a distance; returns the norm of it.

    Raises:
        ValueError: if it is targeted, has an eps, or has no norm.
    """
    if (
        not hasattr(attack, "norm")
        or getattr(attack, "eps", None) is not None
        or attack.targeted
    ):
        raise ValueError(
            f"{argument}: expected an untargeted attack with a norm and no "
            f"eps, which looks for a distance; received {attack!r}."
        )
    return attack.norm


def check_arrays(
    model: keras.Model, x: object = None, y: object = None, *_: Any
) -> None:
    """Checks inputs and labels that are arrays, before anything is compiled.

    Args:
        model: the classifier.
        x: what `fit` takes for inputs; only a NumPy array is looked at, also
            one in a dict or list.
        y: likewise.

    Raises:
        ValueError: if inputs are not finite, or labels no classes.
    """
    x = unpack(x)
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                "x: expected finite inputs; received NaN or infinity in "
                f"{np.sum(~finite)} of {len(x)}, the first of them input "
                f"{np.argmin(finite)}."
            )
    if isinstance(y, np.ndarray):
        with named_assertions():
            sparse_labels(y, logits.num_classes(model))


@contextlib.contextmanager
def named_assertions() -> Iterator[None]:
    """Raises a failed check of a batch as a ValueError of one line.

    Raises:
        ValueError: in place of TensorFlow's `InvalidArgumentError`.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        said = re.search(
            r"(?:\[|^)((?:x|y|batch): expected .*?)(?:\] |\n|$)", error.message
        )
        if said is None:
            raise
        raise ValueError(f"{said[1].rstrip('. ')}.") from error


def with_guard(
    callbacks: Any, own: Sequence[keras.callbacks.Callback] = ()
) -> Any:
    """The callbacks, and one that ends a training whose loss is not finite.

    Args:
        callbacks: what `fit` takes. One that looks for NaN itself is enough.
        own: the defence's, which are called behind any warm-up.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    callbacks = keras.tree.flatten(callbacks or [])
    warm_ups = [isinstance(c, RegularizationWarmup) for c in callbacks]
    place = len(callbacks) - warm_ups[::-1].index(True) if any(warm_ups) else 0
    callbacks[place:place] = own
    guards = (StopAtNaN, keras.callbacks.TerminateOnNaN)
    if any(isinstance(callback, guards) for callback in callbacks):
        return callbacks
    return [StopAtNaN(), *callbacks]
