"""Every number of the paper's tables, on any Keras classifier, in one call."""

import numbers
import os
import time
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.attacks.derivatives import name_missing_gradients
from dd_keras.attacks.passes import PassCounter
from dd_keras.classifier import compiled, inputs, logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.evaluation import (
    checkpoint,
    naming,
    reliability,
    replicas,
    streams,
)
from dd_keras.evaluation import metrics as metrics_module
from dd_keras.evaluation.report import Cost, RobustnessReport
from dd_keras.utils import norms, terminal, validation

AnyMetric = str | attacks.Attack | metrics_module.Metric

# Beside the arrays of a batch, with a row for it: what the metrics took.
_PASSES, _SECONDS = "passes", "seconds"


def evaluate_robustness(
    model: keras.Model,
    data: object,
    y: ArrayLike | None = None,
    metrics: AnyMetric | Sequence[AnyMetric] = ("accuracy", "rho2"),
    *,
    batch_size: int | None = None,
    bounds: tuple | None = None,
    misclassified: str = "predicted",
    activation: str | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    shard: tuple[int, int] | None = None,
    verbose: str | int = "auto",
) -> RobustnessReport:
    """Measures the accuracy and robustness of a classifier on a data set.

    The data set is streamed once: memory holds one batch, and a few numbers
    for each sample. All attacks start from the class that the model predicts.

    In the scope of a `tf.distribute` strategy, the replicas share each batch.
    On several machines, let each evaluate a `shard`, and combine the reports
    with `merge_reports`.

    Args:
        model: a built Keras classifier, see `logits_model`.
        data: inputs and labels, as for `fit`, with inputs preprocessed for the
            model: an array of inputs (N, ...), together with `y`; a tuple of
            two arrays (inputs, labels); or, in a fixed order, a batched
            `tf.data.Dataset` of such tuples or a `keras.utils.PyDataset`.
            Sample weights are ignored.
        y: labels, integer or one-hot, if `data` is an array of inputs.
        metrics: what to measure: names, attacks or `Metric` objects, see
            `evaluation.metrics.get` ("accuracy", "rho2", "fgsm_rho", "fgsm",
            "pgd", "cw", "pass", ...). Attacks that would share a name are
            distinguished by the settings in which they differ, as
            `pgd_linf@0.1`.
        batch_size: samples per batch of arrays; None: 32, as in `fit`. Not for
            data sets, which are already batched.
        bounds: (low, high), the valid range of the inputs, numbers or arrays
            that broadcast against a sample, such as `datasets.Data.bounds`.
            Some metrics need it.
        misclassified: how samples that are misclassified without an attack
            count in distances. `"predicted"`, as in the paper: with the
            distance from their predicted class; `"zero"`: with distance 0;
            `"exclude"`: not at all. In accuracies under attack they are
            incorrect, or with `"exclude"` not counted; `accuracy` itself and
            `eps_ref` are always over all samples.
        activation: the final activation of `model`, see `logits_model`.
        checkpoint_dir: directory for the results of finished batches. After
            an interruption, the same call resumes from there and returns the
            identical report. Remove it when it is no longer needed. None: no
            checkpoints.
        shard: (index, count), index from 1 to count: evaluate only this part
            of the data, of consecutive batches. `merge_reports` combines all
            parts to the report of the whole. None: all data.
        verbose: 1 shows a progress bar with the time left, 2 a line at the
            end, 0 nothing; `"auto"`: a bar on a terminal, else a line.

    Returns:
        `RobustnessReport`. Its `warnings`, also issued as Python warnings, are
        reasons not to trust a number, such as a vanishing gradient, random
        outputs, or an attack that is weaker than a simpler one.

    Raises:
        TypeError: if `data` is none of these, or `y` holds names of metrics.
        ValueError: if `y` is missing or of another length; if `y` or
            `batch_size` is given with a data set; if `data` is empty, has no
            labels or invalid ones, batches of a wrong shape, or inputs outside
            `bounds`; if outputs of the model are not finite; if a metric is
            not known; if `checkpoint_dir` belongs to another evaluation; if
            `shard` is not such a pair, if there are more shards than batches,
            or the number of batches is not known; if the strategy in scope has
            several workers.

    Example:
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, ["accuracy", "rho2"], verbose=0
        ... )
        >>> print(report.table())
        100 samples  value  95 % interval  forward  backward  seconds
        ---...
        accuracy     ...
        rho2         ...
        l2           ...
        rho2_fooled  100.00 % ...
        >>> report.summary()["accuracy"] > 0.9
        True
    """
    chosen = _chosen(metrics, bounds)
    validation.validate_choice(
        "misclassified", misclassified, metrics_module.POLICIES
    )
    replicas.number()  # refuses several workers
    stream = streams.of(data, y, batch_size)
    if shard is not None:
        shard = _checked_shard(shard)
        stream = stream.shard(*shard)
    classes = logits.num_classes(model)  # traces the model: once
    first = _checked(model, classes, next(stream.starting_at(0), None), 0)
    progress = checkpoint.Checkpoint(
        checkpoint_dir,
        checkpoint.fingerprint(model, chosen, misclassified, first, shard),
    )
    bar = keras.utils.Progbar(
        stream.batches,
        verbose=terminal.verbosity(verbose),
        unit_name="batch",
    )
    if progress.parts:
        bar.update(len(progress.parts))
    measure = compiled.function(
        model,
        ("evaluate_robustness", activation, chosen, replicas.number()),
        lambda: _traced(model, activation, chosen),
    )
    seconds = np.zeros(len(chosen))  # in this process
    for batch in stream.starting_at(len(progress.parts)):
        x, y = _checked(model, classes, batch, len(progress.parts))
        for metric in chosen:
            for attack in metric.all_attacks.values():
                attack.check_bounds(x)
        part = _measured(measure, chosen, x, y, len(progress.parts))
        seconds += part.pop(_SECONDS)
        progress.add(part)
        bar.add(1)
    if bar.target is None:
        bar.update(len(progress.parts), finalize=True)
    values = {
        name: np.concatenate([part[name] for part in progress.parts])
        for name in progress.parts[0]
    }
    passes = values.pop(_PASSES).sum(axis=0)  # (metrics, 2)
    samples = metrics_module.Samples(
        values, values["labels"] == values["predictions"], misclassified
    )
    found = [
        *reliability.random_outputs(model, first[0]),
        *reliability.reliability_warnings(chosen, samples),
    ]
    for warning in found:
        warnings.warn(warning, stacklevel=2)
    names = [metric.name for metric in chosen]
    return RobustnessReport(
        chosen,
        misclassified,
        values,
        tuple(found),
        {
            name: Cost(*map(int, cost))
            for name, cost in zip(names, passes, strict=True)
        },
        dict(zip(names, map(float, seconds), strict=True)),
        shard,
    )


