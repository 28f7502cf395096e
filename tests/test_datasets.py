import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras import datasets

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
    assert datasets.NAMES == ["digits", "mnist"]
    again = datasets.load(datasets.NAMES[0])
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


def test_unknown_name_is_named():
    expected = r"^name: expected one of \[.*\]; received 'minst'\.$"
    with pytest.raises(ValueError, match=expected) as caught:
        datasets.load("minst")
    for known in ("'digits'", "'mnist'"):
        assert known in str(caught.value)


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


@pytest.mark.parametrize("data_dir", ["/data/tfds", None])
def test_missing_mnist_says_where_and_what_to_do(monkeypatch, data_dir):
    import tensorflow_datasets as tfds

    def offline(name, **kwargs):
        assert name == "mnist"
        assert kwargs["data_dir"] == data_dir
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds, "load", offline)
    with pytest.raises(RuntimeError) as caught:
        datasets.load("mnist", data_dir=data_dir)
    text = str(caught.value)
    where = data_dir or "~/tensorflow_datasets"
    assert f"mnist: could be neither read from {where} nor downloaded" in text
    assert "tfds.load('mnist', data_dir='DIR')" in text
    assert "copy DIR here, and pass it as data_dir (--data_dir in" in text
    assert "The cause: ConnectionError: no route to host" in text
    assert isinstance(caught.value.__cause__, ConnectionError)
