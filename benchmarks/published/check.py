"""What is asked of dd_keras for each published classifier, stage by stage."""

import os
import time
import warnings

import harness
import keras
import numpy as np
import tensorflow as tf

import dd_keras
from dd_keras import attacks
from published.registry import CLASSIFIERS

STAGES = ("wraps", "predicts", "trains", "evaluates", "saves", "exports")
BATCH_SIZE = 8
# Two iterations: the second is differentiated by a way of its own.
ATTACK = attacks.DeepFool(max_iter=2)
EVALUATION_ATTACK = attacks.DeepFool(max_iter=10)
LEARNING_RATE = 1e-2
# Random networks have gradients of any size.
LONGEST_GRADIENT = 1.0
# Of the longest gradient: what is below comes from rounding, as that of an
# attention's key bias, which a softmax does not see.
ROUNDING = 1e-5


def check(name, folder, row):
    """Takes a classifier through all stages.

    Args:
        name: one of `CLASSIFIERS`.
        folder: where its files go: NAME.keras, the directory NAME/1, a
            SavedModel, and NAME.npz, what both are to give.
        row: dict that is filled with figures; `row["worked"]` lists the
            stages that came to their end.

    Raises:
        AssertionError: if something is not as it should be, and whatever else
            is raised on the way.
    """
    published = CLASSIFIERS[name]
    keras.utils.set_random_seed(0)
    classifier, x, y = problem(name)
    row |= {
        "source": published.source,
        "kind": published.kind,
        "told": published.activation,
        "parameters": classifier.count_params(),
        "worked": [],
    }

    model = dd_keras.DeepDefenseModel(
        classifier, attack=ATTACK, activation=published.activation
    )
    row["ends_in"] = model.activation
    row["worked"].append("wraps")

    expected = classifier.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    row["worked"].append("predicts")

    _train(model, classifier, x, y, row)
    row["worked"].append("trains")

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH_SIZE)
    with warnings.catch_warnings():  # they are kept in the report
        warnings.simplefilter("ignore")
        report = dd_keras.evaluate_robustness(
            model, data, metrics=["accuracy", EVALUATION_ATTACK], verbose=0
        )
    row["warnings"] = list(report.warnings)
    row["rho2"] = float(np.mean(report.values["rho2"]))
    assert np.isfinite(row["rho2"])
    assert row["rho2"] > 0, report.warnings
    row["worked"].append("evaluates")

    model.compile("sgd", loss_by_name(expected.shape[-1]))
    model.save(os.path.join(folder, f"{name}.keras"))
    expected = classifier.predict(x, verbose=0)
    np.savez(
        os.path.join(folder, f"{name}.npz"),
        x=x,
        outputs=expected,
        probabilities=_probabilities(expected, model.activation),
    )
    row["worked"].append("saves")

    dd_keras.export(
        model,
        os.path.join(folder, name),
        attack=ATTACK,
        warm_up_requests=False,
    )
    row["worked"].append("exports")


def problem(name):
    """A classifier, inputs, and labels: (model, (B, ...), (B,))."""
    published = CLASSIFIERS[name]
    classifier = published.build()
    harness.settle(classifier, published.inputs(32, seed=1))
    x = published.inputs(BATCH_SIZE)
    y = np.arange(BATCH_SIZE) % max(2, classifier(x[:1]).shape[-1])
    return classifier, x, y


def loss_by_name(outputs):
    """The name of the loss of a classifier with so many outputs."""
    if outputs == 1:
        return "binary_crossentropy"
    return "sparse_categorical_crossentropy"


def _train(model, classifier, x, y, row):
    """Two steps: down the whole objective, and down the regulariser alone."""
    loss = harness.WeighedCrossentropy(model.activation == "linear")
    should = _with_gradient(classifier, loss, x, y)
    optimizer = harness.RecordingSGD(
        LEARNING_RATE, global_clipnorm=LONGEST_GRADIENT
    )
    model.compile(optimizer, loss, jit_compile=False)
    optimizer.build(model.trainable_variables)
    row["variables"] = len(should)
    before = [v.numpy() for v in model.trainable_variables]
    for step, weight in {"step": 1.0, "regularizer_step": 0.0}.items():
        loss.weight.assign(weight)
        started = time.perf_counter()
        logs = model.fit(x, y, batch_size=BATCH_SIZE, verbose=0).history
        row[f"{step}_s"] = time.perf_counter() - started
        sizes = np.array([float(size) for size in optimizer.sizes])
        assert np.all(np.isfinite(logs["loss"])), logs
        broken = _names(model, ~np.isfinite(sizes) & should)
        assert not broken, f"{step}: no finite gradient for {broken}"
        missing = _names(model, (sizes == 0) & should)
        assert not missing, f"{step}: the gradient is zero for {missing}"
    after = [v.numpy() for v in model.trainable_variables]
    changed = [np.any(a != b) for a, b in zip(after, before, strict=True)]
    assert not (still := _names(model, ~np.array(changed) & should)), still
    assert all(np.all(np.isfinite(w)) for w in classifier.get_weights())


def _names(model, chosen):
    return [
        v.path
        for v, one in zip(model.trainable_variables, chosen, strict=True)
        if one
    ]


def _with_gradient(classifier, loss, x, y):
    """Which trainable variables the loss depends on: (variables,) of bool."""
    variables = classifier.trainable_variables
    with tf.GradientTape() as tape:
        value = loss(y, classifier(x, training=False))
    gradients = tape.gradient(value, variables)
    sizes = np.array(
        [0.0 if g is None else float(tf.norm(g)) for g in gradients]
    )
    return sizes > ROUNDING * np.max(sizes)


def _probabilities(outputs, activation):
    """(B, n) probabilities of a classifier's outputs, n = 2 for one."""
    outputs = outputs.astype("float64")
    if outputs.shape[-1] == 1:
        p = 1 / (1 + np.exp(-outputs)) if activation == "linear" else outputs
        return np.concatenate([1 - p, p], axis=-1)
    if activation != "linear":
        return outputs
    e = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
