"""Every private name of Keras and TensorFlow that this library relies on.

Each function says which private name it uses, why there is no public way, and
what happens where the name is gone. Names are looked up when a function is
called, so that `import dd_keras` works whatever Keras or TensorFlow moves.

Tried with: TensorFlow 2.18, 2.20, 2.21; Keras 3.8 to 3.15 (`make matrix`).
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

_moments_lock = threading.RLock()
_moments_depth = 0
_stock_moments = None


def layers_of(
    model: keras.layers.Layer, include_self: bool = True
) -> Iterator[keras.layers.Layer]:
    """All layers of a model, those inside of other layers too.

    `keras.Layer._flatten_layers`: `model.layers` stops at the first level.

    Args:
        model: a `keras.Layer`.
        include_self: whether the model is one of them.

    Returns:
        Iterator of `keras.Layer`.
    """
    return model._flatten_layers(include_self=include_self)


def layer_names(model: keras.layers.Layer) -> set[str]:
    """The names of all layers of a model, see `layers_of`: a set of str."""
    return {layer.name for layer in layers_of(model)}


def operation_of(tensor: keras.KerasTensor) -> Any:
    """The Keras operation that a symbolic `KerasTensor` is an output of.

    `KerasTensor._keras_history`: Keras' own graph of a functional model has
    no public form that goes from an output to its layer.
    """
    return tensor._keras_history.operation


def arguments_of(tensor: keras.KerasTensor) -> list[keras.KerasTensor]:
    """The symbolic tensors that this one's operation was called with.

    `KerasTensor._keras_history`, as above, and `Operation._inbound_nodes`: an
    operation may have been called several times.
    """
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index].input_tensors


def inner_functional(layer: keras.layers.Layer) -> keras.Model | None:
    """The functional model that a built `keras.Sequential` calls, or None.

    `Sequential._functional`: it is new after `add` and `pop`, which is how
    one sees that the model has changed.
    """
    return getattr(layer, "_functional", None)


def gradient_registry() -> dict[str, dict[str, Any]]:
    """TensorFlow's dict of operation type to {"type": gradient function}.

    `ops.gradient_registry._registry`: `tf.RegisterGradient` refuses to
    replace an entry, and nothing takes one back. An empty dict where the name
    is gone: then entries that are looked for are not found.
    """
    from tensorflow.python.framework import ops

    return getattr(ops.gradient_registry, "_registry", {})


@contextlib.contextmanager
def moments_replaced_by(moments: Callable) -> Iterator[None]:
    """While it is open, `tf.nn.moments` and what Keras makes of it call this.

    `nn_impl.moments`: it is the function that both `tf.nn.moments` and Keras
    look up when they are called.

    Args:
        moments: a function with the signature of `tf.compat.v1.nn.moments`.
    """
    from tensorflow.python.ops import nn_impl

    global _moments_depth, _stock_moments
    with _moments_lock:  # replicas trace in threads of their own
        if _moments_depth == 0:
            _stock_moments, nn_impl.moments = nn_impl.moments, moments
        _moments_depth += 1
    try:
        yield
    finally:
        with _moments_lock:
            _moments_depth -= 1
            if _moments_depth == 0:
                nn_impl.moments = _stock_moments


def compiled_by_xla() -> bool:
    """Whether the code running now is traced for XLA (`jit_compile=True`).

    `control_flow_util.GraphOrParentsInXlaContext`. Under XLA shapes must be
    static: a loop masks what it would drop elsewhere.
    """
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def build_training_state(model: keras.Model, batch: Any) -> None:
    """Creates the variables of a compiled model's optimizer and metrics.

    `Model._symbolic_build` and `_compile_metrics`: what Keras itself calls
    under a distribution strategy. No public method builds metrics given by
    name. Where the names are gone, or the batch does not suit the model, the
    first step creates the variables, and says what is wrong.

    Args:
        model: a compiled `keras.Model`.
        batch: (x, y, sample_weight) or a part of it, arrays or `tf.TensorSpec`s
            of a batch.
    """
    metrics = getattr(model, "_compile_metrics", None)
    if metrics is not None and not getattr(metrics, "built", True):
        with contextlib.suppress(Exception):
            model._symbolic_build(data_batch=batch)
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def patch_multi_worker_fit() -> None:
    """Lets Keras `fit` under a `MultiWorkerMirroredStrategy`.

    Keras 3.8 to 3.15 cannot (issue 20585 of keras-team/keras), for two
    reasons. To build a model they take the mean of the replicas' parts of a
    batch, where one of them is needed; this also fails on one machine if they
    differ in size. And they take the mean of the workers' logs along their
    first axis, where they are scalars.

    Patches `keras.src.backend.tensorflow.trainer`. Does nothing where these
    names are gone. tests/test_distribution.py fails once Keras can:
    then remove this.
    """
    try:
        from keras.src.backend.tensorflow import trainer as keras_trainer

        reduce_per_replica = keras_trainer.reduce_per_replica
        trainer = keras_trainer.TensorFlowTrainer
        symbolic_build = trainer._maybe_symbolic_build
    except (ImportError, AttributeError):
        return
    if hasattr(reduce_per_replica, "patched"):
        return

    def build(self, iterator=None, data_batch=None):
        if iterator is not None and self._distribute_strategy is not None:
            spread = next(next(iter(iterator))[2])
            data_batch = keras.tree.map_structure(
                lambda value: (
                    self.distribute_strategy.experimental_local_results(value)[
                        0
                    ]
                ),
                spread,
            )
        symbolic_build(self, data_batch=data_batch)

    def reduce(values, strategy, reduction):
        if reduction != "auto":
            return reduce_per_replica(values, strategy, reduction)
        return keras.tree.map_structure(
            lambda value: strategy.reduce("MEAN", value, axis=None), values
        )

    reduce.patched = True  # type: ignore[attr-defined]
    trainer._maybe_symbolic_build = build
    keras_trainer.reduce_per_replica = reduce
