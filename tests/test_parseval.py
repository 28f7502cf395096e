import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shell

from dd_keras import (
    CoupledSGD,
    DeepDefenseModel,
    ParsevalConstraint,
    add_parseval_constraints,
    attacks,
    networks,
)

BETA = 0.05


def kernel(*shape, seed=0):
    """Random weights, in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def matrices(kernel, groups=1):
    """W of each group: a row for each filter, (groups, rows, inputs)."""
    filters = [kernel[..., k].ravel() for k in range(kernel.shape[-1])]
    return np.stack(np.split(np.stack(filters), groups))


def stepped(some, beta):
    """(1 + beta) W_S - beta W_S W_S^T W_S."""
    return (1 + beta) * some - beta * some @ some.T @ some


def changed(before, after):
    """The numbers of the rows that are not the same to the bit."""
    return np.flatnonzero((before != after).any(axis=1)).tolist()


def distance(kernel, groups=1):
    """||W W^T - I||, of all groups together."""
    w = matrices(np.asarray(kernel), groups)
    return np.linalg.norm(w @ w.transpose(0, 2, 1) - np.eye(w.shape[1]))


def distances(model):
    """The distance of each constrained layer."""
    return {
        layer.name: distance(layer.kernel, getattr(layer, "groups", 1))
        for layer in model._flatten_layers()
        if isinstance(
            getattr(layer, "kernel_constraint", None), ParsevalConstraint
        )
    }


def rows_of(model):
    """Which rows of each kernel the constraint moves next."""
    moved = []
    for layer in model.layers:
        w = np.asarray(layer.kernel)
        after = np.asarray(layer.kernel_constraint(w))
        moved.append(changed(matrices(w)[0], matrices(after)[0]))
    return moved


# One step

KERNELS = {
    "dense": ((6, 10), 1),
    "more rows than inputs": ((2, 7), 1),
    "one unit": ((5, 1), 1),
    "conv 1d": ((3, 2, 4), 1),
    "conv 2d": ((3, 2, 2, 10), 1),
    "conv 3d": ((2, 1, 3, 2, 5), 1),
    "groups": ((3, 3, 2, 12), 3),
    "one filter a group": ((3, 3, 1, 4), 4),
}


@pytest.mark.parametrize("name", KERNELS)
def test_step_is_the_closed_form_on_some_rows(name):
    shape, groups = KERNELS[name]
    before = kernel(*shape)
    after = ParsevalConstraint(BETA, groups=groups, seed=1)(tf.constant(before))
    assert after.dtype == tf.float64
    assert after.shape == shape
    size = max(1, round(0.3 * shape[-1] / groups))
    for w, new in zip(
        matrices(before, groups), matrices(after.numpy(), groups), strict=True
    ):
        rows = changed(w, new)  # all others are what they were, to the bit
        assert len(rows) == size
        np.testing.assert_allclose(
            new[rows], stepped(w[rows], BETA), rtol=1e-13
        )


@pytest.mark.parametrize("name", ["dense", "conv 2d", "groups"])
def test_all_rows_take_a_step_down_the_gradient(name):
    shape, groups = KERNELS[name]
    before = tf.constant(kernel(*shape))
    rows = shape[-1] // groups
    with tf.GradientTape() as tape:
        tape.watch(before)
        w = tf.reshape(before, (-1, groups, rows))
        gram = tf.einsum("igr,igs->grs", w, w)
        excess = gram - tf.eye(rows, dtype="float64")
        energy = tf.reduce_sum(tf.square(excess)) / 4
    slope = tape.gradient(energy, before)
    after = ParsevalConstraint(BETA, fraction=1, groups=groups)(before)
    np.testing.assert_allclose(after, before - BETA * slope, rtol=1e-12)


def test_all_rows_map_each_singular_value():
    u, sigma, v = np.linalg.svd(kernel(6, 4), full_matrices=False)
    after = ParsevalConstraint(BETA, fraction=1)(tf.constant(u * sigma @ v))
    np.testing.assert_allclose(
        after, u * ((1 + BETA) * sigma - BETA * sigma**3) @ v, rtol=1e-12
    )


@pytest.mark.parametrize("fraction", [0.3, 0.5, 1.0, 1e-9])
@pytest.mark.parametrize("units", [1, 2, 5, 10, 84])
def test_number_of_rows(units, fraction):
    before = kernel(3, units)
    after = ParsevalConstraint(BETA, fraction)(tf.constant(before)).numpy()
    rows = changed(before.T, after.T)
    assert len(rows) == max(1, round(fraction * units))


def test_filters_of_one_group_alone_make_a_matrix():
    """Orthonormal within its groups, a kernel is at rest."""
    orthonormal, _ = np.linalg.qr(kernel(8, 3))  # (inputs, rows)
    both = np.concatenate([orthonormal, orthonormal], axis=1)
    both = tf.constant(both.reshape(2, 2, 2, 6))
    apart = ParsevalConstraint(BETA, fraction=1, groups=2)(both)
    np.testing.assert_allclose(apart, both, atol=1e-14)
    together = ParsevalConstraint(BETA, fraction=1)(both)
    assert np.abs(together - both).max() > 1e-3


@pytest.mark.parametrize(("share", "converges"), [(0.99, True), (1.01, False)])
def test_range_of_convergence_is_the_documented(share, converges):
    beta = 0.5
    constraint = ParsevalConstraint(beta, fraction=1)
    w = tf.constant([[share * np.sqrt(1 + 2 / beta)]])
    with np.errstate(all="ignore"):
        for _ in range(60):
            w = constraint(w)
    assert (abs(abs(float(w[0, 0])) - 1) < 1e-6) == converges


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_keep_their_dtype(dtype):
    layer = keras.layers.Dense(
        10, dtype=dtype, kernel_constraint=ParsevalConstraint(BETA)
    )
    layer.build((None, 6))
    assert layer.kernel_constraint(layer.kernel).dtype == dtype


# Which rows


def test_every_step_has_rows_of_its_own():
    constraint = ParsevalConstraint(BETA, seed=0)
    w = kernel(3, 20)
    chosen = [
        tuple(changed(w.T, constraint(tf.constant(w)).numpy().T))
        for _ in range(30)
    ]
    assert len(set(chosen)) > 25
    # No row is left out, and none is preferred: 180 draws of 20 rows.
    counts = np.bincount(np.concatenate(chosen), minlength=20)
    assert counts.min() >= 2
    assert counts.max() <= 20


def test_same_seed_same_rows():
    def history(constraint):
        w = tf.constant(kernel(6, 20))
        for _ in range(3):
            w = constraint(w)
        return w.numpy()

    first = ParsevalConstraint(BETA, seed=3)
    expected = history(first)
    np.testing.assert_array_equal(
        history(ParsevalConstraint(BETA, seed=3)), expected
    )
    again = ParsevalConstraint.from_config(first.get_config())
    np.testing.assert_array_equal(history(again), expected)
    for other in (4, None):
        found = history(ParsevalConstraint(BETA, seed=other))
        assert (found != expected).any()


# In training


def images_and_labels(size=8, batch=32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, size, size, 1)).astype(np.float32)
    return x, rng.integers(0, 3, batch)


def small_lenet(stddev=None, seed=0):
    """Convolutions, one of them in groups, and dense layers on top."""
    keras.utils.set_random_seed(seed)
    initializer = "glorot_uniform"
    if stddev is not None:
        initializer = keras.initializers.RandomNormal(stddev=stddev)
    options = {"activation": "tanh", "kernel_initializer": initializer}
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, name="conv1", **options),
            keras.layers.MaxPooling2D(2),
            networks.GroupedConv2D(8, 2, groups=2, name="conv2", **options),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="dense", **options),
            keras.layers.Dense(3, name="top", kernel_initializer=initializer),
        ]
    )


LAYERS = ["conv1", "conv2", "dense", "top"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "stddev"),
    [
        (CoupledSGD(0.0), 0.05),
        (keras.optimizers.Adam(0.0), 0.5),
    ],
    ids=["from below", "from above"],
)
def test_at_learning_rate_zero_the_constraint_alone_acts(optimizer, stddev):
    model = small_lenet(stddev)
    assert add_parseval_constraints(model, BETA, seed=0) == LAYERS
    before, weights = distances(model), model.get_weights()
    largest = [np.linalg.norm(w) for w in weights]
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(*images_and_labels(), batch_size=2, epochs=8, verbose=0)
    after = distances(model)
    assert set(after) == set(LAYERS)
    for name in LAYERS:
        assert after[name] < 0.7 * before[name], name
    for old, new, size in zip(
        weights, model.get_weights(), largest, strict=True
    ):
        if old.ndim == 1:  # biases are free
            np.testing.assert_array_equal(old, new)
        else:  # the step is towards norm 1, from either side
            assert (np.linalg.norm(new) > size) == (stddev < 0.1)


@pytest.mark.slow
def test_training_keeps_the_weights_near_a_tight_frame():
    x, y = images_and_labels()
    models = {}
    for name in ("free", "constrained", "in Deep Defense"):
        model = small_lenet()
        if name != "free":
            add_parseval_constraints(model, BETA, 0.6, seed=0)
        before = model.get_weights()
        trained = model
        if name == "in Deep Defense":
            trained = DeepDefenseModel(
                model,
                lam=1.0,
                c=1.0,
                d=0.1,
                attack=attacks.DeepFool(max_iter=2),
            )
        trained.compile(
            CoupledSGD(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        trained.fit(x, y, batch_size=8, epochs=10, verbose=0)
        models[name] = model
        assert np.abs(model.get_weights()[-1] - before[-1]).max() > 1e-4
    start = small_lenet()
    for name in ("constrained", "in Deep Defense"):
        model = models[name]
        for layer in LAYERS:
            groups = 2 if layer == "conv2" else 1
            found, first, free = (
                distance(each.get_layer(layer).kernel, groups)
                for each in (model, start, models["free"])
            )
            assert found < 0.95 * first, (name, layer)
            assert found < free, (name, layer)


@pytest.mark.slow
def test_compiled_steps_draw_new_rows_and_move_no_others():
    """Under XLA and in half precision, where the update is conditional."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6)).astype(np.float32), np.zeros(4)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(20, dtype="mixed_float16"),
            keras.layers.Dense(2, dtype="float32"),
        ]
    )
    add_parseval_constraints(model, BETA, seed=0)
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), 1.0),
        "sparse_categorical_crossentropy",
        jit_compile=True,
    )
    seen = set()
    w = model.layers[0].kernel.numpy().T
    for _ in range(5):
        model.train_on_batch(x, y)
        new = model.layers[0].kernel.numpy().T
        rows = changed(w, new)
        assert len(rows) == 6
        np.testing.assert_allclose(
            new[rows], stepped(w[rows], BETA), rtol=1e-5, atol=1e-6
        )
        seen.add(tuple(rows))
        w = new
    assert len(seen) > 1


