"""Classifiers of KerasHub, built from a configuration, are defended.

`make matrix-middle` runs these, in an environment of their own.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dd_keras
from dd_keras import attacks

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed: see `make matrix-middle`"
)
from keras_hub import layers, models  # noqa: E402

ATTACK = attacks.DeepFool(max_iter=2)


def resnet(shape):
    return models.ResNetBackbone(
        input_conv_filters=[64],  # the least it takes
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=shape,
    )


def vit(shape):
    return models.ViTBackbone(
        image_shape=shape,
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )


def mobilenet(shape):
    return models.MobileNetBackbone(
        stackwise_expansion=[[16]],
        stackwise_num_blocks=[1],
        stackwise_num_filters=[[8]],
        stackwise_kernel_size=[[3]],
        stackwise_num_strides=[[2]],
        stackwise_se_ratio=[[0.25]],
        stackwise_activation=[["relu"]],
        stackwise_padding=[[1]],
        output_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        input_num_filters=8,
        image_shape=shape,
    )


def efficientnet(shape):
    return models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0],
        stackwise_depth_coefficients=[1.0],
        stackwise_kernel_sizes=[3],
        stackwise_num_repeats=[1],
        stackwise_input_filters=[8],
        stackwise_output_filters=[8],
        stackwise_expansion_ratios=[2],
        stackwise_squeeze_and_excite_ratios=[0.25],
        stackwise_strides=[2],
        stackwise_block_types=["v1"],
        stackwise_force_input_filters=[0],
        stackwise_nores_option=[False],
        input_shape=shape,
    )


def swin(shape):
    return models.SwinTransformerBackbone(
        image_shape=shape,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=2,
        patch_size=2,
    )


TASKS = {
    "ResNet": resnet,
    "ViT": vit,
    "MobileNet": mobilenet,
    "EfficientNet": efficientnet,
    "SwinTransformer": swin,
}


def task(name, preprocessor=None, **settings):
    """A tiny task of three classes, with random weights."""
    keras.utils.set_random_seed(0)
    backbone = TASKS[name]((16, 16, 3))
    model = getattr(models, f"{name}ImageClassifier")(
        backbone=backbone,
        num_classes=3,
        preprocessor=preprocessor,
        **settings,
    )
    pixels = np.random.default_rng(1).uniform(size=(32, 16, 16, 3))
    settle(model, pixels.astype("float32"))
    return model


def settle(model, x):
    """Gives batch normalisation the statistics of a batch of inputs."""
    found = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in found]
    for layer in found:
        layer.momentum = 0.0
    model(x, training=True)
    for layer, momentum in zip(found, momenta, strict=True):
        layer.momentum = momentum


def preprocessor(name, size=(16, 16)):
    """The task's own preprocessor, to images of this size in [0, 1]."""
    converter = getattr(layers, f"{name}ImageConverter")(
        image_size=size, scale=1 / 255
    )
    return getattr(models, f"{name}ImageClassifierPreprocessor")(
        image_converter=converter
    )


def images(count, height=16, width=16):
    """Raw images, uint8, (count, height, width, 3)."""
    return np.random.default_rng(0).integers(
        0, 256, (count, height, width, 3), "uint8"
    )


