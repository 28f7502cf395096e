"""Keras' applications as classifiers: preprocessing, weights, training."""

import sys
import urllib.error

import keras
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import ROOT, THOROUGH, shell

import dd_keras
from dd_keras.attacks import DeepFool, kernels
from dd_keras.networks import applications

# The cheapest to trace of three kinds: plain, depthwise, and inverted residual
# blocks with squeeze and excitation; preprocessing of two kinds, and the
# network's own. benchmarks/applications.py trains one of each family.
TRAINED = {"VGG16": 32, "MobileNet": 32, "MobileNetV3Small": 32}
if THOROUGH:  # residual, inverted residual, and separable blocks
    TRAINED |= {"ResNet50V2": 32, "MobileNetV2": 32, "Xception": 71}
SMALLEST = {
    "convnext": "ConvNeXtTiny",
    "densenet": "DenseNet121",
    "efficientnet": "EfficientNetB0",
    "efficientnet_v2": "EfficientNetV2B0",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "nasnet": "NASNetMobile",
    "resnet": "ResNet50",
    "resnet_v2": "ResNet50V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "xception": "Xception",
}
PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
PIXELS = PIXELS.astype("float32")


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark, whose flags are undefined again afterwards."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import applications as module

        yield module
        sys.modules.pop("applications")


@pytest.fixture(scope="module")
def vgg():
    keras.utils.set_random_seed(0)
    return applications.build("VGG16", (32, 32, 3), 3)


def test_names_are_all_that_keras_has():
    assert list(applications.NAMES) == sorted(applications.NAMES)
    assert {"MobileNetV2", "ResNet50", "ConvNeXtXLarge"} <= set(
        applications.NAMES
    )
    for name in applications.NAMES:
        assert callable(getattr(keras.applications, name))
    members = [n for names in applications.FAMILIES.values() for n in names]
    assert sorted(members) == list(applications.NAMES)


def test_smallest_of_each_family_comes_first():
    first = {f: names[0] for f, names in applications.FAMILIES.items()}
    assert first == SMALLEST
    assert applications.FAMILIES["resnet"] == (
        "ResNet50", "ResNet101", "ResNet152"
    )  # fmt: skip
    assert applications.family("MobileNetV3Large") == "mobilenet_v3"


@pytest.mark.parametrize("name", SMALLEST.values())
def test_preprocessing_is_the_familys(name):
    layer = applications.ApplicationPreprocessing(name)
    module = getattr(keras.applications, applications.family(name))
    expected = module.preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(layer(PIXELS), expected, rtol=1e-6, atol=1e-5)
    symbolic = layer(keras.Input((32, 32, 3)))
    assert symbolic.shape == (None, 32, 32, 3)