def test_model_trained_before_is_constrained_once_compiled_again():
    x, y = np.ones((4, 3), np.float32), np.zeros((4, 2))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, y, verbose=0)
    before = model.get_weights()[0]
    add_parseval_constraints(model, BETA)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, y, verbose=0)
    assert len(changed(before.T, model.get_weights()[0].T)) == 1


# Which layers


def test_matrices_of_any_model_are_constrained_and_nothing_else():
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            keras.layers.Conv2D(4, 2, groups=2, name="grouped"),
            keras.layers.DepthwiseConv2D(2, name="depthwise"),
            keras.layers.Conv2DTranspose(3, 2, name="transposed"),
            keras.layers.SeparableConv2D(3, 2, name="separable"),
        ],
        name="inner",
    )
    inputs = keras.Input((4, 4, 4))
    z = keras.layers.BatchNormalization()(inner(inputs))
    z = keras.layers.Reshape((-1, 3))(z)
    z = keras.layers.Conv1D(5, 1, name="conv1d")(z)
    z = keras.layers.LSTM(3, name="recurrent")(z)
    model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(z))
    names = add_parseval_constraints(model, 1e-3, 0.5, seed=7)
    assert sorted(names) == ["conv1d", "dense", "grouped"]
    found = {}
    for layer in model._flatten_layers():
        for weight in layer.weights if layer.name in names else ():
            if isinstance(weight.constraint, ParsevalConstraint):
                assert weight is layer.kernel
                assert weight.constraint is layer.kernel_constraint
                found[layer.name] = weight.constraint.get_config()
    assert {name: config["groups"] for name, config in found.items()} == {
        "grouped": 2, "conv1d": 1, "dense": 1
    }  # fmt: skip
    assert {(c["beta"], c["fraction"]) for c in found.values()} == {(1e-3, 0.5)}
    assert len({config["seed"] for config in found.values()}) == 3
    free = [w for w in model.weights if w.constraint is None]
    assert len(free) == len(model.weights) - 3


