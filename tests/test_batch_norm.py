import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import train_step

from dd_keras import DeepDefenseModel, DefenseModel, attacks, defenses
from dd_keras.defenses import batch_norm

TRAINED, FROZEN_STATISTICS, FROZEN = MODES = defenses.BATCH_NORM_MODES
HELD = [FROZEN_STATISTICS, FROZEN]


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3


def network(nested=False, dropout=0.0):
    """Two batch normalisations, with statistics and scales of their own."""
    keras.utils.set_random_seed(0)
    norms = [
        keras.layers.BatchNormalization(name=f"norm{i}", momentum=0.5)
        for i in range(2)
    ]
    inner = [
        keras.Input((4,)),
        keras.layers.Dense(6, name="hidden"),
        norms[0],
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(dropout, seed=1),
        keras.layers.Dense(5, "tanh", name="second"),
    ]
    top = [norms[1], keras.layers.Dense(3, name="top")]
    if nested:
        body = keras.Sequential(inner, name="body")
        inputs = keras.Input((4,))
        z = body(inputs)
        for layer in top:
            z = layer(z)
        model = keras.Model(inputs, z)
    else:
        model = keras.Sequential([*inner, *top])
    rng = np.random.default_rng(1)
    for norm in norms:
        size = norm.gamma.shape
        values = rng.uniform(0.5, 1.5, (4, *size))
        norm.set_weights([values[0], values[1] - 1, values[2] - 1, values[3]])
    return model


