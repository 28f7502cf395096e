import os
import re
import struct
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
import tfds_shaped

from dd_keras import datasets
from dd_keras.datasets import images as datasets_images
from dd_keras.datasets import tfds_sets


def arrays(dataset):
    """All images and all labels of an unbatched data set."""
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def digits_data():
    return datasets.load("digits")


@pytest.fixture
def small_images():
    """Ten constant 2x2 images, each of its own number, which is its label."""
    numbers = np.arange(10)
    images = np.ones((10, 2, 2, 1)) * numbers[:, None, None, None]
    return tf.data.Dataset.from_tensor_slices(
        (images.astype("float32"), numbers)
    )


def epoch(batches):
    return [labels.tolist() for _, labels in batches.as_numpy_iterator()]


def test_digits_have_the_documented_form(digits_data):
    for split, size in ((digits_data.train, 1437), (digits_data.test, 360)):
        image, label = split.element_spec
        assert (image.shape, image.dtype) == ((8, 8, 1), tf.float32)
        assert (label.shape, label.dtype) == ((), tf.int64)
        assert int(split.cardinality()) == size
        images, labels = arrays(split)
        assert images.shape == (size, 8, 8, 1)
        assert images.min() == 0.0
        assert images.max() == 255.0
        assert set(labels) == set(range(10))
    assert digits_data.image_shape == (8, 8, 1)
    assert digits_data.num_classes == 10


def test_digits_images_belong_to_their_labels(digits_data):
    from sklearn.datasets import load_digits

    bundled = load_digits()
    known = {
        image.astype("float32").tobytes(): label
        for image, label in zip(bundled.images, bundled.target, strict=True)
    }
    for split in (digits_data.train, digits_data.test):
        for image, label in split.as_numpy_iterator():
            ink = (image[..., 0] * 16 / 255).round().astype("float32")
            assert known[ink.tobytes()] == label


def test_digits_splits_are_disjoint_and_complete(digits_data):
    from sklearn.datasets import load_digits

    def keys(split):
        return {image.tobytes() for image in arrays(split)[0]}

    train, test = keys(digits_data.train), keys(digits_data.test)
    assert not train & test
    distinct = np.unique(load_digits().images, axis=0)
    assert len(train | test) == len(distinct)


def test_digits_classes_are_balanced(digits_data):
    for split in (digits_data.train, digits_data.test):
        counts = np.bincount(arrays(split)[1])
        assert len(counts) == 10
        assert counts.min() > 0.75 * counts.mean()
        assert counts.max() < 1.25 * counts.mean()


def test_digits_splits_are_the_same_in_each_call(digits_data):
    np.random.seed(7)
    tf.random.set_seed(7)
    again = datasets.load("digits", data_dir="/no/such/folder")
    for split in ("train", "test"):
        for a, b in zip(
            arrays(getattr(digits_data, split)),
            arrays(getattr(again, split)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_preprocessing_subtracts_the_training_mean(digits_data):
    train, _ = arrays(digits_data.train)
    test, _ = arrays(digits_data.test)
    mean = train.mean(axis=0, dtype="float64")
    np.testing.assert_allclose(
        digits_data.preprocessing(test), test - mean, atol=1e-4
    )
    prepared = digits_data.preprocessing(train).numpy()
    np.testing.assert_allclose(prepared.mean(axis=0), 0.0, atol=1e-3)
    assert prepared.std() == pytest.approx((train - mean).std(), rel=1e-5)


def test_preprocessing_is_saved_with_a_model(digits_data, tmp_path):
    model = keras.Sequential(
        [keras.Input(digits_data.image_shape), digits_data.preprocessing]
    )
    path = tmp_path / "model.keras"
    model.save(path)
    images, _ = arrays(digits_data.test.take(5))
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(images), model(images))
    assert np.abs(loaded(images).numpy() - images).max() > 10


def test_names_are_those_that_load_knows(digits_data):
    assert datasets.NAMES == [
        "cifar10",
        "digits",
        "folder",
        "imagenet2012",
        "mnist",
    ]
    again = datasets.load(datasets.NAMES[1])
    assert again.num_classes == digits_data.num_classes


def test_bounds_are_what_black_and_white_become(digits_data):
    low, high = digits_data.bounds
    mean = arrays(digits_data.train)[0].mean(axis=0, dtype="float64")
    for bound, pixel in ((low, 0), (high, 255)):
        assert (bound.shape, bound.dtype) == ((8, 8, 1), np.float32)
        image = np.full((1, 8, 8, 1), pixel, np.float32)
        np.testing.assert_array_equal(
            bound, digits_data.preprocessing(image)[0]
        )
        np.testing.assert_allclose(bound, pixel - mean, atol=1e-4)


def test_bounds_hold_all_images_and_no_more(digits_data):
    low, high = digits_data.bounds
    inputs = np.concatenate(
        [
            digits_data.preprocessing(arrays(split)[0]).numpy()
            for split in (digits_data.train, digits_data.test)
        ]
    )
    assert np.all(inputs >= low)
    assert np.all(inputs <= high)
    # Most pixels are blank in one image and full in another.
    reached = (inputs.min(axis=0) == low) & (inputs.max(axis=0) == high)
    assert np.mean(reached) > 0.6


def test_bounds_without_preprocessing_are_those_of_pixels(digits_data):
    low, high = digits_data._replace(preprocessing=None).bounds
    np.testing.assert_array_equal(low, np.zeros((8, 8, 1), np.float32))
    np.testing.assert_array_equal(high, np.full((8, 8, 1), 255, np.float32))
    assert low.dtype == high.dtype == np.float32


def test_bounds_follow_any_preprocessing_layer(digits_data):
    scaled = digits_data._replace(
        preprocessing=keras.layers.Rescaling(1 / 127.5, offset=-1)
    )
    low, high = scaled.bounds
    np.testing.assert_allclose(low, -1, atol=1e-6)
    np.testing.assert_allclose(high, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "close", "reason"),
    [
        ("minst", "mnist", "Dataset minst not found."),
        ("cifar-10", "cifar10", "Parsing builder name string"),
        ("mnist:9.9.9", None, "Failed to construct dataset"),
        ("mnist/colour", None, "Failed to construct dataset"),
    ],
)
def test_unknown_name_is_named(tmp_path, name, close, reason):
    with pytest.raises(ValueError, match=r"^name: expected one of ") as caught:
        datasets.load(name, data_dir=str(tmp_path))
    text = str(caught.value)
    expected = f"{datasets.NAMES} or a data set of TFDS; received {name!r}."
    assert expected in text
    assert f"TFDS says: {reason}" in text
    if close:
        hint = re.search("Close matches: (.*?)\\. TFDS", text)[1]
        assert close in hint.split(", ")