def test_preprocessing_in_its_three_kinds():
    white = np.full((1, 1, 1, 3), 255.0, "float32")
    found = {
        name: applications.ApplicationPreprocessing(name)(white)[0, 0, 0]
        for name in ("VGG16", "MobileNet", "DenseNet121", "ConvNeXtTiny")
    }
    np.testing.assert_allclose(
        found["VGG16"], [255 - 103.939, 255 - 116.779, 255 - 123.68], rtol=1e-6
    )  # blue, green, red less their means
    np.testing.assert_allclose(found["MobileNet"], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(
        found["DenseNet121"],
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(found["ConvNeXtTiny"], [255.0] * 3)


def test_preprocessing_of_other_dtypes():
    layer = applications.ApplicationPreprocessing("MobileNet")
    whole = PIXELS.astype("uint8")
    expected = layer(whole.astype("float32"))
    np.testing.assert_array_equal(layer(whole), expected)
    precise = applications.ApplicationPreprocessing("VGG16", dtype="float64")
    assert precise(PIXELS.astype("float64")).dtype == "float64"
    half = applications.ApplicationPreprocessing("VGG16", dtype="mixed_float16")
    assert half(PIXELS).dtype == "float16"
    np.testing.assert_allclose(
        half(PIXELS),
        applications.ApplicationPreprocessing("VGG16")(PIXELS),
        rtol=1e-3,
        atol=1e-4,
    )


def test_preprocessing_is_serialisable():
    layer = applications.ApplicationPreprocessing("VGG16", name="pre")
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(again(PIXELS), layer(PIXELS))


@pytest.mark.parametrize("name", ["VGG16", "MobileNetV3Small"])
def test_network_gives_logits_of_keras_network_behind_preprocessing(name):
    model = applications.build(name, (32, 32, 3), 5)
    assert model.name == name
    assert model.input_shape == (None, 32, 32, 3)
    assert model.output_shape == (None, 5)
    assert dd_keras.logits_model(model) is model
    preprocessing, backbone, head = model.layers[1:]
    expected = head(backbone(preprocessing(PIXELS)))
    np.testing.assert_allclose(model(PIXELS), expected, rtol=1e-5, atol=1e-6)
    bare = getattr(keras.applications, name)(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    bare.set_weights(backbone.get_weights())
    module = getattr(keras.applications, applications.family(name))
    features = bare(module.preprocess_input(PIXELS.copy()))
    np.testing.assert_allclose(
        model(PIXELS), head(features), rtol=1e-4, atol=1e-5
    )


def test_a_thousand_classes_are_keras_whole_network():
    model = applications.build("MobileNet", (32, 32, 3), 1000)
    assert model.output_shape == (None, 1000)
    whole = keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), classifier_activation=None
    )
    whole.set_weights(model.get_weights())
    module = keras.applications.mobilenet
    expected = whole(module.preprocess_input(PIXELS.copy()))
    np.testing.assert_allclose(model(PIXELS), expected, rtol=1e-5, atol=1e-6)
    assert dd_keras.logits_model(model) is model


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_of_deep_defense(benchmark, name):
    row = benchmark.check(name)
    assert row["input_size"] == TRAINED[name]
    assert row["finite"]
    assert row["with_gradient"] == row["variables"] > 20
    assert row["with_regularizer_gradient"] == row["variables"]
    assert 0 < row["rho2"] < 1
    assert row["saved_and_loaded"]


def test_check_notices_what_is_missing(benchmark, monkeypatch):
    """A variable without a gradient, and a loaded model that is another."""

    class Unused(keras.layers.Layer):
        def build(self, input_shape):
            self.unused = self.add_weight(shape=(1,), name="unused")

        def call(self, inputs):
            return inputs

    def broken(name):
        inputs = keras.Input((4, 4, 3))
        x = Unused()(keras.layers.Flatten()(inputs))
        return keras.Model(inputs, keras.layers.Dense(3)(x)), 4

    monkeypatch.setattr(benchmark, "smallest_input", broken)
    monkeypatch.setattr(benchmark, "same_after_saving", lambda *_: False)
    row = benchmark.check("broken")
    assert row["variables"] == 3
    assert row["with_gradient"] == row["with_regularizer_gradient"] == 2
    assert not row["saved_and_loaded"]


def test_layers_of_the_nested_network_are_replaced_in_attacks(vgg):
    with kernels.better_gradients(vgg):
        replaced = {
            layer.name
            for layer in vgg._flatten_layers()
            if {"convolution_op", "call"} & set(vars(layer))
        }
    pools = {f"block{number}_pool" for number in range(1, 6)}
    assert replaced == {"block1_conv1", *pools}


@pytest.mark.thorough
def test_defended_network_loads_in_another_process(vgg, tmp_path):
    model = dd_keras.DeepDefenseModel(
        vgg, attack=DeepFool(max_iter=2, candidates=2)
    )
    path, outputs = tmp_path / "defended.keras", tmp_path / "outputs.npy"
    model.save(path)
    script = (
        "import sys, keras, numpy as np; import dd_keras.networks.applications;"
        "model = keras.saving.load_model(sys.argv[1]);"
        "rng = np.random.default_rng(0);"
        "x = rng.uniform(0, 255, (2, 32, 32, 3)).astype('float32');"
        "np.save(sys.argv[2], model(x))"
    )
    done = shell("-c", script, path, outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(
        np.load(outputs), model(PIXELS), rtol=1e-5, atol=1e-6
    )


# Weights


@pytest.fixture(scope="module")
def mobilenet_files(tmp_path_factory):
    """Files of a MobileNet with and without its last layer."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(1)
    whole = keras.applications.MobileNet(weights=None)
    bare = keras.applications.MobileNet(
        include_top=False, weights=None, pooling="avg"
    )
    bare.set_weights(whole.get_weights()[: len(bare.weights)])
    files = {}
    for name, model in {"whole": whole, "bare": bare}.items():
        for ending in (".weights.h5", ".h5", ".keras"):
            path = files[name + ending] = str(folder / (name + ending))
            if ending == ".weights.h5":
                model.save_weights(path)
            else:
                model.save(path)
    return files, bare.get_weights(), whole.get_weights()


@pytest.mark.parametrize(
    "file",
    [
        "bare.weights.h5",
        "bare.h5",
        "bare.keras",
        "whole.weights.h5",
        "whole.h5",
        "whole.keras",
    ],
)
def test_weights_file_with_other_classes(mobilenet_files, file):
    files, expected, _ = mobilenet_files
    model = applications.build("MobileNet", (32, 32, 3), 3, files[file])
    backbone = model.layers[2].get_weights()
    for one, other in zip(backbone, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.get_layer("predictions").units == 3


@pytest.mark.parametrize("file", ["whole.weights.h5", "whole.h5"])
def test_weights_file_with_a_thousand_classes(mobilenet_files, file):
    files, _, expected = mobilenet_files
    model = applications.build("MobileNet", (32, 32, 3), 1000, files[file])
    for one, other in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "classes", "file", "complaint"),
    [
        (
            "MobileNet",
            1000,
            "bare.h5",
            r"weights: expected a file .* of Keras' MobileNet, with 1,000 "
            r"classes \(include_top=True\); bare\.h5 does not fit: ",
        ),
        (
            "VGG16",
            3,
            "bare.weights.h5",
            r"weights: expected a file .* of Keras' VGG16, without its last "
            r"layer \(include_top=False\), or all of it; bare\.weights\.h5 ",
        ),
    ],
)
def test_weights_of_another_network(
    mobilenet_files, name, classes, file, complaint
):
    path = mobilenet_files[0][file]
    with pytest.raises(ValueError, match=complaint):
        applications.build(name, (32, 32, 3), classes, path)


def test_file_that_holds_no_weights(tmp_path):
    path = tmp_path / "text.h5"
    path.write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.h5 does not fit"):
        applications.build("MobileNet", (32, 32, 3), 3, path)


def test_imagenet_weights_without_a_network(monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    def get_file(fname, origin, **kwargs):
        """As Keras' where nothing was downloaded before."""
        try:
            no_network()
        except urllib.error.URLError as error:
            raise Exception(
                f"URL fetch failure on {origin}: None -- {error.reason}"
            ) from error

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    complaint = (
        r"weights: the ImageNet weights of VGG16 could not be downloaded \(.*"
        r"no network here\)\. Get vgg16_weights_tf_dim_ordering_tf_kernels_"
        r"notop\.h5 where .* put it in ~/\.keras/models, where Keras looks "
        r"for it, or pass weights=PATH_OF_FILE\."
    )
    with pytest.raises(RuntimeError, match=complaint):
        applications.build("VGG16", (32, 32, 3), 3, "imagenet")


# Bad arguments


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"name": "mobilenet-v2"},
            "name: .* received 'mobilenet-v2'. Did you mean 'MobileNetV2'",
        ),
        ({"name": "LeNet"}, r"name: .* received 'LeNet'\."),
        ({"name": 7}, r"name: .* received 7\. There are \('ConvNeXtBase', "),
        (
            {"input_shape": (32, 32, 1)},
            r"input_shape: expected \(height, width, 3\).* received \(32, 32, "
            r"1\)\.",
        ),
        ({"input_shape": 32}, "input_shape: .* received 32"),
        ({"input_shape": (None, None, 3)}, "input_shape: .* received .None"),
        (
            {"input_shape": (16, 16, 3)},
            r"input_shape: Keras has no VGG16 of \(16, 16, 3\) .*: Input size "
            "must be at least 32x32",
        ),
        ({"num_classes": 1}, "num_classes: .* at least 2; received 1"),
        ({"num_classes": 2.0}, r"num_classes: .* received 2\.0"),
        ({"weights": "noisy"}, "weights: expected None, 'imagenet' or .*noisy"),
        ({"weights": "no.h5"}, r"weights: .* there is no file 'no\.h5'"),
        ({"weights": True}, "weights: .* received True"),
    ],
)
def test_bad_arguments(change, complaint):
    arguments = {"name": "VGG16", "input_shape": (32, 32, 3), "num_classes": 3}
    with pytest.raises(ValueError, match=complaint):
        applications.build(**{**arguments, **change})


def test_preprocessing_of_an_unknown_network():
    with pytest.raises(ValueError, match=r"received 'VGG17'\. Did you mean"):
        applications.ApplicationPreprocessing("VGG17")