def norms_of(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def defended(model, mode, cls=DefenseModel, optimizer=None, **kwargs):
    model = cls(model, batch_norm=mode, **kwargs)
    model.compile(
        optimizer or keras.optimizers.SGD(1.0),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    return model


def name_of(weight):
    """Its layer's name and its own; those of models differ by the run."""
    return "/".join(weight.path.split("/")[-2:])


def values(weights):
    return {name_of(w): w.numpy() for w in weights}


def crossentropy(y, logits):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    return tf.reduce_mean(losses)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("mode", MODES)
def test_step_is_that_of_the_mode(mode, nested):
    """The loss normalises by batch or moving statistics; these stay or move."""
    x, y = data()
    by_hand = network(nested)
    with tf.GradientTape() as tape:
        loss = crossentropy(y, by_hand(x, training=mode == TRAINED))
    trained = [
        w
        for w in by_hand.trainable_weights
        if mode != FROZEN or "norm" not in w.path
    ]
    gradients = tape.gradient(loss, trained)
    expected = dict(zip(map(name_of, trained), gradients, strict=True))
    classifier = network(nested)
    model = defended(classifier, mode)
    assert [name_of(w) for w in model.trainable_weights] == list(expected)
    assert model.trainable_variables == model.trainable_weights
    before = values(classifier.weights)
    logs = train_step(model, x, y)
    after = values(classifier.weights)
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-5)
    for path, gradient in expected.items():
        np.testing.assert_allclose(
            before[path] - after[path], gradient, rtol=1e-4, atol=1e-5
        )
        assert np.abs(gradient).max() > 0 or "bias" in path
    moving = [path for path in before if "moving" in path]
    assert len(moving) == 4
    for path in before:
        if path in expected:
            continue
        if mode == TRAINED:
            assert path in moving
            assert (after[path] != before[path]).all()
            hand = values(by_hand.weights)[path]  # moved by its one pass
            np.testing.assert_allclose(after[path], hand, rtol=1e-5)
        else:
            np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize("mode", MODES)
def test_layers_are_as_they_were_afterwards(mode):
    x, y = data()
    classifier = network()
    model = defended(classifier, mode)
    model.fit(x, y, verbose=0)
    for layer in classifier.layers:
        assert layer.trainable
        assert "call" not in vars(layer)
    # On its own, the classifier trains as ever.
    before = values(classifier.weights)
    classifier.compile("sgd", "mse", run_eagerly=True)
    classifier.fit(x, np.zeros((12, 3)), verbose=0)
    for path, value in values(classifier.weights).items():
        assert (value != before[path]).any(), path


@pytest.mark.parametrize("mode", HELD)
def test_layers_are_as_they_were_after_an_exception(mode):
    classifier = network()
    model = defended(classifier, mode)
    seen = []

    def fail(inputs, **kwargs):
        seen.extend("call" in vars(norm) for norm in norms_of(classifier))
        raise RuntimeError("in the middle")

    classifier.layers[-1].call = fail
    with pytest.raises(RuntimeError, match="in the middle"):
        model(data()[0], training=True)
    assert seen == [True, True]
    assert not any("call" in vars(norm) for norm in norms_of(classifier))


def test_layers_that_are_not_trainable_stay_so():
    classifier = network()
    norms_of(classifier)[0].trainable = False
    classifier.layers[0].trainable = False
    for mode, names in (
        (FROZEN_STATISTICS, {"second", "norm1", "top"}),
        (FROZEN, {"second", "top"}),
    ):
        model = defended(classifier, mode)
        found = {w.path.split("/")[-2] for w in model.trainable_weights}
        assert found == names


@pytest.mark.parametrize(
    ("mode", "dropout", "shares"),
    [
        (TRAINED, 0.0, False),
        (FROZEN_STATISTICS, 0.0, True),
        (FROZEN, 0.0, True),
        (FROZEN, 0.5, False),
    ],
)
def test_loss_and_attack_share_a_pass_where_they_see_one_network(
    mode, dropout, shares
):
    given = []

    class Spy(attacks.DeepFool):
        def search(self, network, x, y=None, forward=None):
            given.append(forward is not None)
            return super().search(network, x, y, forward)

    x, y = data()
    model = defended(
        network(dropout=dropout), mode, DeepDefenseModel, attack=Spy(max_iter=2)
    )
    before = model.get_weights()
    logs = train_step(model, x, y)
    assert given == [shares]
    if shares:  # to the same end as without
        apart = defended(
            network(dropout=dropout),
            mode,
            DeepDefenseModel,
            attack=attacks.DeepFool(max_iter=2),
        )
        apart._same_in_training = False
        expected = train_step(apart, x, y)
        assert logs == pytest.approx(expected, rel=1e-5)
        for old, a, b in zip(
            before, model.get_weights(), apart.get_weights(), strict=True
        ):
            np.testing.assert_allclose(a - old, b - old, rtol=1e-3, atol=1e-4)


def test_dropout_stays_at_work_where_statistics_are_held():
    x, _ = data()
    model = defended(network(dropout=0.5), FROZEN)
    one, other = model(x, training=True), model(x, training=True)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(model(x), model.model(x))


@pytest.mark.slow
def test_optimizers_with_state_know_only_what_is_trained(tmp_path):
    x, y = data()
    classifier = network(nested=True)
    model = defended(classifier, FROZEN, optimizer=keras.optimizers.Adam(0.05))
    held = values(w for norm in norms_of(classifier) for w in norm.weights)
    history = model.fit(x, y, epochs=10, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert not any("norm" in v.path for v in model.optimizer.variables)
    after = values(classifier.weights)
    for path, value in held.items():
        np.testing.assert_array_equal(after[path], value)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.batch_norm == FROZEN
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    for each in (model, again):
        each.run_eagerly = True
        each.train_on_batch(x, y)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_compiled_steps_are_the_eager_ones(jit_compile):
    x, y = data()
    eager = defended(network(nested=True), FROZEN_STATISTICS)
    model = DefenseModel(network(nested=True), batch_norm=FROZEN_STATISTICS)
    model.compile(
        keras.optimizers.SGD(1.0),
        "sparse_categorical_crossentropy",
        jit_compile=jit_compile,
    )
    for each in (eager, model):
        for _ in range(2):
            each.train_on_batch(x, y)
    for a, b in zip(model.get_weights(), eager.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_statistics_are_frozen_within_the_context_alone():
    x, _ = data()
    model = network()
    inference = model(x, training=False)
    before = values(model.weights)
    with batch_norm.frozen_statistics(model, FROZEN):
        np.testing.assert_array_equal(model(x, training=True), inference)
    for path, value in values(model.weights).items():
        np.testing.assert_array_equal(value, before[path])
    with batch_norm.frozen_statistics(model, TRAINED):
        assert np.abs(model(x, training=True) - inference).max() > 1e-3