def test_batches_keep_the_order_without_a_seed(small_images):
    batches = datasets.batches(small_images, None, 4)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert epoch(batches) == expected
    assert epoch(batches) == expected


@pytest.mark.parametrize(
    ("batch_size", "count", "last"), [(4, 3, 2), (5, 2, 5), (100, 1, 10)]
)
@pytest.mark.parametrize("seed", [None, 1])
def test_batches_know_their_number_and_keep_the_rest(
    small_images, batch_size, count, last, seed
):
    batches = datasets.batches(small_images, None, batch_size, seed)
    assert int(batches.cardinality()) == count
    sizes = [len(labels) for labels in epoch(batches)]
    assert sizes == [batch_size] * (count - 1) + [last]


def test_batches_with_a_seed_repeat_in_each_run_but_not_in_each_epoch(
    small_images,
):
    first, second = (
        datasets.batches(small_images, None, 4, shuffle_seed=3)
        for _ in range(2)
    )
    epochs = [epoch(first) for _ in range(3)]
    assert [epoch(second) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for each in epochs:
        assert sorted(np.concatenate(each)) == list(range(10))


def test_batches_with_other_seeds_are_in_another_order(small_images):
    first, second = (
        epoch(datasets.batches(small_images, None, 10, shuffle_seed=seed))
        for seed in (0, 1)
    )
    assert first != second
    # Seed 0 shuffles too; it is not taken for "no seed".
    assert first != [list(range(10))]


def test_batches_keep_images_with_their_labels(small_images):
    double = keras.layers.Rescaling(2.0)
    batches = datasets.batches(small_images, double, 4, shuffle_seed=0)
    for images, labels in batches:
        assert images.shape[1:] == (2, 2, 1)
        np.testing.assert_array_equal(images[:, 0, 0, 0], 2.0 * labels.numpy())


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_are_the_same_with_and_without_cache(small_images, seed):
    double = keras.layers.Rescaling(2.0)
    kept, anew = (
        datasets.batches(small_images, double, 4, seed, cache=cache)
        for cache in (True, False)
    )
    assert int(anew.cardinality()) == int(kept.cardinality()) == 3
    for _ in range(2):  # epochs
        for one, other in zip(kept, anew, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_only_cached_batches_are_made_once(small_images):
    made = []

    def count(x, y):
        tf.py_function(lambda: made.append(1), [], [])
        return x, y

    for cache, expected in ((True, 10), (False, 20)):
        made.clear()
        batches = datasets.batches(
            small_images.map(count), None, 4, cache=cache
        )
        for _ in range(2):
            epoch(batches)
        assert len(made) == expected


def test_batches_of_digits_are_preprocessed(digits_data):
    batches = datasets.batches(digits_data.test, digits_data.preprocessing, 50)
    images, labels = arrays(digits_data.test)
    x, y = next(iter(batches))
    assert (x.dtype, y.dtype) == (tf.float32, tf.int64)
    np.testing.assert_array_equal(y, labels[:50])
    expected = digits_data.preprocessing(images[:50])
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_good_images_pass_the_check(digits_data):
    datasets.check_images(digits_data.test, "test")


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad", [0, 1023, 1024, 2050])
def test_check_names_the_first_image_with_a_bad_pixel(pixel, bad):
    images = np.zeros((2100, 2, 2, 1), "float32")
    images[bad, 1, 0, 0] = pixel
    images[bad + 3, 0, 0, 0] = pixel
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(2100)))
    message = (
        "train: expected finite pixels; received NaN or infinity in image "
        f"{bad}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datasets.check_images(data, "train")


def test_check_tells_an_empty_data_set(small_images):
    message = "test: expected at least one image; received none."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datasets.check_images(small_images.take(0), "test")


def test_check_takes_integer_pixels(small_images):
    integers = small_images.map(lambda x, y: (tf.cast(x, tf.uint8), y))
    datasets.check_images(integers, "test")


# The numbers of MNIST's classes 0 to 9, known wherever it is described.
MNIST_CLASSES = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}
# The first labels of the order in which TFDS stores it.
MNIST_LABELS = {
    "train": [4, 1, 0, 7, 8, 1, 2, 7, 1, 6],
    "test": [2, 0, 4, 8, 7, 6, 0, 6, 3, 1],
}


@pytest.mark.thorough
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_is_mnist(mnist_data, split):
    data = getattr(mnist_data, split)
    image, label = data.element_spec
    assert (image.shape, image.dtype) == ((28, 28, 1), tf.float32)
    assert (label.shape, label.dtype) == ((), tf.int64)
    labels = np.concatenate([y.numpy() for _, y in data.batch(10_000)])
    assert np.bincount(labels).tolist() == MNIST_CLASSES[split]
    assert labels[:10].tolist() == MNIST_LABELS[split]
    images, _ = arrays(data.take(50))
    assert (images.min(), images.max()) == (0.0, 255.0)


