import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import (
    DeepDefenseModel,
    DefenseModel,
    RegularizationWarmup,
    attacks,
)

LAM = 2.0


def batches_of(size=4, batch=16):
    """Noisy clusters of three classes, 4 features, in batches of `size`."""
    rng = np.random.default_rng(0)
    y = np.arange(batch) % 3
    x = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(batch, 4))
    data = tf.data.Dataset.from_tensor_slices((x.astype(np.float32), y))
    return data.batch(size, drop_remainder=True)


DATA = batches_of()  # 4 batches


class Recorder(DeepDefenseModel):
    """Keeps the shares that were set."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.in_force = [1.0]

    def scale_lam(self, share):
        super().scale_lam(share)
        self.in_force.append(share)


class Spy(attacks.DeepFool):
    """Counts its runs; in a graph, how often it was traced."""

    runs = 0

    def search(self, network, x, y=None, forward=None):
        type(self).runs += 1
        return super().search(network, x, y, forward)


class Watch(keras.callbacks.Callback):
    """What was in use while each batch was trained on, and after each epoch."""

    def __init__(self):
        super().__init__()
        self.shares, self.runs, self.weights = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.shares.append(self.model.in_force[-1])
        self.runs.append(Spy.runs)

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())


def model(lam=LAM, rate=0.01, **kwargs):
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh"),
            keras.layers.Dense(3),
        ]
    )
    defended = Recorder(
        classifier, lam=lam, c=2.0, d=0.5, attack=Spy(max_iter=2)
    )
    defended.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        **{"run_eagerly": True, **kwargs},
    )
    return defended


def fit(defended, *ramp, data=DATA, epochs=4, **kwargs):
    """The history and the `Watch` of a fit with a `RegularizationWarmup`."""
    watch = Watch()
    Spy.runs = 0
    history = defended.fit(
        data,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*[RegularizationWarmup(*ramp)][: len(ramp)], watch],
        **kwargs,
    ).history
    return history, watch


@pytest.mark.parametrize(
    ("start", "length", "epochs", "share"),
    [
        (0, 1, 0.0, 0.0), (0, 1, 0.25, 0.25), (0, 1, 1.0, 1.0), (0, 1, 9, 1.0),
        (2, 4, 0.0, 0.0), (2, 4, 1.999, 0.0), (2, 4, 2.0, 0.0), (2, 4, 3, 0.25),
        (2, 4, 5.5, 0.875), (2, 4, 6.0, 1.0), (2, 4, 6.001, 1.0),
        (1.5, 0.5, 1.75, 0.5), (0, 0, 0.0, 1.0), (2, 0, 1.999, 0.0),
        (2, 0, 2.0, 1.0), (0, 1e-300, 1.0, 1.0),
    ],
)  # fmt: skip
def test_share_is_linear_between_its_corners(start, length, epochs, share):
    assert RegularizationWarmup(start, length).share(epochs) == pytest.approx(
        share
    )


def test_share_rises_over_one_epoch_from_the_first_by_default():
    assert [RegularizationWarmup().share(e) for e in (0, 0.5, 1, 2)] == [
        0,
        0.5,
        1,
        1,
    ]


@pytest.mark.slow
def test_lam_follows_the_share_batch_by_batch():
    defended = model()
    history, watch = fit(defended, 1, 2)
    expected = [0] * 4 + [k / 8 for k in range(8)] + [1] * 4
    np.testing.assert_allclose(watch.shares, expected)
    # The attack is run for every batch with a share, and for no other.
    np.testing.assert_array_equal(watch.runs, np.cumsum(np.array(expected) > 0))
    assert history["regularization"][0] == 0
    assert min(history["regularization"][1:]) > 0
    assert len(history["rho2"]) == 3  # no rho where no attack is run


@pytest.mark.slow
def test_objective_is_weighed_by_the_share():
    """Weights that stay, one batch an epoch: loss = clean + share * lam * r."""
    defended = model(rate=0.0)
    history, _ = fit(defended, 1, 4, data=batches_of(16), epochs=6)
    clean = history["loss"][0]
    full = history["regularization"][-1]
    np.testing.assert_allclose(
        np.array(history["loss"]) - clean,
        LAM * full * np.array([0, 0, 0.25, 0.5, 0.75, 1]),
        rtol=1e-5,
        atol=1e-6,
    )
    # A share is in use in validation as well, and afterwards is 1 again.
    history, _ = fit(
        defended,
        1,
        0,
        data=batches_of(16),
        epochs=2,
        validation_data=batches_of(16),
    )
    both = [clean, clean + LAM * full]
    np.testing.assert_allclose(history["val_loss"], both, rtol=1e-5)
    np.testing.assert_allclose(
        history["val_regularization"], [0, full], rtol=1e-5
    )
    for found in (
        defended.evaluate(batches_of(16), verbose=0, return_dict=True),
        defended.train_on_batch(*next(iter(batches_of(16))), return_dict=True),
    ):
        assert found["loss"] == pytest.approx(both[1], rel=1e-5)


@pytest.mark.slow
def test_epochs_before_the_start_are_plain_training_to_the_bit():
    _, late = fit(model(), 2, 1)
    _, plain = fit(model(lam=0.0))
    for epoch in range(2):
        for a, b in zip(late.weights[epoch], plain.weights[epoch], strict=True):
            np.testing.assert_array_equal(a, b)
    assert late.runs[7] == 0
    for epoch in (2, 3):
        for a, b in zip(late.weights[epoch], plain.weights[epoch], strict=True):
            assert np.abs(a - b).max() > 1e-5


@pytest.fixture(scope="module")
def trained_eagerly():
    eager = model()
    return eager, fit(eager, 0.5, 1, epochs=2)[0]


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_compiled_training_is_switched_within_an_epoch(
    jit_compile, trained_eagerly
):
    eager, expected = trained_eagerly
    compiled = model(run_eagerly=False, jit_compile=jit_compile)
    history, watch = fit(compiled, 0.5, 1, epochs=2)
    np.testing.assert_allclose(watch.shares, [0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert watch.runs[2] == 0  # not traced, thus not there to be run
    assert watch.runs[-1] > 0
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-4, atol=1e-6)
    for a, b in zip(compiled.get_weights(), eager.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_steps_per_execution_are_one_batch_to_the_ramp():
    defended = model(run_eagerly=False, steps_per_execution=2)
    history, watch = fit(defended, 1, 1, epochs=2, validation_data=DATA)
    np.testing.assert_allclose(watch.shares, [0, 0, 0, 0.5])
    assert watch.runs[:3] == [0, 0, 0]
    for log in ("regularization", "val_regularization"):  # each has a graph
        assert history[log][0] == 0
        assert history[log][1] > 0


def test_batches_of_unknown_number_are_counted_in_the_first_epoch():
    unknown = DATA.filter(lambda x, y: True)
    assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
    _, watch = fit(model(), 0.5, 2, data=unknown, epochs=3)
    np.testing.assert_allclose(
        watch.shares, [0] * 4 + [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1]
    )


@pytest.mark.slow
def test_resumed_training_has_the_share_of_its_epoch():
    whole, parts = model(), model()
    fit(whole, 1, 2)
    fit(parts, 1, 2, epochs=2)
    assert parts.in_force[-1] == 1
    _, watch = fit(parts, 1, 2, initial_epoch=2)
    np.testing.assert_allclose(watch.shares[:4], [0.5, 0.625, 0.75, 0.875])
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_length_zero_is_a_switch():
    _, watch = fit(model(), 1, 0, epochs=2)
    assert watch.shares == [0] * 4 + [1] * 4
    _, at_once = fit(model(), 0, 0, epochs=1)
    _, without = fit(model(), epochs=1)
    for a, b in zip(at_once.weights[0], without.weights[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eagerly", "before"), [(True, 1.0), (True, 0.5), (False, 0.5)]
)
def test_interrupted_fit_leaves_the_share_as_it_was(eagerly, before):
    """A later one without a ramp would else train on nothing but the loss."""

    def interrupt(batch, logs):
        raise KeyboardInterrupt

    defended = model(run_eagerly=eagerly)
    defended.scale_lam(before)
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        defended.fit(
            DATA, verbose=0, callbacks=[RegularizationWarmup(1, 1), stop]
        )
    assert 0.0 in defended.in_force
    assert defended.in_force[-1] == before
    history, watch = fit(defended, epochs=1)
    assert watch.shares == [before] * 4
    assert history["rho2"][0] > 0


def test_lam_zero_stays_zero():
    _, watch = fit(model(lam=0.0), 0, 1, epochs=2)
    assert watch.runs[-1] == 0


def test_shares_out_of_range_are_named():
    for share in (-0.1, 1.1, float("nan"), "all"):
        message = (
            "share: expected a finite number >= 0 and <= 1; received "
            f"{share!r}."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            model().scale_lam(share)


@pytest.mark.parametrize("name", ["start", "length"])
@pytest.mark.parametrize("value", [-1, float("inf"), "2", None])
def test_numbers_out_of_range_are_named(name, value):
    message = f"{name}: expected a finite number >= 0; received {value!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RegularizationWarmup(**{name: value})


def test_models_without_lam_are_refused():
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    for other, name in (
        (classifier, "Sequential"),
        (DefenseModel(classifier), "DefenseModel"),
    ):
        other.compile("sgd", "sparse_categorical_crossentropy")
        message = (
            "model: expected RegularizationWarmup on a DeepDefenseModel; "
            f"received a {name}."
        )
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            other.fit(DATA, verbose=0, callbacks=[RegularizationWarmup()])
