"""A fit that is stopped at any step, and goes on as if it had not been."""

import csv
import os
import pathlib
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import THOROUGH, program, thorough_but

import dd_keras
from dd_keras import datasets, training

STEPS, EPOCHS = 4, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(18, 6)).astype(np.float32)
Y = rng.integers(0, 3, 18)


class Killed(BaseException):
    """Ends a process in a test, as far as training can tell."""


class Kill(keras.callbacks.Callback):
    """Kills at the n-th call of a hook."""

    def __init__(self, hook, count):
        super().__init__()
        self.left = count
        setattr(self, hook, self._count)

    def _count(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            raise Killed


def epochs(x=X, batch_size=5):
    source = tf.data.Dataset.from_tensor_slices((x, Y[: len(x)]))
    return datasets.ResumableBatches(source, None, batch_size, seed=3)


def validation():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(9)


def model(seed=0, defended=False, together=1):
    """All that has a state: momentum, dropout, statistics, constraints."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(3),
        ]
    )
    dd_keras.add_parseval_constraints(network, 1e-2, 0.5, seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if defended:
        attack = dd_keras.attacks.DeepFool(max_iter=2)
        network = dd_keras.DeepDefenseModel(
            network, lam=1.0, c=2.0, attack=attack, evaluation_attack=attack
        )
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [STEPS + 1], [1e-2, 1e-3]
    )
    network.compile(
        dd_keras.CoupledSGD(rate),
        loss,
        metrics=["accuracy"],
        steps_per_execution=together,
    )
    return network


def fit(
    directory,
    *callbacks,
    train=None,
    seed=0,
    defended=False,
    weight=1.0,
    together=1,
    ramp=(0.6, 1),
    **more,
):
    """Trains; returns all that must not depend on interruptions."""
    trained = model(seed, defended, together)
    best = dd_keras.KeepBest(accuracy_weight=weight)
    arguments = {
        "validation_data": validation(),
        "checkpoint_steps": 2,
        "best": best,
        "log": directory / "log.csv",
        "verbose": 0,
        **more,
    }
    ramp = [dd_keras.RegularizationWarmup(*ramp)] if defended else []
    history = dd_keras.resumable_fit(
        trained,
        train or epochs(),
        EPOCHS,
        directory / "checkpoints",
        callbacks=[*ramp, *callbacks],
        **arguments,
    )
    states = [
        tf.convert_to_tensor(v.value).numpy()
        for v in training.checkpoint.variables(trained)
    ]
    log = (directory / "log.csv").read_text()
    return trained, history.history, best.best, states, log


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing interrupts."""
    return fit(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_defense(tmp_path_factory):
    """A defence's training that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole_defense")
    return fit(directory, defended=True, weight=0.5)


def assert_same(found, expected):
    """To the bit."""
    assert found[1:3] == expected[1:3]
    for one, other in zip(found[3], expected[3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[4] == expected[4]


# With DD_KERAS_TEST_ALL=1 after each step; else up to the first of the second
# epoch, and after the last.
COUNTS = range(1, EPOCHS * STEPS + 1)
HOOKS = [
    *(
        ("on_train_batch_end", count)
        for count in COUNTS
        if THOROUGH or count <= STEPS + 1 or count == EPOCHS * STEPS
    ),
    ("on_train_batch_begin", 7),
    ("on_train_begin", 1),
    ("on_epoch_begin", 2),
    ("on_epoch_end", 1),
    ("on_epoch_end", 3),
    ("on_test_begin", 2),
    ("on_test_batch_end", 1),
    ("on_test_batch_end", 4),
    ("on_test_end", 2),
    ("on_train_end", 1),
]

QUICK_HOOKS = [
    ("on_train_batch_end", STEPS + 1),
    ("on_epoch_begin", 2),
    ("on_epoch_end", 1),
    ("on_test_batch_end", 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "count"), thorough_but(QUICK_HOOKS, HOOKS))
def test_killed_training_goes_on_as_if_nothing_had_been(
    whole, tmp_path, hook, count
):
    with pytest.raises(Killed):
        fit(tmp_path, Kill(hook, count))
    assert_same(fit(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "count"),
    thorough_but(
        [("on_train_batch_begin", STEPS + 4)],
        [
            ("on_train_batch_end", 3),
            ("on_train_batch_begin", STEPS + 4),
            ("on_test_batch_end", 2),
        ],
    ),
)
def test_killed_defense_goes_on_as_if_nothing_had_been(
    whole_defense, tmp_path, hook, count
):
    """With the attack, and the share of lam that was in force."""
    with pytest.raises(Killed):
        fit(tmp_path, Kill(hook, count), defended=True, weight=0.5)
    found = fit(tmp_path, defended=True, weight=0.5)
    assert_same(found, whole_defense)


@pytest.mark.slow
def test_killed_again_and_again(whole, tmp_path):
    """Also before it has come as far as it was."""
    for hook, count in [
        ("on_train_batch_end", 3),
        ("on_test_batch_end", 1),
        ("on_train_batch_begin", 1),
        ("on_epoch_begin", 2),
        ("on_train_batch_end", 8),
        ("on_test_end", 1),
    ]:
        with pytest.raises(Killed):
            fit(tmp_path, Kill(hook, count))
    assert_same(fit(tmp_path), whole)


def test_interruptions_are_what_was_tested(whole, tmp_path):
    """Another start gives other weights: the comparison can fail."""
    other = fit(tmp_path, seed=1)
    assert np.any(other[3][0] != whole[3][0])


def test_finished_training_ends_at_once(whole, tmp_path):
    fit(tmp_path)
    assert_same(
        fit(
            tmp_path, Kill("on_train_batch_begin", 1), Kill("on_test_begin", 1)
        ),
        whole,
    )


@pytest.mark.slow
def test_steps_that_are_done_are_not_done_again(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_end", STEPS + 3))
    taken = []

    class Counted(datasets.ResumableBatches):
        def starting_at(self, epoch, step=0):
            if (epoch, step) != (0, 0):  # a look at the first batch is free
                taken.append((epoch, step))
            return super().starting_at(epoch, step)

    source = tf.data.Dataset.from_tensor_slices((X, Y))
    trained, *_ = fit(tmp_path, train=Counted(source, None, 5, seed=3))
    assert taken == [(1, 2)]
    assert int(trained.optimizer.iterations) == EPOCHS * STEPS


def test_two_newest_checkpoints_are_kept(tmp_path):
    fit(tmp_path)
    assert names(tmp_path) == [
        "epoch_000002_step_000000004.npz",
        "epoch_000003_step_000000000.npz",
    ]


def names(directory):
    return sorted(os.listdir(directory / "checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"not a checkpoint",
        lambda data: bytes(len(data)),
    ],
)
def test_damaged_checkpoint_is_skipped_with_a_warning(whole, tmp_path, damage):
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_end", 7))
    older, newest = names(tmp_path)
    path = tmp_path / "checkpoints" / newest
    path.write_bytes(damage(path.read_bytes()))
    started = []

    class First(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            started.append(epoch)

    with pytest.warns(UserWarning, match=f"{newest}: expected a complete ch"):
        found = fit(tmp_path, First())
    assert started[0] == int(older[6:12])
    assert_same(found, whole)


@pytest.mark.slow
def test_array_of_another_shape_is_damage(whole, tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_end", 7))
    path = tmp_path / "checkpoints" / names(tmp_path)[-1]
    with np.load(path) as arrays:
        arrays = dict(arrays)
    arrays["values/0"] = arrays["values/0"][:-1]
    np.savez(path, **arrays)
    with pytest.warns(UserWarning, match="its arrays have other shapes"):
        assert_same(fit(tmp_path), whole)


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(whole, tmp_path):
    """Either the file before is used, or what is read is what was written."""
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_end", 7))
    trained = model()
    training.fit._build(trained, epochs())
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    older, newest = names(tmp_path)
    path = tmp_path / "checkpoints" / newest
    data = path.read_bytes()
    expected = checkpoints.newest(trained)
    places = np.random.default_rng(1).integers(0, len(data), 150)
    noticed = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                training.checkpoint.warnings, "warn", lambda *_, **__: 0
            )
            found = checkpoints.newest(trained)
        if (found.epoch, found.step) != (expected.epoch, expected.step):
            noticed += 1
            continue
        assert found.notes == expected.notes
        for one, other in zip(found.values, expected.values, strict=True):
            np.testing.assert_array_equal(one, other)
    assert noticed > 50
    del older


@pytest.mark.slow
def test_all_checkpoints_damaged_start_anew(whole, tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_end", 7))
    for name in names(tmp_path):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="expected a complete checkpoint"):
        assert_same(fit(tmp_path), whole)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    fit(tmp_path)
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(ValueError, match=r"of this model; .*(variable|has)"):
        dd_keras.resumable_fit(
            other, epochs(), 1, tmp_path / "checkpoints", verbose=0
        )


def test_checkpoint_of_other_batches_is_refused(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match=r"of 9 steps an epoch; it is of .* 4"):
        fit(tmp_path, train=epochs(batch_size=2))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_bad_checkpoint_steps_are_named(tmp_path, steps):
    with pytest.raises(ValueError, match="checkpoint_steps: expected a posit"):
        fit(tmp_path, checkpoint_steps=steps)


def test_any_keras_model_can_be_trained(tmp_path):
    def trained(directory, *callbacks):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        network.compile(
            "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        dd_keras.resumable_fit(
            network, epochs(), 2, directory, callbacks=callbacks, verbose=0
        )
        return network.get_weights()

    with pytest.raises(Killed):
        trained(tmp_path / "a", Kill("on_train_batch_end", STEPS + 2))
    for one, other in zip(
        trained(tmp_path / "a"), trained(tmp_path / "b"), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_killed_training_in_bfloat16_goes_on(tmp_path):
    """NumPy's files do not know this type."""

    def trained(directory, *callbacks):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(3, dtype="bfloat16")]
        network = keras.Sequential([keras.Input((6,)), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile("sgd", loss, metrics=["accuracy"])
        dd_keras.resumable_fit(
            network,
            epochs(),
            2,
            directory,
            validation_data=validation(),
            best=dd_keras.KeepBest(accuracy_weight=1.0),
            callbacks=callbacks,
            verbose=0,
        )
        return network.get_weights()

    with pytest.raises(Killed):
        trained(tmp_path / "a", Kill("on_train_batch_end", STEPS + 2))
    for one, other in zip(
        trained(tmp_path / "a"), trained(tmp_path / "b"), strict=True
    ):
        np.testing.assert_array_equal(one, other)

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.layers[0].kernel
            kernel.assign(kernel * np.nan)

    with pytest.raises(training.DivergenceError, match="kernel' is not f"):
        trained(tmp_path / "c", Break())


def test_log_is_whole_and_has_all_epochs(whole):
    rows = list(csv.DictReader(whole[4].splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    logged = [float(row["val_accuracy"]) for row in rows]
    assert logged == whole[1]["val_accuracy"]


# ---------------------------------------------------------------- best epoch


class Fake:
    """A model whose only weight is the number of the epoch."""

    def get_weights(self):
        return [self.epoch]

    def set_weights(self, weights):
        self.final = weights


def best_of(logs, **options):
    best, fake = dd_keras.KeepBest(**options), Fake()
    best.set_model(fake)
    for fake.epoch, values in enumerate(logs):
        best.on_epoch_end(fake.epoch, values)
    best.on_train_end()
    return best.best, getattr(fake, "final", None)


LOGS = [
    {"val_rho2": 0.2, "val_accuracy": 0.9},
    {"loss": 1.0},  # not validated
    {"val_rho2": float("nan"), "val_accuracy": 1.0},
    {"val_rho2": 0.3, "val_accuracy": 0.7},
    {"val_rho2": 0.3, "val_accuracy": 0.9},
]


@pytest.mark.parametrize(
    ("weight", "epoch", "score"), [(0.0, 3, 0.3), (0.5, 4, 0.6), (1.0, 0, 0.9)]
)
def test_best_is_the_first_of_the_largest_score(weight, epoch, score):
    logs = [*LOGS[:2], *LOGS[3:]] if weight == 1.0 else LOGS
    best, final = best_of(logs, accuracy_weight=weight)
    assert best["epoch"] == epoch
    assert best["score"] == pytest.approx(score)
    assert final == [epoch]


def test_without_validation_the_last_weights_stay():
    assert best_of([{"loss": 1.0}]) == (None, None)


def test_best_needs_its_value_in_the_logs():
    with pytest.raises(ValueError, match="expected 'val_rhoinf' in the logs"):
        best_of(LOGS, monitor="val_rhoinf")
    with pytest.raises(ValueError, match="accuracy_weight"):
        dd_keras.KeepBest(accuracy_weight=1.5)


def test_best_weights_are_those_of_the_epoch(tmp_path):
    seen = []

    class Weights(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.get_weights())

    trained, logs, best, *_ = fit(tmp_path, Weights())
    assert best["epoch"] == int(np.argmax(logs["val_accuracy"]))
    for one, other in zip(
        trained.get_weights(), seen[best["epoch"]], strict=True
    ):
        np.testing.assert_array_equal(one, other)


# --------------------------------------------------------------------- guards


def test_nan_in_the_middle_of_an_epoch_is_named(tmp_path):
    x = X.copy()
    batch, _ = next(iter(epochs().starting_at(1, 2)))
    place = int(np.argmin(np.abs(X - batch[3]).sum(axis=1)))

    def poisoned(number):
        values = tf.where(number == 1, tf.constant(x_bad), tf.constant(X))
        return tf.data.Dataset.from_tensor_slices((values, Y))

    x_bad = x
    x_bad[place, 4] = np.nan
    train = datasets.ResumableBatches(poisoned, None, 5, seed=3)
    with pytest.raises(
        training.DivergenceError,
        match=r"^epoch 2, step 3: the loss is nan .* The likely cause: of the "
        "5 inputs of this batch 1 hold NaN or infinity, the first of them "
        "input 3",
    ):
        fit(tmp_path, train=train)
    assert names(tmp_path)[-1] == "epoch_000001_step_000000002.npz"


def test_updates_that_are_too_large_are_named(tmp_path):
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(1e38), loss)
    with pytest.raises(
        training.DivergenceError,
        match=r"^epoch 1, step \d: the loss is (nan|inf) .*finite.*too large",
    ):
        dd_keras.resumable_fit(
            network, epochs(), 3, tmp_path / "checkpoints", verbose=0
        )


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                kernel = self.model.layers[0].kernel
                kernel.assign(kernel * np.nan)

    with pytest.raises(
        training.DivergenceError,
        match=r"epoch 1, step 3: the weight '.*kernel' is no longer finite",
    ):
        fit(tmp_path, Break(), checkpoint_steps=1)
    assert names(tmp_path)[-1] == "epoch_000000_step_000000002.npz"


def test_lack_of_memory_names_what_helps():
    advice = "smaller batch .*more devices.*candidates=5.* \\(now 3\\)"

    class Model:
        attack = dd_keras.attacks.DeepFool(candidates=3)

    with (
        pytest.raises(training.OutOfMemoryError, match=advice),
        training.guards.memory_advice(Model()),
    ):
        raise tf.errors.ResourceExhaustedError(
            None, None, "OOM when allocating"
        )


@pytest.mark.slow
def test_step_that_needs_more_than_there_is(tmp_path):
    huge = 2**19  # times as many pixels a side: some 70 TB
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.UpSampling2D(huge),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    images = tf.data.Dataset.from_tensor_slices(
        (np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, int))
    )
    with pytest.raises(
        training.OutOfMemoryError, match="does not fit into memory"
    ):
        dd_keras.resumable_fit(
            network,
            datasets.ResumableBatches(images, None, 2),
            1,
            tmp_path,
            verbose=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "hook", ["on_train_batch_begin", "on_test_batch_begin"]
)
def test_signals_end_a_training_with_a_checkpoint(
    whole, tmp_path, number, hook
):
    class Signal(Kill):
        def _count(self, *_, **__):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(
        training.Interrupted, match="resumes from there"
    ) as caught:
        fit(tmp_path, Signal(hook, 3), checkpoint_steps=None)
    assert caught.value.signal == number
    assert signal.getsignal(number) == before
    step = {"on_train_batch_begin": 3, "on_test_batch_begin": 4}[hook]
    assert names(tmp_path)[-1].endswith(f"step_{step:09d}.npz")
    assert_same(fit(tmp_path), whole)


@pytest.mark.parametrize("epochs", [None, 0], ids=["trains", "is done"])
def test_signal_after_the_last_step_ends_it_as_well(whole, tmp_path, epochs):
    """What comes after the training must not begin."""

    class Signal(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    if epochs == 0:  # nothing is left to train
        fit(tmp_path)
    with pytest.raises(
        training.Interrupted, match="stopped by SIGTERM at its end; started"
    ):
        fit(tmp_path, Signal())
    assert_same(fit(tmp_path), whole)


def test_second_signal_ends_at_once():
    with training.guards.StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_full_disk_loses_nothing(whole, tmp_path):
    """A write that fails half way: no byte beyond some size is accepted."""
    limit = 6_000  # bytes a file may have; a checkpoint has more
    tests = pathlib.Path(__file__).parent
    finished = program(
        "-c",
        "import pathlib, resource, signal, sys\n"
        f"sys.path.insert(0, {str(tests)!r})\n"
        "import keras, test_training\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "class Full(keras.callbacks.Callback):\n"
        "    def on_epoch_begin(self, epoch, logs=None):\n"
        "        if epoch == 1:\n"
        "            resource.setrlimit(\n"
        f"                resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"test_training.fit(pathlib.Path({str(tmp_path)!r}), Full())\n",
    )
    assert finished.returncode == 1
    assert "OSError: [Errno 27]" in finished.stderr
    assert names(tmp_path) == [
        "epoch_000000_step_000000004.npz",
        "epoch_000001_step_000000000.npz",
    ]
    sizes = [p.stat().st_size for p in (tmp_path / "checkpoints").iterdir()]
    assert min(sizes) > limit
    assert_same(fit(tmp_path), whole)
