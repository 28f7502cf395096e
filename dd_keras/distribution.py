"""Training on several devices or machines: TensorFlow's own strategies.

A model that is built and compiled in the scope of a strategy is trained by
`fit` on all of its replicas. Each replica takes its share of every batch, and
all apply the same update. A batch size is that of all replicas together.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dd_keras.utils import keras_internals, validation

__all__ = [
    "NAMES",
    "barrier",
    "from_chief",
    "is_chief",
    "num_workers",
    "strategy",
    "worker_index",
]

NAMES = ("none", "mirrored", "multi_worker")

# What TensorFlow says in a worker whose partners are gone.
_LOST = ("Collective ops is aborted", "heartbeat", "Connection reset")


def strategy(
    name: str = "none",
    *,
    replicas: int | None = None,
    cluster_resolver: tf.distribute.cluster_resolver.ClusterResolver
    | None = None,
) -> tf.distribute.Strategy:
    """A strategy of `tf.distribute`, by name.

    Call it at the start of the program: devices and the connection to other
    workers cannot be set up once TensorFlow has computed something.

    Args:
        name: `"none"`: one device. `"mirrored"`: all GPUs of this machine, or
            its CPU as several logical devices. `"multi_worker"`: several
            processes, usually one per machine, each with all its GPUs. All are
            started with the same command, and find each other through
            `TF_CONFIG`, as TensorFlow documents it, through Slurm's `srun`, or
            through `cluster_resolver`.
        replicas: for `"mirrored"`: number of devices; None for all GPUs, or
            one device without a GPU. Without a GPU, the CPU is split into this
            many logical devices: not faster, but it computes what several GPUs
            would.
        cluster_resolver: for `"multi_worker"`: any
            `tf.distribute.cluster_resolver.ClusterResolver`.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: if an argument is not as above, if there are fewer devices
            than `replicas`, or if no workers are specified.
        RuntimeError: if the CPU has to be split but is already in use.

    Example:
        >>> strategy = dd_keras.distribution.strategy("mirrored")
        >>> with strategy.scope():
        ...     classifier = keras.models.clone_model(classifier)
        ...     model = dd_keras.DefenseModel(classifier)
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, verbose=0)
        >>> strategy.num_replicas_in_sync >= 1  # the GPUs, or the CPU alone
        True
    """
    validation.validate_choice("name", name, NAMES)
    if replicas is not None and (
        name != "mirrored" or type(replicas) is not int or replicas < 1
    ):
        raise ValueError(
            "replicas: expected a positive integer, with 'mirrored', or None; "
            f"received {replicas!r} with {name!r}."
        )
    if name != "none":
        keras_internals.patch_multi_worker_fit()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_devices(replicas))
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver or _cluster_resolver()
        )
    return tf.distribute.get_strategy()


def _devices(replicas):
    """The names of the devices to mirror the weights on."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if not gpus:
        _part_cpu(replicas or 1)
    elif (replicas or 1) > gpus:
        raise ValueError(
            f"replicas: expected at most {gpus}, the GPUs of this machine; "
            f"received {replicas}."
        )
    kind = "GPU" if gpus else "CPU"
    return [f"{kind}:{place}" for place in range(replicas or gpus or 1)]


def _part_cpu(parts):
    """Makes several logical devices of the CPU, unless it is one that is."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    there = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(there) >= parts:
        return
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * parts
    )


def _cluster_resolver():
    """Who the workers are, from the environment."""
    given = os.environ.get("TF_CONFIG")
    if given:
        _check_tf_config(given)
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _slurm_resolver()
    raise ValueError(
        "multi_worker: expected the environment to tell of the workers, in "
        "TF_CONFIG as TensorFlow documents it, or as Slurm's srun does; "
        "received neither."
    )


def _check_tf_config(given):
    """TensorFlow's own errors tell nothing of where they come from."""
    try:
        config = json.loads(given)
        task = config["task"]
        members = config["cluster"][task["type"]]
        address = members[task["index"]] if task["index"] >= 0 else None
        if not isinstance(address, str):
            raise TypeError(f"task {task} has no address")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            'TF_CONFIG: expected JSON such as {"cluster": {"worker": '
            '["host1:12345", "host2:12345"]}, "task": {"type": "worker", '
            f'"index": 0}}}}; received {given!r} '
            f"({type(error).__name__}: {error})."
        ) from error


def _slurm_resolver():
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver
    if "CUDA_VISIBLE_DEVICES" in os.environ or shutil.which("nvidia-smi"):
        return resolver()
    # It hands out a machine's GPUs to its tasks, and fails where there is
    # none to hand out: let it believe in one a task.
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    return resolver(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)