def test_mnist_preprocessing_subtracts_the_known_mean(mnist_data):
    assert mnist_data.num_classes == 10
    assert mnist_data.image_shape == (28, 28, 1)
    blank = mnist_data.preprocessing(np.zeros((1, 28, 28, 1), "float32"))
    # 33.318 of 255, or 0.1307 of 1, is the training set's mean pixel.
    assert np.mean(blank) == pytest.approx(-33.318, abs=2e-3)
    assert float(blank[0, 0, 0, 0]) == 0.0  # no training digit reaches it


@pytest.mark.parametrize("given", [True, False])
def test_missing_mnist_says_where_and_what_to_do(monkeypatch, tmp_path, given):
    import tensorflow_datasets as tfds

    def offline(builder, **kwargs):
        assert builder.name == "mnist"
        raise ConnectionError("no route to host")

    base = tfds.core.DatasetBuilder
    monkeypatch.setattr(base, "download_and_prepare", offline)
    monkeypatch.setattr(base, "is_prepared", lambda builder: False)
    monkeypatch.setattr(tfds_sets, "_reach", lambda url: None)
    data_dir = str(tmp_path) if given else None
    with pytest.raises(RuntimeError) as caught:
        datasets.load("mnist", data_dir=data_dir)
    text = str(caught.value)
    where = data_dir or "~/tensorflow_datasets"
    assert f"mnist: could be neither read from {where} nor downloaded" in text
    assert "tfds.load('mnist', data_dir='DIR')" in text
    assert "copy DIR here, and pass it as data_dir (--data_dir in" in text
    assert "The cause: ConnectionError: no route to host" in text
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_without_a_network_nothing_is_tried_for_minutes(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    asked = []

    def offline(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError("no route to host")

    def refuse(builder):
        raise AssertionError("a download starts")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", refuse
    )
    with pytest.raises(RuntimeError) as caught:
        datasets.load("fashion_mnist", data_dir=str(tmp_path))
    assert len(asked) == 1
    assert "The cause: URLError: <urlopen error no route" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_no_place_to_download_to(monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"^data_dir: expected a folder that is there, .*; received "
        r"'/no/such/folder'\.",
    ):
        datasets.load("mnist", data_dir="/no/such/folder")


@pytest.mark.parametrize("size", [0, -3, 2.5, "32", True, (8, 8)])
def test_bad_image_size_is_named(size):
    message = (
        "image_size: expected a positive integer or None; received "
        f"{re.escape(repr(size))}"
    )
    with pytest.raises(ValueError, match=f"^{message}\\.$"):
        datasets.load("digits", image_size=size)


@pytest.mark.parametrize("name", ["digits", "mnist", "emnist/letters"])
def test_digits_are_never_mirrored(monkeypatch, tmp_path, name):
    import tensorflow_datasets as tfds

    # Were it not refused, it would be downloaded.
    monkeypatch.delattr(tfds.core.DatasetBuilder, "download_and_prepare")
    message = f"augment: expected False for '{name.split('/')[0]}', as mirrored"
    with pytest.raises(ValueError, match=f"^{message}.*; received True\\.$"):
        datasets.load(name, str(tmp_path), augment=True)


def test_recipes_are_for_imagenet():
    message = "^recipe: expected None for 'mnist', as only 'imagenet2012' has"
    with pytest.raises(ValueError, match=message):
        datasets.load("mnist", recipe="caffe")
    message = re.escape(
        "recipe: expected one of ['caffe', 'resnet'] or None; received 'vgg'."
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        datasets.load("imagenet2012", recipe="vgg")


# ---------------------------------------------------------------- the form


def test_data_can_be_made_of_its_first_four(digits_data):
    data = datasets.Data(digits_data.train, digits_data.test, None, 10)
    assert (data.class_names, data.cache) == (None, True)
    data = data._replace(cache=False)
    assert data.num_classes == 10
    assert not data.cache


def test_digits_and_mnist_say_that_they_may_be_cached(digits_data):
    assert digits_data.cache
    assert digits_data.class_names == tuple("0123456789")


def test_image_shape_is_that_of_test_images_where_train_has_none(digits_data):
    def vague(split):
        return tf.data.Dataset.from_generator(
            lambda: iter(split),
            output_signature=(
                tf.TensorSpec(None, tf.float32),
                tf.TensorSpec((), tf.int64),
            ),
        )

    data = digits_data._replace(train=vague(digits_data.train))
    assert data.image_shape == (8, 8, 1)
    assert data.bounds[0].shape == (8, 8, 1)


def test_image_size_comes_before_the_mean(digits_data):
    data = datasets.load("digits", image_size=4)
    assert data.image_shape == (4, 4, 1)
    images, labels = arrays(data.train)
    originals, same = arrays(digits_data.train)
    np.testing.assert_array_equal(labels, same)
    assert images.dtype == np.float32
    assert (images.min(), images.max() <= 255) == (0, True)
    # Antialiasing keeps the ink; without it, it depends on where it lies.
    assert images.mean() == pytest.approx(originals.mean(), rel=0.05)
    expected = tf.image.resize(originals[:9], (4, 4), antialias=True)
    np.testing.assert_allclose(images[:9], expected, atol=1e-4)
    np.testing.assert_allclose(
        data.preprocessing(images).numpy().mean(axis=0), 0.0, atol=1e-3
    )


# ------------------------------------------------------------ batches, check


def test_batches_take_models_for_preprocessing(small_images):
    halved = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Rescaling(0.5)]
    )
    for cache in (True, False):
        batches = datasets.batches(small_images, halved, 4, 0, cache=cache)
        for images, labels in batches:
            np.testing.assert_array_equal(images[:, 0, 0, 0], labels / 2)


