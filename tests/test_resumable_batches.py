"""Batches that come again, wherever one begins."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from dd_keras import datasets


def images(number=23):
    values = np.arange(number, dtype=np.float32)
    return tf.data.Dataset.from_tensor_slices((values[:, None], values))


def labels(dataset, number):
    return [y.numpy().tolist() for _, y in itertools.islice(dataset, number)]


def epochs(seed=0, batch_size=5, **options):
    return datasets.ResumableBatches(
        images(), None, batch_size, seed, **options
    )


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 3), (1, 0), (2, 4)])
def test_any_step_is_the_first(cache, epoch, step):
    train = epochs(cache=cache)
    all_of_them = labels(train.starting_at(0), 20)
    place = epoch * len(train) + step
    assert (
        labels(train.starting_at(epoch, step), 3)
        == all_of_them[place : place + 3]
    )


def test_an_epoch_has_every_image_once():
    train = epochs()
    assert len(train) == 5
    found = labels(train.starting_at(0), 10)
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 3] * 2
    for epoch in (found[:5], found[5:]):
        assert sorted(itertools.chain(*epoch)) == list(range(23))
    assert found[:5] != found[5:]


def test_iterating_is_the_first_epoch():
    train = epochs()
    assert labels(train, 99) == labels(train.starting_at(0), 5)


def test_order_follows_the_seed_and_nothing_else():
    def order(seed, of_tensorflow):
        tf.random.set_seed(of_tensorflow)
        return labels(epochs(seed).starting_at(1), 5)

    assert order(3, 0) == order(3, 1) == order(3, None)
    assert order(4, 0) != order(3, 0)
    tf.random.set_seed(None)


@pytest.mark.parametrize("cache", [True, False])
def test_preprocessing_is_applied(cache):
    train = datasets.ResumableBatches(images(), lambda x: -x, 5, cache=cache)
    for x, y in train:
        np.testing.assert_array_equal(x[:, 0], -y)


def test_images_of_an_epoch_may_vary():
    def varied(number):
        shift = 100.0 * tf.cast(number, tf.float32)
        return images().map(lambda x, y: (x + shift, y))

    train = datasets.ResumableBatches(varied, None, 23)
    for epoch, (x, y) in zip(range(3), train.starting_at(0), strict=False):
        np.testing.assert_array_equal(x[:, 0], y + 100 * epoch)


@pytest.mark.slow
def test_augmented_images_come_again():
    image = np.arange(48, dtype=np.float32).reshape(4, 4, 3)
    source = tf.data.Dataset.from_tensor_slices(
        (np.stack([image] * 8), np.arange(8))
    )
    data = datasets.images.mean_subtracted(
        source, source, list("abcdefgh"), None, True, 5, 0.0
    )
    first, second = (datasets.ResumableBatches.of(data, 8, 1) for _ in range(2))
    list(first.starting_at(0).take(2))  # what went before does not matter
    for one, other in zip(
        first.starting_at(1).take(2), second.starting_at(1).take(2), strict=True
    ):
        np.testing.assert_array_equal(one[0], other[0])
    x, y = (list(first.starting_at(0).take(2))[i][0] for i in (0, 1))
    assert np.any(x.numpy() != y.numpy())  # mirrored anew


def test_arrays_are_samples_in_memory():
    x, y = np.arange(23.0)[:, None], np.arange(23)
    train = datasets.ResumableBatches.of_arrays(
        x, y.tolist(), -y, batch_size=5, seed=2
    )
    found = list(train.starting_at(1, 2).take(8))
    assert [len(batch[0]) for batch in found] == [5, 5, 3, 5, 5, 5, 5, 3]
    for values, label, weight in found:
        np.testing.assert_array_equal(values[:, 0], label)
        np.testing.assert_array_equal(weight, -label)
    assert sorted(np.concatenate([b[1] for b in found[3:]])) == y.tolist()
    same = datasets.ResumableBatches(images(), None, 5, seed=2)
    for one, other in zip(found, same.starting_at(1, 2), strict=False):
        np.testing.assert_array_equal(one[0], other[0])
    assert len(next(iter(datasets.ResumableBatches.of_arrays(x, y)))) == 2


@pytest.mark.parametrize("number", [0, None])
def test_number_of_images_must_be_known(number):
    source = images(3)
    source = source.take(0) if number == 0 else source.filter(lambda x, y: True)
    with pytest.raises(ValueError, match=r"images: expected .* cardinality"):
        datasets.ResumableBatches(source, None, 2)


# ------------------------------------------------------------------- held out


@pytest.mark.slow
def test_held_out_images_are_the_last_ones():
    whole = datasets.load("digits")
    data = datasets.load("digits", validation_split=0.25)
    size = int(whole.train.cardinality())
    kept = int(data.train.cardinality())
    assert whole.validation is None
    assert int(data.validation.cardinality()) == size - kept == round(size / 4)
    together = data.train.concatenate(data.validation)
    for one, other in zip(together, whole.train, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(
        np.ravel(data.preprocessing.mean),
        np.mean([x for x, _ in data.train.as_numpy_iterator()], axis=0).ravel(),
        rtol=1e-5,
    )


def test_limited_data_are_the_first_of_each_split():
    data = datasets.load("digits", validation_split=0.25).limited(7)
    for split in (data.train, data.test, data.validation):
        assert int(split.cardinality()) == 7


@pytest.mark.parametrize("share", [1.0, -0.1, "half", float("nan")])
def test_bad_share_is_named(share):
    with pytest.raises(
        ValueError, match=r"validation_split: expected a number of at"
    ):
        datasets.load("digits", validation_split=share)


def test_share_must_leave_images():
    with pytest.raises(
        ValueError, match="validation_split: expected a share that"
    ):
        datasets.load("digits", validation_split=0.9999)
