"""Every number of the paper's tables, on any Keras classifier, in one call."""

import functools
import warnings

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks, numerics
from dd_keras.classifier import logits
from dd_keras.evaluation import checkpoint
from dd_keras.evaluation import metrics as metrics_module
from dd_keras.evaluation.report import RobustnessReport

# Outputs of one batch, taken twice, may differ by rounding, relative to the
# largest of them; random ones differ by far more.
_SAME_OUTPUTS = 1e-3
# Share of samples with a zero gradient from which on attacks are blind.
_SUSPICIOUS = 0.01


def evaluate_robustness(
    model,
    dataset,
    metrics=("accuracy", "rho2"),
    *,
    bounds=None,
    misclassified="predicted",
    activation=None,
    checkpoint_dir=None,
    verbose=1,
):
    """Measures accuracy and robustness of a classifier on a data set.

    The data set is streamed, once: memory holds one batch, and a few numbers
    for each sample seen. All attacks start from the class that the model
    predicts.

    Args:
        model: a built Keras classifier, see `logits_model`.
        dataset: batched `tf.data.Dataset` of (inputs, labels), in an order
            that does not change, the inputs preprocessed as the model takes
            them.
        metrics: what to measure: names, attacks or `Metric` objects, see
            `evaluation.metrics.get` ("accuracy", "rho2", "rho_inf", "fgs",
            "pgd", "cw", "pass", ...).
        bounds: (low, high), the valid range of the inputs, numbers or arrays
            that broadcast against a sample, as `datasets.Data.bounds` gives
            it. Some metrics need it.
        misclassified: how a sample counts that is misclassified without
            attack. `"predicted"`, the paper's way: with its distance from
            the predicted class; `"zero"`: with distance 0, as it needs no
            attack; `"exclude"`: not at all. In accuracies under attack it is
            wrong, or not counted under `"exclude"`; `accuracy` itself and
            `eps_ref` are always over all samples.
        activation: what `model` ends in, see `logits_model`.
        checkpoint_dir: where finished batches are kept; the same call goes on
            from there after an interruption, to the identical report. Remove
            it when it is no longer needed. None: nowhere.
        verbose: 1 shows a progress bar with the time left, 0 nothing.

    Returns:
        `RobustnessReport`. What casts doubt on its numbers (a gradient that
        vanishes, outputs that are random, an attack that finds less than a
        weaker one) is in its `warnings`, and warned of.

    Raises:
        TypeError: if `dataset` is no `tf.data.Dataset`.
        ValueError: if it is empty, has no labels or unfit ones, batches that
            the model does not take or inputs outside of `bounds`; if outputs
            of the model are not finite; if a metric is not known; if
            `checkpoint_dir` is of another evaluation.
    """
    chosen = _chosen(metrics, bounds)
    if misclassified not in metrics_module.POLICIES:
        raise ValueError(
            f"misclassified: expected one of {metrics_module.POLICIES}; "
            f"received {misclassified!r}."
        )
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            "dataset: expected a batched tf.data.Dataset of (inputs, labels); "
            f"received {type(dataset).__name__}."
        )
    classes = logits.num_classes(model)  # traces the model: once
    first = _checked(model, classes, next(iter(dataset.take(1)), None), 0)
    progress = checkpoint.Checkpoint(
        checkpoint_dir,
        checkpoint.fingerprint(model, chosen, misclassified, first),
    )
    total = int(dataset.cardinality())
    bar = keras.utils.Progbar(
        total if total > 0 else None, verbose=verbose, unit_name="batch"
    )
    if progress.parts:
        bar.update(len(progress.parts))
    measure = _compiled(model, activation, chosen)
    for batch in dataset.skip(len(progress.parts)):
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
    doubts = _doubts(model, chosen, values, misclassified, first[0])
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=2)
    return RobustnessReport(chosen, misclassified, values, tuple(doubts))


def _chosen(metrics, bounds):
    """The metrics asked for, each once: a tuple."""
    if isinstance(metrics, (str, attacks.Attack, metrics_module.Metric)):
        metrics = (metrics,)
    found = {}
    for metric in (metrics_module.get(m, bounds) for m in metrics):
        if found.setdefault(metric.name, metric) != metric:
            raise ValueError(
                f"metrics: expected one of each name; received two that "
                f"differ and are both named {metric.name!r}."
            )
    if not found:
        raise ValueError("metrics: expected at least one; received none.")
    return tuple(found.values())


def _checked(model, classes, batch, index):
    """A batch as tensors that the model takes: (inputs, labels)."""
    if batch is None:
        raise ValueError("dataset: expected at least one batch; received none.")
    if not isinstance(batch, tuple) or len(batch) < 2:
        raise ValueError(
            "dataset: expected batches of (inputs, labels); received "
            f"{type(batch).__name__} of {len(batch)}."
        )
    try:
        x = logits.cast_inputs(model, batch[0])
        y = logits.sparse_labels(batch[1], classes)
        if len(y) != len(x):
            raise ValueError(f"y: expected {len(x)} labels; received {len(y)}.")
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        message = getattr(error, "message", str(error))
        raise ValueError(f"dataset, batch {index}: {message}") from error
    return x, y


@functools.lru_cache(maxsize=4)
def _compiled(model, activation, metrics):
    """All metrics of a batch of inputs as one graph, which they share."""
    network = logits.logits_model(model, activation)
    spec = tf.TensorSpec(logits.input_shape(model), logits.working_dtype(model))

    @tf.function(input_signature=[spec], autograph=False)
    def measure(x):
        f = attacks.inference_form(network)
        forward = attacks.Forward.of(f, x)
        predictions = attacks.decide(forward.logits)
        # Of the margin over each other class: where they all are zero.
        slope = forward.gradient(attacks.ascent(forward.logits, predictions))
        found = {
            None: {
                "predictions": predictions,
                "zero_gradient": numerics.sample_norm(slope)
                < numerics.ZERO_NORM,
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


def _doubts(model, metrics, values, misclassified, x):
    """Why numbers are not to be trusted: list of str."""
    doubts = []
    one, other = (model(x, training=False).numpy() for _ in range(2))
    if np.max(np.abs(one - other)) > _SAME_OUTPUTS * np.max(np.abs(one)):
        doubts.append(
            "model: its outputs are random (two passes over one batch "
            "differ). Attacks that do not average over this noise make it "
            "look more robust than it is."
        )
    blind = np.mean(values["zero_gradient"])
    if blind > _SUSPICIOUS:
        doubts.append(
            f"model: the gradient of its logits is zero on {100 * blind:.1f} "
            "% of the samples (a saturated softmax inside, or units that are "
            "dead), so that attacks by gradients cannot move there. That is "
            "no robustness."
        )
    samples = metrics_module.Samples(
        values, values["labels"] == values["predictions"], misclassified
    )
    for metric in metrics:
        doubts += metric.warnings(samples)
    return doubts + metrics_module.contradictions(metrics, samples)