@pytest.mark.parametrize("cache", [True, False])
def test_batches_of_an_unknown_number(small_images, cache):
    even = small_images.filter(lambda x, y: y % 2 == 0)
    for _ in range(2):
        batches = datasets.batches(even, None, 2, cache=cache)
        assert epoch(batches) == [[0, 2], [4, 6], [8]]


@pytest.mark.parametrize("cache", [True, False])
def test_large_images_are_shuffled_in_a_bounded_buffer(
    monkeypatch, small_images, cache
):
    from dd_keras.datasets import data

    # Three images of four float32 pixels: 48 bytes and a bit.
    monkeypatch.setattr(data, "MEMORY", 50)
    batches = datasets.batches(small_images, None, 10, 0, cache=cache)
    order = np.array([epoch(batches)[0] for _ in range(20)])
    # An image can come as early as the buffer is long, and no earlier.
    earliest = (np.arange(10) - np.argsort(order, axis=1)).max()
    assert (earliest > 2) if cache else (earliest == 2)
    assert sorted(order[0]) == list(range(10))


def test_uncached_batches_are_preprocessed_as_batches(small_images):
    seen = []

    class Sizes(keras.layers.Layer):
        def call(self, x):
            tf.py_function(lambda n: seen.append(int(n)), [tf.shape(x)[0]], [])
            return x

    epoch(datasets.batches(small_images, Sizes(), 4, cache=False))
    assert sorted(seen) == [2, 4, 4]


def test_check_can_stop_early(small_images):
    bad = small_images.map(lambda x, y: (x / tf.cast(y != 6, x.dtype), y))
    datasets.check_images(bad, "train", limit=6)
    with pytest.raises(ValueError, match=r"in image 6\.$"):
        datasets.check_images(bad, "train", limit=7)


# ------------------------------------------------------------------ CIFAR-10


@pytest.mark.thorough
def test_cifar10_is_cifar10(cifar_dir):
    data = datasets.load("cifar10", cifar_dir)
    assert data.image_shape == (32, 32, 3)
    assert data.num_classes == 10
    assert data.class_names == (
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog"),
        *("horse", "ship", "truck"),
    )
    assert data.cache
    for split, count in ((data.train, 5000), (data.test, 1000)):
        image, label = split.element_spec
        assert (image.dtype, label.dtype) == (tf.float32, tf.int64)
        labels = np.concatenate([y.numpy() for _, y in split.batch(10_000)])
        assert np.bincount(labels).tolist() == [count] * 10
    images, _ = arrays(data.test.take(50))
    assert (images.min(), images.max()) == (0.0, 255.0)
    # The training set's mean red, green and blue, known wherever it is used;
    # less exactly, as what stands in for it may have gone through JPEG.
    blank = data.preprocessing(np.zeros((1, 32, 32, 3), "float32"))
    np.testing.assert_allclose(
        -np.mean(blank, axis=(0, 1, 2)), [125.3, 122.95, 113.87], atol=1.5
    )


# ------------------------------------- other sets of TFDS, and augmentation


def pictures(count, height=6, width=8, channels=3, seed=0):
    """Random images, and labels 0 and 1 in turns."""
    rng = np.random.default_rng(seed)
    shape = (count, height, width, channels)
    return list(
        zip(
            rng.integers(0, 256, shape, dtype=np.uint8),
            [i % 2 for i in range(count)],
            strict=True,
        )
    )


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory):
    """A TFDS data directory with small sets; the keys say how they differ."""
    folder = tmp_path_factory.mktemp("tfds")
    for name, splits, options in (
        ("cifar10", {"train": pictures(20), "test": pictures(6, seed=1)}, {}),
        ("grey", {"train": pictures(20, channels=1)}, {"shape": (6, 8, 1)}),
        (
            "validated",
            {"train": pictures(4), "validation": pictures(5)},
            {"shape": (6, 8, 3), "classes": ("a", "b", "c")},
        ),
        (
            "tested",
            {s: pictures(4) for s in ("train", "validation")}
            | {"test": pictures(3)},
            {"shape": (6, 8, 3)},
        ),
        (
            "sizes",
            {"train": pictures(4) + pictures(4, 9, 5), "test": pictures(2)},
            {},
        ),
        ("unlabelled", {"train": pictures(4)}, {"supervised_keys": None}),
    ):
        if name == "cifar10":
            options["shape"] = (6, 8, 3)
        tfds_shaped.write(folder, name, splits, **options)
    return str(folder)


def sorted_images(images):
    return sorted(np.asarray(image, "float32").tobytes() for image in images)


def test_any_tfds_set_can_be_loaded(tiny_dir):
    data = datasets.load("grey", tiny_dir)
    assert data.image_shape == (6, 8, 1)
    assert data.class_names == ("one", "two")
    assert data.num_classes == 2
    # No split but "train": its last fifth is for testing.
    assert [int(s.cardinality()) for s in (data.train, data.test)] == [16, 4]
    images = np.concatenate([arrays(s)[0] for s in (data.train, data.test)])
    assert sorted_images(images) == sorted_images(
        image for image, _ in pictures(20, channels=1)
    )
    train = arrays(data.train)[0]
    np.testing.assert_allclose(
        data.preprocessing(train), train - train.mean(axis=0), atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "count", "classes"), [("validated", 5, 3), ("tested", 3, 2)]
)
def test_test_images_are_the_split_that_there_is(
    tiny_dir, name, count, classes
):
    for full in (name, f"{name}:1.0.0"):
        data = datasets.load(full, tiny_dir)
        assert data.num_classes == len(data.class_names) == classes
        assert int(data.train.cardinality()) == 4
        assert int(data.test.cardinality()) == count