def _chosen(metrics, bounds):
    """The metrics asked for, each once: a tuple."""
    if isinstance(metrics, (str, attacks.Attack, metrics_module.Metric)):
        metrics = (metrics,)
    found = naming.with_unique_names(metrics, bounds)
    if not found:
        raise ValueError("metrics: expected at least one; received none.")
    return tuple(found)


def _checked_shard(shard):
    """A shard as a pair of integers, (index, count)."""
    try:
        index, count = shard
    except (TypeError, ValueError):
        index = count = None
    if (
        not all(isinstance(n, numbers.Integral) for n in (index, count))
        or not 1 <= index <= count
    ):
        raise ValueError(
            "shard: expected (index, count), two integers, index from 1 to "
            f"count; received {shard!r}."
        )
    return int(index), int(count)


def _checked(model, classes, batch, index):
    """A batch as tensors that the model takes: (inputs, labels)."""
    if batch is None:
        raise ValueError("data: expected at least one batch; received none.")
    if not isinstance(batch, tuple) or len(batch) < 2:
        raise ValueError(
            "data: expected batches of (inputs, labels); received "
            f"{type(batch).__name__} of {len(batch)}."
        )
    try:
        x = logits.cast_inputs(model, _prepared(model, batch[0]))
        y = sparse_labels(batch[1], classes)
        if len(y) != len(x):
            raise ValueError(f"y: expected {len(x)} labels; received {len(y)}.")
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        message = getattr(error, "message", str(error))
        raise ValueError(f"data, batch {index}: {message}") from error
    return x, y