def is_chief() -> bool:
    """Whether this process is the chief, the worker that writes files.

    It depends on the strategy in scope. A single process is always the chief.

    Example:
        >>> if dd_keras.distribution.is_chief():
        ...     classifier.save("classifier.keras")
        >>> os.path.exists("classifier.keras")
        True
    """
    return worker_index() == 0


def worker_index() -> int:
    """The index of this process among the workers; the chief's is 0.

    Example:
        >>> dd_keras.distribution.worker_index()
        0
    """
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or not resolver.task_type:
        return 0
    jobs = resolver.cluster_spec().as_dict()
    if resolver.task_type == "chief":
        return 0
    return resolver.task_id + ("chief" in jobs)


def num_workers() -> int:
    """The number of processes that train, by the strategy in scope.

    Example:
        >>> dd_keras.distribution.num_workers()  # without TF_CONFIG
        1
    """
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or not resolver.task_type:
        return 1
    jobs = resolver.cluster_spec().as_dict()
    return sum(len(jobs.get(job, ())) for job in ("chief", "worker"))


def from_chief(value: Any) -> Any:
    """Broadcasts a value from the chief to all workers, which must all call.

    Args:
        value: anything that JSON can hold; ignored except in the chief.

    Returns:
        The chief's `value`.

    Example:
        >>> run = {"name": "a", "seed": 3}  # other workers may have another
        >>> dd_keras.distribution.from_chief(run)
        {'name': 'a', 'seed': 3}
    """
    if num_workers() == 1:
        return value
    code = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(_of_chief(np.int32(len(code))))
    mine = np.resize(code, length).astype(np.int32)  # the chief's is as it is
    text = _of_chief(mine).astype(np.uint8).tobytes()
    return json.loads(text.decode())


def barrier() -> None:
    """Waits until all workers have reached this call.

    Example:
        >>> if dd_keras.distribution.is_chief():
        ...     os.makedirs("results")
        >>> dd_keras.distribution.barrier()
        >>> os.path.isdir("results")  # for all workers
        True
    """
    from_chief(None)


def _of_chief(array):
    """The chief's array, of int32; all have the same shape."""
    scope = tf.distribute.get_strategy()
    mine = array if is_chief() else np.zeros_like(array)

    @tf.function
    def share():
        context = tf.distribute.get_replica_context()
        first = context.replica_id_in_sync_group == 0
        value = tf.where(first, mine, tf.zeros_like(mine))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)

    return scope.experimental_local_results(scope.run(share))[0].numpy()


def not_empty(x: tf.Tensor) -> tf.Tensor:
    """A replica's part of a batch, checked to have at least one sample.

    On a CPU, TensorFlow crashes in a convolution of an empty batch.

    Args:
        x: (B, ...), this replica's part of the batch.

    Returns:
        `x`, unchanged.

    Raises:
        tf.errors.InvalidArgumentError: when the step is run, if `x` is empty
            and there are several replicas.

    Example:
        >>> dd_keras.distribution.not_empty(tf.zeros((2, 8, 8, 1))).shape
        TensorShape([2, 8, 8, 1])
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return x
    some = tf.debugging.assert_positive(
        tf.shape(x)[0],
        f"batch: expected samples for each of {replicas} replicas; choose a "
        "batch size that leaves more of them in the last batch.",
    )
    with tf.control_dependencies([some]):
        return tf.identity(x)


def batch_share(samples: tf.Tensor) -> tf.Tensor | None:
    """This replica's share of a batch, relative to an equal share.

    Keras divides the mean over a replica's samples by the number of replicas,
    and sums the gradients. This is the mean over the whole batch only if all
    replicas have equally many samples; multiplied by this share, it always is.

    Args:
        samples: int32 scalar, the number of samples of this replica.

    Returns:
        A float64 scalar; None if there is only one replica.

    Example:
        >>> print(dd_keras.distribution.batch_share(tf.constant(32)))
        None
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return None
    samples = tf.cast(samples, tf.float64)
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, samples)
    return replicas * samples / total


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """A context in which the loss of another worker raises a clear error.

    Raises:
        RuntimeError: instead of TensorFlow's error, if another worker failed,
            was stopped, or cannot be reached.

    Example:
        >>> with dd_keras.distribution.lost_workers_named():
        ...     history = classifier.fit(x_train, y_train, verbose=0)
        >>> len(history.epoch)
        1
    """
    try:
        yield
    except tf.errors.OpError as error:
        if num_workers() == 1 or not any(t in str(error) for t in _LOST):
            raise
        raise RuntimeError(
            f"worker {worker_index()}: another of the {num_workers()} workers "
            "is gone (it failed, was stopped, or cannot be reached), and "
            "training cannot continue without it. See its output; then start "
            "all workers again."
        ) from error
