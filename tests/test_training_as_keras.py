"""`resumable_fit` beside Keras' own `fit`: its data, options and results."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import thorough_but
from test_training import (
    EPOCHS,
    STEPS,
    Kill,
    Killed,
    X,
    Y,
    assert_same,
    epochs,
    fit,
    model,
    names,
    validation,
)

import dd_keras
from dd_keras import datasets, training


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing interrupts, one step at a time."""
    return fit(tmp_path_factory.mktemp("whole"))


def linear(seed=0, **options):
    """The smallest classifier."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(0.1), loss, **options)
    return network


def trained(directory, train=None, *callbacks, number=EPOCHS, **options):
    """(the weights, the history) of a small training."""
    network = linear()
    history = dd_keras.resumable_fit(
        network,
        epochs() if train is None else train,
        number,
        directory,
        callbacks=callbacks,
        **{"verbose": 0, **options},
    )
    return network.get_weights(), history


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# -------------------------------------------------------- steps per execution


@pytest.mark.parametrize("together", [2, 3, 4, 7])
def test_steps_are_the_same_however_many_are_run_at_once(
    whole, tmp_path, together
):
    """An epoch of four ends after four, also in twos, threes and sevens."""
    assert_same(fit(tmp_path, together=together), whole)


@pytest.mark.parametrize(
    ("before", "count", "after"),
    thorough_but(
        [(1, 3, 2), (3, 3, 1)],
        [(1, 3, 2), (1, 7, 3), (1, 2, 7), (2, 3, 1), (3, 3, 1), (3, 3, 2)],
    ),
)
def test_killed_training_goes_on_with_other_steps_per_execution(
    whole, tmp_path, before, count, after
):
    """`count`: executions until it is killed, in the middle of an epoch."""
    with pytest.raises(Killed):
        fit(
            tmp_path,
            Kill("on_train_batch_end", count),
            together=before,
            checkpoint_steps=1,
        )
    found = fit(tmp_path, together=after)
    assert_same(found, whole)
    assert int(found[0].optimizer.iterations) == EPOCHS * STEPS


DEFENDED = {"defended": True, "ramp": (0.5, 0)}


@pytest.fixture(scope="module")
def whole_defense(tmp_path_factory):
    """The same, of a defense."""
    return fit(tmp_path_factory.mktemp("whole_defense"), **DEFENDED)


@pytest.mark.thorough
@pytest.mark.parametrize(("before", "count", "after"), [(1, 3, 2), (2, 1, 1)])
def test_killed_defense_goes_on_with_other_steps_per_execution(
    whole_defense, tmp_path, before, count, after
):
    """Where a callback asks for another graph, after half an epoch."""
    with pytest.raises(Killed):
        fit(
            tmp_path,
            Kill("on_train_batch_end", count),
            together=before,
            checkpoint_steps=1,
            **DEFENDED,
        )
    found = fit(tmp_path, together=after, **DEFENDED)
    for one, other in zip(found[3], whole_defense[3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


class Switched(keras.Sequential):
    """Trains only where a new graph was asked for, as `scale_lam` does."""

    active = False

    def train_step(self, data):
        if self.active:
            return super().train_step(data)
        return {"loss": tf.zeros(())}


def test_new_graph_is_that_of_a_part_of_an_execution_too(tmp_path):
    """Of three and one steps: the last one has a graph of its own."""

    class Switch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.active = True
                self.model.make_train_function(force=True)

    network = Switched([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("sgd", loss, steps_per_execution=3)
    dd_keras.resumable_fit(
        network, epochs(), 3, tmp_path, callbacks=[Switch()], verbose=0
    )
    assert int(network.optimizer.iterations) == 2 * STEPS


def test_states_are_written_between_executions(tmp_path):
    """As soon as so many steps are done, counted in steps."""
    with pytest.raises(Killed):
        fit(
            tmp_path,
            Kill("on_test_begin", 1),
            together=3,
            checkpoint_steps=2,
        )
    assert names(tmp_path) == [
        "epoch_000000_step_000000003.npz",
        "epoch_000000_step_000000004.npz",
    ]


def test_nan_names_the_steps_of_its_execution(tmp_path):
    def poisoned(number):
        x = X.copy()
        x[:, 4] = np.nan
        values = tf.where(number == 1, tf.constant(x), tf.constant(X))
        return tf.data.Dataset.from_tensor_slices((values, Y))

    train = datasets.ResumableBatches(poisoned, None, 5, seed=3)
    with pytest.raises(
        training.DivergenceError,
        match=r"^epoch 2, steps 1 to 3: the loss is nan \(it was \d.* before\)"
        ".* of the 5 inputs of the batch of step 1 5 hold NaN",
    ):
        fit(tmp_path, train=train, together=3)


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_model_has_its_own_train_function_again(tmp_path, hook):
    """Also after an error while it goes through steps that are done."""
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_end", 3))
    again = model()
    with pytest.raises(Killed):
        dd_keras.resumable_fit(
            again,
            epochs(),
            EPOCHS,
            tmp_path / "checkpoints",
            callbacks=[Kill(hook, 2)],
            verbose=0,
        )
    before = int(again.optimizer.iterations)
    again.fit(X, Y, batch_size=6, verbose=0)
    assert int(again.optimizer.iterations) == before + 3


# ----------------------------------------------------------------------- data


def test_arrays_are_trained_on_as_their_epochs(tmp_path):
    source = tf.data.Dataset.from_tensor_slices((X, Y))
    expected, _ = trained(
        tmp_path / "a", datasets.ResumableBatches(source, None, 32)
    )
    found, _ = trained(tmp_path / "b", (X, Y))
    assert_equal(found, expected)
    expected, _ = trained(
        tmp_path / "c", datasets.ResumableBatches(source, None, 7)
    )
    found, history = trained(tmp_path / "d", (X, Y), batch_size=7)
    assert_equal(found, expected)
    assert history.params["steps"] == 3


def test_killed_training_on_weighted_arrays_goes_on(tmp_path):
    data = (X.astype(np.float64), Y.tolist(), np.linspace(0, 2, len(X)))
    expected, _ = trained(tmp_path / "a", data, batch_size=5)
    plain, _ = trained(tmp_path / "b", data[:2], batch_size=5)
    assert np.any(plain[0] != expected[0])
    options = {"batch_size": 5, "checkpoint_steps": 1}
    with pytest.raises(Killed):
        trained(tmp_path / "c", data, Kill("on_train_batch_end", 6), **options)
    found, _ = trained(tmp_path / "c", data, **options)
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (
            validation(),
            TypeError,
            "train: expected datasets.ResumableBatches, or a tuple of .*; "
            "received a tf.data.Dataset, which cannot begin in the middle .* "
            r"give datasets.ResumableBatches\(dataset, None, batch_size\)",
        ),
        (X, TypeError, "train: expected .* received a ndarray"),
        ((X,), TypeError, "train: expected .* received a tuple of 1"),
        ((X, "labels"), ValueError, r"received shapes \(18, 6\), \(\)"),
        ((X, object()), TypeError, "y: expected an array; received a object"),
        (
            (X, Y[1:]),
            ValueError,
            r"x, y: expected arrays of one length; received shapes \(18, 6\), "
            r"\(17,\)",
        ),
        ((X[:0], Y[:0]), ValueError, "expected a data set of one or more"),
    ],
)
def test_other_data_are_refused(tmp_path, train, error, message):
    with pytest.raises(error, match=message):
        trained(tmp_path, train)


@pytest.mark.parametrize("size", [0, -1, 2.5, "all"])
def test_bad_batch_size_is_named(tmp_path, size):
    with pytest.raises(ValueError, match="batch_size: expected a positive int"):
        trained(tmp_path, (X, Y), batch_size=size)


def test_epochs_have_a_batch_size_of_their_own(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size: expected None with .* 5"
    ):
        trained(tmp_path, batch_size=5)


# -------------------------------------------------------------- class weights

WEIGHTS = {0: 5.0, 2: 0.0}


def test_class_weights_are_those_of_keras(tmp_path):
    found, _ = trained(tmp_path, class_weight=WEIGHTS)
    network = linear()
    network.fit(
        epochs().starting_at(0),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        class_weight=WEIGHTS,
        shuffle=False,
        verbose=0,
    )
    assert_equal(found, network.get_weights())
    plain, _ = trained(tmp_path / "plain")
    assert np.any(plain[0] != found[0])


def test_class_weights_are_heeded_after_an_interruption(tmp_path):
    options = {"class_weight": WEIGHTS, "checkpoint_steps": 1}
    expected, _ = trained(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        trained(tmp_path, None, Kill("on_train_batch_end", 6), **options)
    assert_equal(trained(tmp_path, **options)[0], expected)


# -------------------------------------------------------------------- history


def test_history_is_that_of_keras(tmp_path):
    _, found = trained(
        tmp_path, validation_data=validation(), validation_freq=2
    )
    expected = linear().fit(
        epochs().starting_at(0),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        validation_data=validation(),
        validation_freq=2,
        shuffle=False,
        verbose=0,
    )
    assert isinstance(found, keras.callbacks.History)
    assert found.history == expected.history
    assert len(found.history["val_loss"]) == 1
    assert found.epoch == expected.epoch == list(range(EPOCHS))
    assert found.params == expected.params
    assert found.seconds > 0


def test_history_has_the_epochs_of_all_processes(tmp_path):
    _, expected = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path, None, Kill("on_epoch_begin", 3))
    _, found = trained(tmp_path)
    _, again = trained(tmp_path)  # nothing is left to do
    for history in (found, again):
        assert history.history == expected.history
        assert history.epoch == list(range(EPOCHS))
        assert history.model.history is history
    assert again.seconds > 0.5 * found.seconds  # all of them, once more


# ---------------------------------------------------- one object, used twice


def fitted(best, score):
    """A model that `best` has seen one epoch of, and its weights then."""
    network = linear(int(10 * score))
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(val_rho2=score)
    )
    network.fit(X, Y, verbose=0, callbacks=[tell, best])
    return network.get_weights()


def test_best_is_of_this_fit_alone():
    """A worse model keeps its own weights."""
    best = dd_keras.KeepBest()
    first, second = fitted(best, 0.9), fitted(best, 0.1)
    assert np.any(first[0] != second[0])
    assert best.best == {"epoch": 0, "score": 0.1}
    assert_equal(best.weights, second)


def test_best_of_another_training_is_not_carried_over(whole, tmp_path):
    best = dd_keras.KeepBest(accuracy_weight=1.0)
    best.best, best.weights = {"epoch": 7, "score": 2.0}, [np.zeros(3)]
    found = fit(tmp_path, best=best)
    assert best.best == whole[2]
    assert_equal(found[3], whole[3])


def test_best_among_the_callbacks_is_refused(tmp_path):
    """It would forget the best of earlier processes."""
    with pytest.raises(ValueError, match=r"callbacks: .* Give it as `best`"):
        trained(tmp_path, None, dd_keras.KeepBest())


def test_no_callbacks_may_be_none(tmp_path):
    dd_keras.resumable_fit(
        linear(), epochs(), 1, tmp_path, callbacks=None, verbose=0
    )


def test_error_tells_no_loss_of_an_earlier_fit():
    guard = training.StopAtNaN()
    linear().fit(X, Y, verbose=0, callbacks=[guard])
    with pytest.raises(
        training.DivergenceError, match=r"^epoch 1, step 1: the loss is nan\. "
    ):
        linear().fit(X * np.nan, Y, verbose=0, callbacks=[guard])


def test_signal_is_forgotten_at_the_next_start():
    signals = training.guards.StopSignals()
    signals.received = 2
    with signals:
        assert signals.received is None