def test_images_of_many_sizes_need_image_size(tiny_dir):
    message = "^image_size: expected a positive integer, as these images diff"
    with pytest.raises(ValueError, match=message):
        datasets.load("sizes", tiny_dir)
    data = datasets.load("sizes", tiny_dir, image_size=7)
    assert data.image_shape == (7, 7, 3)
    assert int(data.train.cardinality()) == 8
    assert data.cache


@pytest.mark.parametrize("name", ["unlabelled", "imdb_reviews", "coco"])
def test_sets_of_other_things_are_refused(tiny_dir, name):
    message = f"^name: expected a TFDS set of images .*; '{name}' is not"
    with pytest.raises(ValueError, match=message):
        datasets.load(name, tiny_dir)


@pytest.mark.parametrize("image_size", [None, 5])
def test_what_does_not_fit_in_memory_is_streamed(
    monkeypatch, tiny_dir, image_size
):
    from dd_keras.datasets import images

    kept = datasets.load("cifar10", tiny_dir, image_size=image_size)
    size = int(np.prod(kept.image_shape)) * 4 * 26  # float32, 26 images
    for memory, cache in ((size, True), (size - 1, False)):
        monkeypatch.setattr(images, "MEMORY", memory)
        data = datasets.load("cifar10", tiny_dir, image_size=image_size)
        assert data.cache is cache
        for split in ("train", "test"):
            one, other = (getattr(d, split) for d in (kept, data))
            assert one.element_spec == other.element_spec
            for a, b in zip(arrays(one), arrays(other), strict=True):
                np.testing.assert_array_equal(a, b)
        for a, b in zip(kept.bounds, data.bounds, strict=True):
            np.testing.assert_array_equal(a, b)


def test_damaged_files_are_told(tmp_path):
    tfds_shaped.write(
        tmp_path, "broken", {"train": pictures(20)}, shape=(6, 8, 3)
    )
    (path,) = tmp_path.glob("broken/1.0.0/*.tfrecord*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(
        RuntimeError, match=r"^broken: could be neither read"
    ) as caught:
        datasets.load("broken", str(tmp_path))
    assert "The cause: DataLossError" in str(caught.value)


def test_flips_mirror_anew_in_each_epoch(tiny_dir):
    plain = datasets.load("cifar10", tiny_dir)
    data = datasets.load("cifar10", tiny_dir, augment=True, seed=1)
    assert plain.cache
    assert not data.cache
    originals, labels = arrays(plain.train)
    epochs = [arrays(data.train) for _ in range(3)]
    flips = []
    for images, same in epochs:
        np.testing.assert_array_equal(same, labels)
        flipped = np.any(images != originals, axis=(1, 2, 3))
        np.testing.assert_array_equal(
            images[flipped], originals[flipped][:, :, ::-1]
        )
        assert 2 < flipped.sum() < 18
        flips.append(tuple(flipped))
    assert len(set(flips)) == 3
    # Neither test images nor the mean image are touched.
    np.testing.assert_array_equal(arrays(data.test)[0], arrays(plain.test)[0])
    np.testing.assert_array_equal(data.bounds, plain.bounds)


def test_flips_follow_their_seed(tiny_dir):
    first, again, other = (
        datasets.load("cifar10", tiny_dir, augment=True, seed=seed)
        for seed in (0, 0, 1)
    )
    for _ in range(3):
        images = arrays(first.train)[0]
        np.testing.assert_array_equal(images, arrays(again.train)[0])
        assert np.any(images != arrays(other.train)[0])


def test_batches_of_augmented_images_differ_in_each_epoch(tiny_dir):
    def epochs():
        data = datasets.load("cifar10", tiny_dir, augment=True)
        batches = datasets.batches(
            data.train, data.preprocessing, 8, shuffle_seed=0, cache=data.cache
        )
        assert int(batches.cardinality()) == 3
        return [
            np.concatenate([x for x, _ in batches.as_numpy_iterator()])
            for _ in range(3)
        ]

    runs = [epochs(), epochs()]
    np.testing.assert_array_equal(*runs)
    one, two, _ = (sorted_images(images) for images in runs[0])
    assert one != two


# ------------------------------------------------------------------ ImageNet


@pytest.fixture(scope="module")
def imagenet_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    tfds_shaped.write_imagenet(folder)
    return str(folder)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("recipe", [None, "caffe", "resnet"])
