"""Cache of compiled functions, kept with the model they belong to."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras

from dd_keras.utils import keras_internals

# Functions kept for one model; each holds a graph. Beyond, the one that was
# not asked for longest goes.
_MOST = 16
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
# What Keras sets in any layer or model, and what it does while it trains: no
# graph of an inference depends on it. `trainable` and the dtype are asked for.
_OF_KERAS = frozenset(vars(keras.layers.Layer())) | frozenset(
    vars(keras.Model())
)
_OF_TRAINING = frozenset(
    {
        "compiled",
        "history",
        "loss",
        "optimizer",
        "predict_function",
        "stop_evaluating",
        "stop_predicting",
        "stop_training",
        "test_function",
        "train_function",
        "_self_update_uid",
    }
)
_IGNORED = _OF_KERAS | _OF_TRAINING


def function(model: keras.Model, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` built for this model and key, built once.

    It is built again once the model has changed: other layers, or another
    activation, variable, `trainable`, dtype or other setting of a layer.
    Changes of the values of weights, and what training sets, are none. Not
    seen are changes inside of an object that a layer holds (an entry of an
    array or of a dict).

    What was built is held by the model alone, so that both go together, and
    at most 16 of them.

    Args:
        model: a `keras.Model`, or whatever it is that `make` refuses.
        key: hashable, what else the function depends on.
        make: function of no arguments that builds it, and traces it.

    Returns:
        What `make` returned.
    """
    if not isinstance(model, keras.Model):
        return make()  # raises, and says what is wrong
    # Not by setattr: Keras would track it, and save what it holds.
    held = vars(model).setdefault("_dd_keras_compiled", _Held())
    with held.lock:
        entry = held.entries.pop(key, None)
        if entry is None or not _same(entry[0], _state(model)):
            built, gradients = _made(make)
            # As it is now: tracing may have changed the layers' own notes.
            entry = _state(model), built, gradients
        held.entries[key] = entry  # the latest is last
        while len(held.entries) > _MOST:
            held.entries.pop(next(iter(held.entries)))
    return entry[1]


def _made(make):
    """What `make` returns, and the gradient functions that it registered.

    TensorFlow keeps what `tf.custom_gradient` registers in a graph for as
    long as the process lives, and all that it refers to: the model. Here it
    gets a weak reference instead, and the caller holds the function.
    """
    registry = keras_internals.gradient_registry()
    before = set(registry)
    built = make()
    gradients = []
    for name in set(registry) - before:
        entry = registry[name]
        gradients.append(entry["type"])
        entry["type"] = _weak(entry["type"])
    return built, gradients


def _weak(function):
    reference = weakref.ref(function)
    return lambda *arguments: reference()(*arguments)


class _Held:
    """A dict that Keras does not look into when it saves a model."""

    def __init__(self) -> None:
        self.entries: dict[Hashable, tuple] = {}
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: dict) -> "_Held":
        return _Held()  # what is compiled is of the original

    def __reduce__(self) -> tuple:
        return _Held, ()


def _state(model):
    """What a graph of the model depends on: plain values, and objects."""
    plain, objects = [], []
    for layer in keras_internals.layers_of(model):
        objects.append(layer)
        # Of `Sequential`: what it calls, new after `add` and `pop`.
        objects.append(keras_internals.inner_functional(layer))
        plain += (layer.trainable, layer.dtype_policy.name)
        for name, value in vars(layer).items():
            if name in _IGNORED:
                continue
            if _is_plain(value):
                plain += (name, value)
            elif callable(value) or hasattr(value, "dtype"):
                plain.append(name)
                objects.append(value)
    return plain, objects


def _is_plain(value):
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _same(one, other):
    """Whether two states agree: values by ==, objects by identity."""
    return one[0] == other[0] and (
        len(one[1]) == len(other[1])
        and all(a is b for a, b in zip(one[1], other[1], strict=True))
    )
