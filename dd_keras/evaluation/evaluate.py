"""Every number of the paper's tables, on any Keras classifier, in one call."""

import os
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.attacks.derivatives import name_missing_gradients
from dd_keras.classifier import compiled, inputs, logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.evaluation import checkpoint, naming, reliability, streams
from dd_keras.evaluation import metrics as metrics_module
from dd_keras.evaluation.report import RobustnessReport
from dd_keras.utils import norms, terminal

AnyMetric = str | attacks.Attack | metrics_module.Metric


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
    verbose: str | int = "auto",
) -> RobustnessReport:
    """Measures accuracy and robustness of a classifier on a data set.

    The data set is streamed, once: memory holds one batch, and a few numbers
    for each sample seen. All attacks start from the class that the model
    predicts.

    Args:
        model: a built Keras classifier, see `logits_model`.
        data: inputs and labels, as for `fit`, the inputs preprocessed as the
            model takes them: an array of inputs (B, ...), with `y`; a tuple
            of two arrays (inputs, labels); or, in an order that does not
            change, a batched `tf.data.Dataset` of such tuples or a
            `keras.utils.PyDataset`. Sample weights are left aside.
        y: labels, see `sparse_labels`, where `data` is an array of inputs.
        metrics: what to measure: names, attacks or `Metric` objects, see
            `evaluation.metrics.get` ("accuracy", "rho2", "fgsm_rho", "fgsm",
            "pgd", "cw", "pass", ...). Attacks that would have one name are
            named after what differs, see `evaluation.naming.with_unique_names`.
        batch_size: samples a batch, of arrays; None: 32, as in `fit`. Data
            sets come in batches of their own.
        bounds: (low, high), the valid range of the inputs, numbers or arrays
            that broadcast against a sample, as `datasets.Data.bounds` gives
            it. Some metrics need it.
        misclassified: how a sample counts that is misclassified without
            attack. `"predicted"`, the paper's way: with its distance from
            the predicted class; `"zero"`: with distance 0, as it needs no
            attack; `"exclude"`: not at all. In accuracies under attack it is
            incorrect, or not counted under `"exclude"`; `accuracy` itself and
            `eps_ref` are always over all samples.
        activation: what `model` ends in, see `logits_model`.
        checkpoint_dir: where finished batches are kept. After an interruption
            the same call is resumed from there and ends in the identical
            report. Remove it when it is no longer needed. None: nowhere.
        verbose: 1 shows a progress bar with the time left, 2 a line at the
            end, 0 nothing; `"auto"`: a bar on a terminal, else a line.

    Returns:
        `RobustnessReport`. Its `warnings` are reliability warnings, which
        are given as Python warnings, too: reasons not to trust a number, such
        as a gradient that vanishes, outputs that are random, or an attack that
        finds less than a weaker one.

    Example:
        report = dd_keras.evaluate_robustness(
            classifier, x_test, y_test, metrics=["accuracy", "rho2", "l2"]
        )
        print(report.table())

    Raises:
        TypeError: if `data` is none of these, or `y` are names of metrics.
        ValueError: if `y` is missing, is of another length, or is given beside
            a data set, or so is `batch_size`; if `data` is empty, has no
            labels or unfit ones, batches that the model does not take or
            inputs outside of `bounds`; if outputs of the model are not finite;
            if a metric is not known; if `checkpoint_dir` is of another
            evaluation.
    """
    chosen = _chosen(metrics, bounds)
    if misclassified not in metrics_module.POLICIES:
        raise ValueError(
            f"misclassified: expected one of {metrics_module.POLICIES}; "
            f"received {misclassified!r}."
        )
    stream = streams.of(data, y, batch_size)
    classes = logits.num_classes(model)  # traces the model: once
    first = _checked(model, classes, next(stream.starting_at(0), None), 0)
    progress = checkpoint.Checkpoint(
        checkpoint_dir,
        checkpoint.fingerprint(model, chosen, misclassified, first),
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
        ("evaluate_robustness", activation, chosen),
        lambda: _traced(model, activation, chosen),
    )
    for batch in stream.starting_at(len(progress.parts)):
        x, y = _checked(model, classes, batch, len(progress.parts))
        for metric in chosen:
            if metric.attack is not None:
                metric.attack.check_bounds(x)
        progress.add(_measured(measure, chosen, x, y, len(progress.parts)))
        bar.add(1)
    if bar.target is None:
        bar.update(len(progress.parts), finalize=True)
    values = {
        name: np.concatenate([part[name] for part in progress.parts])
        for name in progress.parts[0]
    }
    tied = values.pop("tied")
    samples = metrics_module.Samples(
        values, values["labels"] == values["predictions"], misclassified
    )
    found = reliability.reliability_warnings(
        model, chosen, samples, tied, first[0]
    )
    for warning in found:
        warnings.warn(warning, stacklevel=2)
    return RobustnessReport(chosen, misclassified, values, tuple(found))


def _chosen(metrics, bounds):
    """The metrics asked for, each once: a tuple."""
    if isinstance(metrics, (str, attacks.Attack, metrics_module.Metric)):
        metrics = (metrics,)
    found = naming.with_unique_names(metrics, bounds)
    if not found:
        raise ValueError("metrics: expected at least one; received none.")
    return tuple(found)


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
    """All metrics of a batch of inputs as one graph, which they share."""
    network = logits.logits_model(model, activation)
    spec = logits.working_spec(model)

    @tf.function(input_signature=[spec], autograph=False)
    def measure(x):
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
        for metric in metrics:
            # One after the other: side by side they would need more memory.
            done = tf.nest.flatten(list(found.values()))
            with tf.control_dependencies(done):
                found[metric.name] = metric.measure(network, x, forward)
        return list(found.values())

    with name_missing_gradients(network):
        measure.get_concrete_function()
    return measure


def _measured(measure, metrics, x, y, index):
    """What is kept of a batch: dict of name to array."""
    clean, *found = tf.nest.map_structure(lambda t: t.numpy(), measure(x))
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
    values = {"labels": y.numpy(), **clean}
    for metric, arrays in zip(metrics, found, strict=True):
        values.update(metric.finish(x.numpy(), arrays))
    return values