def test_imagenet_has_the_documented_form(imagenet_dir, recipe, augment):
    data = datasets.load(
        "imagenet2012",
        imagenet_dir,
        image_size=32,
        augment=augment,
        recipe=recipe,
    )
    assert data.image_shape == (32, 32, 3)
    assert data.class_names == tfds_shaped.IMAGENET_CLASSES
    assert data.num_classes == 3
    assert not data.cache
    for split, size in ((data.train, 12), (data.test, 6)):
        assert int(split.cardinality()) == size
        image, label = split.element_spec
        assert (image.shape, image.dtype) == ((32, 32, 3), tf.float32)
        assert (label.shape, label.dtype) == ((), tf.int64)
        images, labels = arrays(split)
        assert images.min() >= 0
        assert images.max() <= 255
        assert np.bincount(labels).tolist() == [size // 3] * 3
    np.testing.assert_array_equal(*(arrays(data.test)[0] for _ in range(2)))
    epochs = [arrays(data.train)[0] for _ in range(2)]
    assert np.any(epochs[0] != epochs[1]) == augment


def test_tfds_reads_the_imagenet_that_tests_write(imagenet_dir):
    import tensorflow_datasets as tfds

    split = tfds.load(
        "imagenet2012", split="train", data_dir=imagenet_dir, download=False
    )
    shapes = {example["image"].shape for example in split.as_numpy_iterator()}
    assert len(shapes) > 3
    assert all(channels == 3 for _, _, channels in shapes)


@pytest.mark.parametrize(("recipe", "size"), [("caffe", 227), ("resnet", 224)])
def test_imagenet_has_the_sizes_of_the_papers(imagenet_dir, recipe, size):
    data = datasets.load("imagenet2012", imagenet_dir, recipe=recipe)
    assert data.image_shape == (size, size, 3)
    assert arrays(data.test.take(2))[0].shape == (2, size, size, 3)


def test_caffe_preprocessing_subtracts_the_mean_pixel(imagenet_dir):
    data = datasets.load("imagenet2012", imagenet_dir, image_size=8)
    images = np.full((2, 8, 8, 3), [125, 130, 90], "float32")
    expected = np.full((2, 8, 8, 3), [2, 13, -14])
    np.testing.assert_array_equal(data.preprocessing(images), expected)
    low, high = data.bounds
    np.testing.assert_array_equal(low[3, 3], [-123, -117, -104])
    np.testing.assert_array_equal(high[3, 3], [132, 138, 151])


def test_resnet_preprocessing_standardises_channels(imagenet_dir):
    data = datasets.load(
        "imagenet2012", imagenet_dir, image_size=8, recipe="resnet"
    )
    image = np.random.default_rng(0).uniform(0, 255, (1, 8, 8, 3))
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        data.preprocessing(image.astype("float32")), expected, atol=1e-5
    )


def gradient(height, width, down=1.0, across=1.0):
    """Red tells the row, green the column; blue is constant."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack(
        [rows * down, columns * across, np.full((height, width), 7)], axis=-1
    )
    assert image.max() <= 255
    return image.astype(np.uint8)


def imagenet_of(folder, image, count=1):
    """An ImageNet of the same image, stored without loss."""
    examples = [(image, 0)] * count
    tfds_shaped.write(
        folder,
        "imagenet2012",
        {"train": examples, "validation": examples},
        version="5.1.0",
    )
    return str(folder)


@pytest.mark.parametrize(
    ("shape", "recipe", "options", "top", "left", "scale"),
    [
        # 256x256 are kept as they are; (256 - 227) // 2 = 14.
        ((256, 256), "caffe", {}, 14, 14, (1, 1)),
        # 32 of 36 pixels; the image is squeezed twofold and fourfold.
        ((72, 144), "caffe", {"image_size": 32}, 2, 2, (2, 4)),
        # 32 of 37 pixels; the longer side keeps its proportion.
        ((37, 74), "resnet", {"image_size": 32}, 2, 21, (1, 1)),
        ((148, 74), "resnet", {"image_size": 32}, 21, 2, (2, 2)),
        ((256, 256), "resnet", {}, 16, 16, (1, 1)),
    ],
)
def test_crops_are_from_the_middle(
    tmp_path, shape, recipe, options, top, left, scale
):
    folder = imagenet_of(tmp_path, gradient(*shape))
    data = datasets.load("imagenet2012", folder, recipe=recipe, **options)
    size = data.image_shape[0]
    # The middle of the i-th of the pixels that are `scale` times as large.
    rows, columns = (
        (start + np.arange(size) + 0.5) * factor - 0.5
        for start, factor in zip((top, left), scale, strict=True)
    )
    for split in (data.train, data.test):
        image = arrays(split)[0][0]
        for found, expected in (
            (image[..., 0], rows[:, None]),
            (image[..., 1], columns[None]),
            (image[..., 2], np.array([[7]])),
        ):
            np.testing.assert_allclose(
                found, np.broadcast_to(expected, (size, size)), atol=1e-3
            )


def test_caffe_crops_at_random_in_training(tmp_path):
    folder = imagenet_of(tmp_path, gradient(256, 256), count=24)
    data = datasets.load("imagenet2012", folder, augment=True)
    starts, mirrored = [], []
    for image in arrays(data.train)[0]:
        rows, columns = image[:, :1, 0], image[:1, :, 1]
        mirrored.append(columns[0, 0] > columns[0, -1])
        starts.append((rows.min(), columns.min()))
        columns = np.sort(columns)
        for found, axis in ((rows, 0), (columns, 1)):
            np.testing.assert_array_equal(np.diff(found, axis=axis), 1)
        np.testing.assert_array_equal(
            image[..., 0], np.broadcast_to(rows, (227, 227))
        )
    assert 4 < sum(mirrored) < 20
    starts = np.array(starts)
    assert starts.min() >= 0
    assert starts.max() <= 29
    assert np.ptp(starts, axis=0).min() > 15
    assert np.any(starts[:, 0] != starts[:, 1])


def test_resnet_takes_random_parts_in_training(tmp_path):
    folder = imagenet_of(tmp_path, gradient(120, 120, 2, 2), count=40)
    data = datasets.load(
        "imagenet2012", folder, augment=True, image_size=60, recipe="resnet"
    )
    parts, mirrored = [], []
    for image in arrays(data.train)[0]:
        step = (image[-1, 0, 0] - image[0, 0, 0]) / 59 / 2  # pixels a pixel
        across = (image[0, -1, 1] - image[0, 0, 1]) / 59 / 2
        mirrored.append(across < 0)
        parts.append((step / 2, abs(across) / 2))  # of the image's sides
        assert step > 0
    assert 8 < sum(mirrored) < 32
    height, width = np.array(parts).T
    area, ratio = height * width, width / height
    assert area.min() > 0.06  # borders are resized a little flatter
    assert area.max() < 1.05
    assert area.min() < 0.4 < 0.6 < area.max()
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    assert np.ptp(ratio) > 0.2


@pytest.mark.parametrize("recipe", ["caffe", "resnet"])
def test_imagenet_augmentation_follows_its_seed(imagenet_dir, recipe):
    first, again, other = (
        datasets.load(
            "imagenet2012",
            imagenet_dir,
            image_size=16,
            augment=True,
            seed=seed,
            recipe=recipe,
        )
        for seed in (0, 0, 1)
    )
    for _ in range(2):
        images = arrays(first.train)[0]
        np.testing.assert_array_equal(images, arrays(again.train)[0])
        assert np.any(images != arrays(other.train)[0])


def test_missing_imagenet_says_what_to_download(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        datasets.load("imagenet2012", str(tmp_path))
    text = str(caught.value)
    for part in (
        f"expected the splits ('train', 'validation') in {tmp_path}; not "
        "there: ['train', 'validation'].",
        "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into "
        "DIR/downloads/manual",
        "tfds.builder('imagenet2012', data_dir='DIR').download_and_prepare()",
        "pass DIR as data_dir (--data_dir in the apps)",
    ):
        assert part in text
    assert not list(tmp_path.iterdir())  # nor has anything been tried


def test_imagenet_without_validation_images_is_told(tmp_path):
    tfds_shaped.write(tmp_path, "imagenet2012", {"train": pictures(4)})
    with pytest.raises(RuntimeError, match=r"not there: \['validation'\]\."):
        datasets.load("imagenet2012", str(tmp_path))


# -------------------------------------------------------------------- folder


def write_images(folder, count, seed=0, suffix=".png"):
    folder.mkdir(parents=True)
    for index, (image, _) in enumerate(pictures(count, seed=seed)):
        path = folder / f"{index}{suffix}"
        tf.io.write_file(str(path), tf.io.encode_png(image))


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, 5 and 4 to train and 2 and 3 to test with."""
    for seed, (path, count) in enumerate(
        (("train/cat", 5), ("train/dog", 4), ("test/cat", 2), ("test/dog", 3))
    ):
        write_images(tmp_path / path, count, seed)
    return tmp_path