def test_subclassed_models_are_constrained():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.top = keras.layers.Dense(2, name="top")

        def call(self, x):
            return self.top(x)

    model = Subclassed()
    model(np.zeros((1, 3)))
    assert add_parseval_constraints(model) == ["top"]
    assert isinstance(model.top.kernel.constraint, ParsevalConstraint)


def twins():
    return keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(20), keras.layers.Dense(20)]
    )


def test_layers_choose_rows_apart_and_by_the_seed():
    first, second, other = twins(), twins(), twins()
    add_parseval_constraints(first, BETA, seed=1)
    add_parseval_constraints(second, BETA, seed=1)
    add_parseval_constraints(other, BETA, seed=None)
    rows = rows_of(first)
    assert rows[0] != rows[1]
    assert rows_of(second) == rows
    assert rows_of(other) != rows
    add_parseval_constraints(second, 0.01, seed=1)  # may be set anew
    assert second.layers[0].kernel_constraint.beta == 0.01


# Files


def test_config_comes_back():
    constraint = ParsevalConstraint(0.1, 0.5, groups=2, seed=3)
    assert constraint.get_config() == {
        "beta": 0.1, "fraction": 0.5, "groups": 2, "seed": 3
    }  # fmt: skip
    config = json.loads(json.dumps(keras.constraints.serialize(constraint)))
    again = keras.constraints.deserialize(config)
    assert type(again) is ParsevalConstraint
    assert again.get_config() == constraint.get_config()
    paper = ParsevalConstraint().get_config()
    assert (paper["beta"], paper["fraction"]) == (1e-4, 0.3)


