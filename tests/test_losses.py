import keras
import numpy as np
import pytest

from dd_keras.classifier.losses import classification_loss

NAMES = {
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "categorical_focal_crossentropy": "CategoricalFocalCrossentropy",
    "binary_crossentropy": "BinaryCrossentropy",
    "binary_focal_crossentropy": "BinaryFocalCrossentropy",
}


@pytest.mark.parametrize("activation", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("function", NAMES)
def test_named_crossentropies_fit_the_outputs(function, activation):
    for given in (function, NAMES[function], getattr(keras.losses, function)):
        loss = classification_loss(given, activation)
        assert type(loss).__name__ == NAMES[function]
        assert loss.get_config()["from_logits"] == (activation == "linear")


def test_logits_and_probabilities_give_the_same_loss():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1])
    name = "sparse_categorical_crossentropy"
    from_logits = classification_loss(name, "linear")(labels, logits)
    probabilities = keras.ops.softmax(logits)
    from_softmax = classification_loss(name, "softmax")(labels, probabilities)
    np.testing.assert_allclose(from_logits, from_softmax, rtol=1e-5)


def test_other_losses_come_back_as_they_are():
    def mine(y_true, y_pred):
        return keras.ops.sum(y_pred - y_true, -1)

    fitting = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1
    )
    for loss in (mine, fitting, keras.losses.CategoricalHinge()):
        assert classification_loss(loss, "linear") is loss
    assert classification_loss(None, "linear") is None


@pytest.mark.parametrize(
    "loss",
    ["mse", "mean_absolute_error", "huber", keras.losses.LogCosh()],
)
def test_regression_losses_are_refused(loss):
    with pytest.raises(
        ValueError, match=r"loss: expected a classification loss.*received \w"
    ):
        classification_loss(loss, "linear")


@pytest.mark.parametrize(
    ("activation", "from_logits", "outputs"),
    [("linear", False, "logits"), ("softmax", True, "probabilities")],
)
def test_mismatch_is_refused(activation, from_logits, outputs):
    loss = keras.losses.CategoricalCrossentropy(from_logits=from_logits)
    with pytest.raises(
        ValueError,
        match=rf"loss: expected from_logits={not from_logits}.*outputs are "
        rf"{outputs}; received CategoricalCrossentropy\(from_logits="
        rf"{from_logits}\)",
    ):
        classification_loss(loss, activation)