def test_folder_with_two_splits(folder):
    data = datasets.load("folder", str(folder), image_size=5)
    assert data.image_shape == (5, 5, 3)
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert data.cache
    expected = {
        "train": [(0, 5, 0), (1, 4, 1)],
        "test": [(2, 2, 0), (3, 3, 1)],
    }
    for split, classes in expected.items():
        spec = getattr(data, split).element_spec
        assert (spec[0].dtype, spec[1].dtype) == (tf.float32, tf.int64)
        images, labels = arrays(getattr(data, split))
        found = {
            (image.round().tobytes(), label)
            for image, label in zip(images, labels, strict=True)
        }
        assert found == {
            (
                tf.image.resize(image, (5, 5), antialias=True)
                .numpy()
                .round()
                .tobytes(),
                label,
            )
            for seed, count, label in classes
            for image, _ in pictures(count, seed=seed)
        }
    # Not class by class: the first images, and shuffling in part, see both.
    train, labels = arrays(data.train)
    assert list(labels) != sorted(labels)
    np.testing.assert_allclose(
        data.preprocessing(train), train - train.mean(axis=0), atol=1e-4
    )


@pytest.mark.parametrize("name", ["val", "validation"])
def test_folder_of_test_images_may_have_other_names(folder, name):
    (folder / "test").rename(folder / name)
    data = datasets.load("folder", folder, image_size=5)
    assert int(data.test.cardinality()) == 5


def test_folder_without_splits_keeps_a_fifth_for_testing(tmp_path):
    write_images(tmp_path / "train", 20, 0)  # a class: trains and buses
    write_images(tmp_path / "bus" / "red", 10, 1)
    write_images(tmp_path / "bus" / "blue", 10, 2, ".JPG")
    write_images(tmp_path / ".cache", 3, 3)
    runs = [
        datasets.load(
            "folder", tmp_path, image_size=8, augment=seed > 0, seed=seed
        )
        for seed in (0, 1)
    ]
    data, augmented = runs
    assert data.class_names == ("bus", "train")
    train, test = (arrays(s) for s in (data.train, data.test))
    assert (len(train[0]), len(test[0])) == (32, 8)
    together = {image.tobytes() for image in (*train[0], *test[0])}
    assert len(together) == 40  # disjoint and complete
    assert sorted((*train[1], *test[1])) == [0] * 20 + [1] * 20
    assert set(test[1]) == {0, 1}
    # Always the same fifth: what was trained on is never tested on.
    np.testing.assert_array_equal(arrays(augmented.test)[0], test[0])
    assert not augmented.cache