@pytest.mark.thorough
@pytest.mark.slow
def test_saved_model_stays_constrained_in_a_new_process(tmp_path):
    model = small_lenet()
    add_parseval_constraints(model, BETA, 0.5, seed=1)
    model.compile(
        CoupledSGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    path = tmp_path / "model.keras"
    model.save(path)
    x, y = images_and_labels()
    model.train_on_batch(x, y)
    script = f"""
import json, keras, numpy as np
import dd_keras
model = keras.saving.load_model({str(path)!r})
rng = np.random.default_rng(0)
x = rng.normal(size=(32, 8, 8, 1)).astype(np.float32)
model.train_on_batch(x, rng.integers(0, 3, 32))
kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
print(json.dumps([[k.constraint.get_config() for k in kernels],
                  [k.numpy().tolist() for k in kernels]]))
"""
    found = shell("-c", script)
    assert found.returncode == 0, found.stderr
    configs, kernels = json.loads(found.stdout.strip().splitlines()[-1])
    for name, config, weights in zip(LAYERS, configs, kernels, strict=True):
        layer = model.get_layer(name)
        assert config == layer.kernel_constraint.get_config()
        # The same rows took the same step.
        np.testing.assert_allclose(weights, layer.kernel, rtol=1e-5, atol=1e-7)


# Bad input


SHARE = "a finite number > 0 and <= 1"
COUNT = "an integer of at least 1"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("beta", 0, SHARE), ("beta", 1.5, SHARE), ("beta", np.nan, SHARE),
        ("fraction", 0.0, SHARE), ("fraction", 1.01, SHARE),
        ("fraction", None, SHARE), ("groups", 0, COUNT), ("groups", 2.0, COUNT),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(name, value, expected):
    message = re.escape(f"{name}: expected {expected}; received {value!r}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        ParsevalConstraint(**{name: value})
    if name != "groups":
        model = twins()
        with pytest.raises(ValueError, match=f"^{message}$"):
            add_parseval_constraints(model, **{name: value})
        assert model.layers[0].kernel_constraint is None


def test_models_that_cannot_be_constrained():
    message = r"model: expected a keras.Model; received str\."
    with pytest.raises(TypeError, match=message):
        add_parseval_constraints("model.keras")
    with pytest.raises(TypeError, match="received Dense"):
        add_parseval_constraints(keras.layers.Dense(2))
    unbuilt = keras.Sequential([keras.layers.Dense(2)], name="fresh")
    message = (
        "model: expected a built model with dense or convolutional layers; "
        "'fresh' has 1 such layers, 0 of them built."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        add_parseval_constraints(unbuilt)
    flat = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.DepthwiseConv2D(2)], name="flat"
    )
    message = "'flat' has 0 such layers, 0 of them built."
    with pytest.raises(ValueError, match=re.escape(message)):
        add_parseval_constraints(flat)


def test_another_constraint_is_not_replaced():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2),
            keras.layers.Dense(2, kernel_constraint="non_neg", name="second"),
        ]
    )
    message = (
        "model: expected no other constraint; the kernel of 'second' has a "
        "NonNeg."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        add_parseval_constraints(model)
    assert model.layers[0].kernel_constraint is None  # all or none