def probabilities(logits):
    return tf.nn.softmax(logits).numpy()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_a_preprocessor_is_defended(name, tmp_path):
    classifier = task(name)
    x = (images(6) / 255).astype("float32")
    y = np.arange(6) % 3
    model = dd_keras.DeepDefenseModel(classifier, attack=ATTACK)
    expected = classifier.predict(x, verbose=0)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
    )
    model.compile(
        keras.optimizers.SGD(1e-2, global_clipnorm=1.0),
        "sparse_categorical_crossentropy",
    )
    before = [v.numpy() for v in model.trainable_variables]
    logs = model.fit(x, y, epochs=2, batch_size=6, verbose=0).history
    assert np.all(np.isfinite(logs["loss"]))
    assert np.all(np.asarray(logs["rho2"]) > 0)
    changed = [
        np.any(v.numpy() != old)
        for v, old in zip(model.trainable_variables, before, strict=True)
    ]
    # A softmax does not see the bias of an attention's keys.
    assert not [
        v.path
        for v, one in zip(model.trainable_variables, changed, strict=True)
        if not one and "key/bias" not in v.path
    ]
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())

    expected = classifier.predict(x, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
    report = dd_keras.evaluate_robustness(
        model, data, metrics=[ATTACK], verbose=0
    )
    np.testing.assert_array_equal(
        report.values["predictions"], expected.argmax(axis=-1)
    )
    model.save(tmp_path / "task.keras")
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
    )
    path = dd_keras.export(
        model, tmp_path / "served", attack=ATTACK, warm_up_requests=False
    )
    served = tf.saved_model.load(path).signatures["serving_default"]
    np.testing.assert_allclose(
        served(images=tf.constant(x))["probabilities"],
        probabilities(expected),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_task_that_ends_in_a_softmax_is_defended_by_its_logits():
    classifier = task("ResNet", activation="softmax")
    x = (images(4) / 255).astype("float32")
    network = dd_keras.logits_model(classifier)
    np.testing.assert_allclose(
        probabilities(network(x)), classifier(x), rtol=1e-4, atol=1e-5
    )


def wrapped_or_refused(classifier):
    """The wrapper; None where it refuses, naming the preprocessor."""
    try:
        return dd_keras.DeepDefenseModel(classifier, attack=ATTACK)
    except (TypeError, ValueError) as error:
        message = str(error)
        if "preprocessor" not in message:
            raise
        assert message.startswith("model: expected")
        return None


@pytest.mark.parametrize("shape", [(16, 16), (24, 20), (12, 12)])
@pytest.mark.parametrize("name", ["ResNet", "ViT"])
def test_a_preprocessor_is_taken_along_or_refused(name, shape):
    classifier = task(name, preprocessor(name))
    x = images(5, *shape)
    model = wrapped_or_refused(classifier)
    if model is None:
        return
    expected = classifier.predict(x, verbose=0)
    for batch in (x, x.astype("float32"), tf.data.Dataset.from_tensors(x)):
        np.testing.assert_allclose(
            model.predict(batch, verbose=0), expected, rtol=1e-4, atol=1e-5
        )


def test_fit_prepares_raw_images():
    classifier = task("ResNet", preprocessor("ResNet"))
    raw, y = images(6, 24, 20), np.arange(6) % 3
    model = wrapped_or_refused(classifier)
    if model is None:
        return
    bare = task("ResNet")  # the same weights, and fed by hand
    same = dd_keras.DeepDefenseModel(bare, attack=ATTACK)
    prepare = tf.function(classifier.preprocessor)
    x = prepare(tf.constant(raw))
    logs = []
    for one, inputs in ((model, raw), (same, x.numpy())):
        one.compile(
            keras.optimizers.SGD(1e-2, global_clipnorm=1.0),
            "sparse_categorical_crossentropy",
        )
        keras.utils.set_random_seed(1)
        found = one.fit(
            inputs, y, batch_size=6, validation_data=(inputs, y), verbose=0
        )
        logs.append(found.history)
    for key, values in logs[1].items():
        np.testing.assert_allclose(logs[0][key], values, rtol=1e-3, err_msg=key)
    for ours, other in zip(
        classifier.get_weights(), bare.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-5)


@pytest.fixture
def prepared():
    """(a task, the wrapper or None, raw images, predictions)."""
    classifier = task("ResNet", preprocessor("ResNet"))
    raw = images(6, 24, 20)
    model = wrapped_or_refused(classifier)
    if model is None:
        pytest.skip("refused: see test_a_preprocessor_is_taken_along")
    return classifier, model, raw, classifier.predict(raw, verbose=0)


def test_evaluation_prepares_raw_images(prepared):
    classifier, model, raw, expected = prepared
    y = np.arange(6) % 3
    data = tf.data.Dataset.from_tensor_slices((raw, y)).batch(3)
    report = dd_keras.evaluate_robustness(
        model, data, metrics=[ATTACK], verbose=0
    )
    np.testing.assert_array_equal(
        report.values["predictions"], expected.argmax(axis=-1)
    )
    bare = task("ResNet")
    x = tf.function(classifier.preprocessor)(tf.constant(raw))
    by_hand = dd_keras.evaluate_robustness(
        bare,
        tf.data.Dataset.from_tensor_slices((x, y)).batch(3),
        metrics=[ATTACK],
        verbose=0,
    )
    np.testing.assert_allclose(
        report.values["rho2"], by_hand.values["rho2"], rtol=1e-3
    )


def test_a_saved_task_prepares_raw_images(prepared, tmp_path):
    _, model, raw, expected = prepared
    model.save(tmp_path / "task.keras")
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    np.testing.assert_allclose(
        loaded.predict(raw, verbose=0), expected, rtol=1e-4, atol=1e-5
    )


def test_a_server_prepares_raw_images(prepared, tmp_path):
    _, model, raw, expected = prepared
    path = dd_keras.export(
        model,
        tmp_path / "served",
        image_shape=raw.shape[1:],
        attack=ATTACK,
        warm_up_requests=False,
    )
    served = tf.saved_model.load(path).signatures["serving_default"]
    np.testing.assert_allclose(
        served(images=tf.constant(raw, tf.float32))["probabilities"],
        probabilities(expected),
        rtol=1e-4,
        atol=1e-5,
    )