def test_folder_is_augmented_with_flips(folder):
    plain, data = (
        datasets.load("folder", folder, image_size=5, augment=augment)
        for augment in (False, True)
    )
    originals = arrays(plain.train)[0]
    images = np.concatenate([arrays(data.train)[0] for _ in range(4)])
    originals = np.tile(originals, (4, 1, 1, 1))
    flipped = np.any(images != originals, axis=(1, 2, 3))
    assert 5 < flipped.sum() < 31
    np.testing.assert_array_equal(
        images[flipped], originals[flipped][:, :, ::-1]
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_unreadable_image_is_named(
    monkeypatch, folder, streamed, split, content
):
    from dd_keras.datasets import images

    if streamed:
        monkeypatch.setattr(images, "MEMORY", 0)
    bad = folder / split / "dog" / "1.png"
    if content == "half":
        content = bad.read_bytes()
        content = content[: len(content) // 2]
    bad.write_bytes(content)
    message = f"^data_dir: expected images; {re.escape(str(bad))} cannot be"
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", folder, image_size=5)


@pytest.mark.parametrize("left_out", ["cat/new.webp", "loose.png"])
def test_files_are_not_left_out_in_silence(folder, left_out):
    (folder / "train" / left_out).write_bytes(b"RIFF")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    write_images(folder / "train" / "cat" / ".thumbnails", 3)
    message = rf"1 files in .*train are left out; .*{left_out}\.$"
    with pytest.warns(UserWarning, match=message):
        data = datasets.load("folder", folder, image_size=5)
    assert int(data.train.cardinality()) == 9


def test_folder_needs_a_size(folder):
    message = "^image_size: expected a positive integer for 'folder', as "
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", folder)


@pytest.mark.parametrize("data_dir", [None, "/no/such/folder"])
def test_missing_folder_is_named(data_dir):
    message = (
        f"data_dir: expected the folder of your images; received {data_dir!r}."
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        datasets.load("folder", data_dir, image_size=5)


def test_folder_of_one_class_is_refused(tmp_path):
    write_images(tmp_path / "cat", 3)
    message = "^data_dir: expected a folder for each of two or more classes in"
    with pytest.raises(
        ValueError, match=rf"{message}.*; received \['cat'\]\.$"
    ):
        datasets.load("folder", tmp_path, image_size=5)


def test_class_without_images_is_named(folder):
    (folder / "test" / "emu").mkdir()
    (folder / "train" / "emu").mkdir()
    message = (
        r"^data_dir: expected images \(\.bmp, .*\) in .*emu; received none"
    )
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", folder, image_size=5)


def test_classes_of_both_splits_must_be_the_same(folder):
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    message = "^data_dir: expected the same classes in .*train and .*test; rec"
    with pytest.raises(
        ValueError, match=message + r".*\['dog', 'wolf'\] in one"
    ):
        datasets.load("folder", folder, image_size=5)


def test_folder_without_test_images_is_told(folder):
    (folder / "test").rename(folder / "later")
    message = r"^data_dir: expected one of the folders \('test', 'val', 'valid"
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", folder, image_size=5)


@pytest.mark.parametrize("streamed", [False, True])
def test_image_of_too_many_pixels_is_not_decoded(monkeypatch, folder, streamed):
    """It is 1 GB of pixels in a file of 26 bytes: decoded, it is cut short."""
    if streamed:
        monkeypatch.setattr(datasets_images, "MEMORY", 0)
    bad = folder / "train" / "dog" / "1.png"
    size = struct.pack(">II", 2**14, 2**16)
    bad.write_bytes(bad.read_bytes()[:16] + size + b"\x08\x02")
    message = (
        "^max_image_pixels: expected images of at most 33554432 pixels; "
        f"{re.escape(str(bad))} says that it has {2**30}\\.$"
    )
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", folder, image_size=5)


def test_limit_of_pixels_can_be_set(folder):
    """They have 6 x 8 pixels."""
    data = datasets.load("folder", folder, image_size=5, max_image_pixels=48)
    assert int(data.train.cardinality()) == 9
    message = "at most 47 pixels; .* says that it has 48"
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", folder, image_size=5, max_image_pixels=47)


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("folder", 0, "an integer of at least 1"),
        ("folder", 1.5, "an integer of at least 1"),
        ("digits", 100, "None for 'digits'"),
    ],
)
def test_limits_that_are_none(folder, name, limit, expected):
    message = f"^max_image_pixels: expected {expected}.*received {limit}"
    with pytest.raises(ValueError, match=message):
        datasets.load(name, folder, image_size=5, max_image_pixels=limit)


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "linked folder"])
def test_what_is_no_file_is_told(folder, tmp_path_factory, kind):
    path = folder / "train" / "cat" / "new.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to(folder / "nothing.png")
    else:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
        write_images(elsewhere, 3)
        path.symlink_to(elsewhere)
    message = r"1 files in .*train are left out; .*links to .*cat/new\.png\.$"
    with pytest.warns(UserWarning, match=message):
        data = datasets.load("folder", folder, image_size=5)
    assert int(data.train.cardinality()) == 9


def test_links_to_files_and_classes_are_followed(folder):
    cat, elsewhere = folder / "train" / "cat", folder / "elsewhere"
    cat.rename(elsewhere)
    cat.symlink_to(elsewhere)
    linked = folder / "train" / "dog" / "linked.png"
    linked.symlink_to(elsewhere / "0.png")
    data = datasets.load("folder", folder, image_size=5)
    assert int(data.train.cardinality()) == 10


def test_name_that_is_not_utf_8_is_told(folder):
    name = os.path.join(os.fsencode(folder), b"train", b"cat", b"caf\xe9.png")
    os.rename(folder / "train" / "cat" / "0.png", name)
    message = r"^data_dir: expected names of files in UTF-8; received b'.*caf"
    with pytest.raises(ValueError, match=message + r"\\xe9\.png'\. Rename it"):
        datasets.load("folder", folder, image_size=5)


def test_names_in_errors_do_nothing_to_a_terminal(folder):
    (folder / "train" / "cat" / "\x1b[31m\n.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        datasets.load("folder", folder, image_size=5)
    assert str(caught.value).isprintable()
    assert r"\x1b[31m\n.png" in str(caught.value)


def test_class_that_has_images_of_one_split_alone_is_told(tmp_path):
    write_images(tmp_path / "cat", 20, 0)
    write_images(tmp_path / "dog", 1, 1)
    message = r"no image is left to test with of the classes \['dog'\]"
    with pytest.warns(UserWarning, match=message):
        datasets.load("folder", tmp_path, image_size=5)