def _prepared(model, x):
    """Inputs as a model's own preprocessor makes them, if it has one."""
    if not inputs.has_preprocessor(model):
        return x
    # Compiled, as in `predict`: eagerly some round to whole pixels.
    prepare = compiled.function(
        model,
        "prepare",
        lambda: tf.function(
            lambda x: inputs.prepare(model, x)[0],
            autograph=False,
            reduce_retracing=True,
        ),
    )
    return prepare(tf.convert_to_tensor(inputs.unpack(x)))


def _traced(model, activation, metrics):
    """All metrics of a batch as one graph, which they share.

    Returns:
        A function of inputs (B, ...) to ((passes, seconds), rows): what each
        metric took, and a dict of arrays for the clean inputs and for each.
    """
    network = logits.logits_model(model, activation)
    spec = logits.working_spec(model)
    counter = PassCounter()

    def measure(x):
        with name_missing_gradients(network), counter.counting():
            return measure_and_count(x)

    def measure_and_count(x):
        f = attacks.inference_form(network)
        forward = attacks.Forward.of(f, x)
        predictions = decisions.predicted_class(forward.logits)
        # Of the margin over each other class: where they all are zero.
        slope = forward.gradient(
            decisions.cross_entropy_logit_gradient(forward.logits, predictions)
        )
        found = {
            None: {
                "predictions": predictions,
                "zero_gradient": norms.sample_norm(slope) < norms.ZERO_NORM,
                "tied": decisions.margin(forward.logits, predictions) == 0,
                # A ReLU may make zeros of inputs that are no numbers.
                "finite": tf.reduce_all(
                    tf.math.is_finite(forward.logits), axis=1
                )
                & tf.reduce_all(
                    tf.math.is_finite(x), axis=range(1, x.shape.rank)
                ),
            }
        }
        marks = [(counter.read(), _clock(found))]
        for metric in metrics:
            # One after the other: side by side they would need more memory.
            done = [*tf.nest.flatten(list(found.values())), *marks[-1]]
            with tf.control_dependencies(done):
                found[metric.name] = metric.measure(network, x, forward)
            marks.append((counter.read(), _clock(found)))
        counts, times = map(tf.stack, zip(*marks, strict=True))
        cost = counts[1:] - counts[:-1], times[1:] - times[:-1]
        return cost, list(found.values())

    return replicas.traced(measure, spec)


def _clock(found):
    """The time in seconds once these are computed, float64 ().

    By the tensors themselves: TensorFlow's optimizer was seen to drop control
    dependencies of `tf.timestamp`.
    """
    return tf.ensure_shape(
        tf.numpy_function(
            lambda *_: time.perf_counter(),
            tf.nest.flatten(list(found.values())),
            tf.float64,
        ),
        [],
    )


def _measured(measure, metrics, x, y, index):
    """What is kept of a batch: dict of name to array."""
    (passes, seconds), (clean, *found) = measure(x)
    broken = int(np.sum(~clean.pop("finite")))
    if broken:
        what = (
            ""
            if np.all(np.isfinite(x.numpy()))
            else "; its inputs are not, either"
        )
        raise ValueError(
            "model: expected finite outputs; received NaN or infinity for "
            f"{broken} of the {len(x)} inputs of batch {index}{what}."
        )
    values = {"labels": y.numpy(), **clean, _PASSES: passes[None]}
    for metric, arrays in zip(metrics, found, strict=True):
        values.update(metric.finish(x.numpy(), arrays))
    return {**values, _SECONDS: seconds}
