"""A batch measured by all replicas of a `tf.distribute` strategy."""

import operator
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dd_keras import distribution


def number() -> int:
    """The replicas that evaluate, of the strategy in whose scope this is.

    Raises:
        ValueError: if it has several workers.
    """
    if distribution.num_workers() > 1:
        raise ValueError(
            "evaluate_robustness: expected a strategy of one process; received "
            f"one of {distribution.num_workers()} workers. Let each of them "
            "evaluate its shard=(index, count), without a strategy, and merge "
            "the reports."
        )
    return tf.distribute.get_strategy().num_replicas_in_sync


def traced(function: Callable, spec: tf.TensorSpec) -> Callable:
    """A function of a batch as a graph, each replica taking its part.

    Args:
        function: of a batch (B, ...) to a pair of nested structures of
            tensors: numbers to be added up, and rows, (B, ...).
        spec: of the batch.

    Returns:
        Function of a batch to the pair, of NumPy arrays: the numbers, those of
        all replicas added up, and the rows in the order of the batch.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1:
        return _of_replicas(function, strategy)
    graph = tf.function(function, input_signature=[spec], autograph=False)
    graph.get_concrete_function()  # errors come now
    return lambda x: tf.nest.map_structure(lambda t: t.numpy(), graph(x))


def _of_replicas(function, strategy):
    """`traced`, on the several replicas of a strategy."""
    count = strategy.num_replicas_in_sync

    @tf.function(autograph=False, reduce_retracing=True)
    def on_all(values):
        found = strategy.run(function, (values,))
        return [
            tf.nest.map_structure(
                lambda value, replica=replica: (
                    strategy.experimental_local_results(value)[replica]
                ),
                found,
            )
            for replica in range(count)
        ]

    def run(x):
        parts = np.array_split(np.arange(len(x)), count)
        # On the CPU, TensorFlow dies of a convolution of nothing: a replica
        # too many repeats the first sample, for nothing.
        inputs = [tf.gather(x, part if len(part) else [0]) for part in parts]
        values = strategy.experimental_distribute_values_from_function(
            lambda context: inputs[context.replica_id_in_sync_group]
        )
        found = tf.nest.map_structure(lambda t: t.numpy(), on_all(values))
        numbers = [pair[0] for pair in found[: min(count, len(x))]]
        rows = [
            tf.nest.map_structure(operator.itemgetter(slice(len(part))), own)
            for part, (_, own) in zip(parts, found, strict=True)
        ]
        return (
            tf.nest.map_structure(lambda *values: sum(values), *numbers),
            tf.nest.map_structure(lambda *rows: np.concatenate(rows), *rows),
        )

    return run
