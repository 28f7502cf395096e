"""Every number of the paper's tables, on any Keras classifier, in one call."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from dd_keras import attacks
from dd_keras.attacks import decisions
from dd_keras.attacks.derivatives import name_missing_gradients
from dd_keras.classifier import compiled, inputs, logits
from dd_keras.evaluation import checkpoint, naming, streams
from dd_keras.evaluation import metrics as metrics_module
from dd_keras.evaluation.report import RobustnessReport
from dd_keras.utils import norms

# Outputs of one batch, taken twice, may differ by rounding, relative to the
# largest of them; random ones differ by far more.
_SAME_OUTPUTS = 1e-3
# Share of samples with a zero gradient from which on attacks are blind.
_SUSPICIOUS = 0.01


def evaluate_robustness(
    model,
    data,
    y=None,
    metrics=("accuracy", "rho2"),
    *,
    batch_size=None,
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
        data: inputs and labels, as for `fit`, the inputs preprocessed as the
            model takes them: an array of inputs (B, ...), with `y`; a tuple
            of two arrays (inputs, labels); or, in an order that does not
            change, a batched `tf.data.Dataset` of such tuples or a
            `keras.utils.PyDataset`. Sample weights are left aside.
        y: labels, see `sparse_labels`, where `data` is an array of inputs.
        metrics: what to measure: names, attacks or `Metric` objects, see
            `evaluation.metrics.get` ("accuracy", "rho2", "fgsm_rho", "fgsm",
            "pgd", "cw", "pass", ...). Attacks that would have one name are
            told apart by what differs, see `evaluation.naming.told_apart`.
        batch_size: samples a batch, of arrays; None: 32, as in `fit`. Data
            sets come in batches of their own.
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
        stream.batches, verbose=verbose, unit_name="batch"
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
    doubts = _doubts(model, chosen, values, tied, misclassified, first[0])
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=2)
    return RobustnessReport(chosen, misclassified, values, tuple(doubts))


def _chosen(metrics, bounds):
    """The metrics asked for, each once: a tuple."""
    if isinstance(metrics, (str, attacks.Attack, metrics_module.Metric)):
        metrics = (metrics,)
    found = naming.told_apart(metrics, bounds)
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
        y = logits.sparse_labels(batch[1], classes)
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


def _doubts(model, metrics, values, tied, misclassified, x):
    """Why numbers are not to be trusted: list of str.

    `tied`, (N,), is where two classes have the same logit: on the boundary.
    """
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
    at_boundary = tied & ~values["zero_gradient"]
    for metric in metrics:
        doubts += metric.warnings(samples)
        doubts += _stuck(metric, values, at_boundary)
    return doubts + metrics_module.contradictions(metrics, samples)


def _stuck(metric, values, at_boundary):
    """A warning, where an attack that looks for a distance did not move."""
    if metric.length is None:
        return []
    stuck = np.mean((values[metric.length] == 0) & ~at_boundary)
    if stuck <= _SUSPICIOUS:
        return []
    return [
        f"{metric.name}: the attack could not move {100 * stuck:.1f} % of the "
        "samples at all: it finds no way there (a gradient of zero, or steps "
        "lost to rounding), and their distance counts as 0. This 0 does not "
        "mean that the smallest perturbation fools the classifier, nor "
        "anything else of how robust it is."
    ]
