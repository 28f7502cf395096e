"""An evaluation in parts, and what joins them."""

import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import affine_classifier

from dd_keras import attacks
from dd_keras.evaluation import evaluate_robustness, merge_reports

SAMPLES, DIMENSIONS, CLASSES, BATCH = 43, 5, 4, 6
METRICS = ["accuracy", "rho2", attacks.PGD(0.3), "fgsm_rho"]


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    model = affine_classifier(
        rng.normal(size=(DIMENSIONS, CLASSES)), rng.normal(size=CLASSES)
    )
    x = rng.normal(size=(SAMPLES, DIMENSIONS))
    return model, x, rng.integers(CLASSES, size=SAMPLES)


class Batches(keras.utils.PyDataset):
    """The samples in batches, by number."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // BATCH)

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part], self.y[part]


FORMS = {
    "arrays": lambda x, y: {"data": x, "y": y, "batch_size": BATCH},
    "tf.data": lambda x, y: {
        "data": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    },
    "PyDataset": lambda x, y: {"data": Batches(x, y)},
}


def evaluated(given, form="arrays", **kwargs):
    model, x, y = given
    return evaluate_robustness(
        model, **FORMS[form](x, y), metrics=METRICS, verbose=0, **kwargs
    )


def content(report, directory):
    path = directory / "report.json"
    report.to_json(path)
    return path.read_bytes()


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_merged_shards_are_the_report_of_the_whole(
    given, form, count, tmp_path
):
    whole = evaluated(given, form)
    parts = [
        evaluated(given, form, shard=(index, count))
        for index in range(1, count + 1)
    ]
    assert sum(map(len, parts)) == SAMPLES
    assert max(map(len, parts)) - min(map(len, parts)) < 2 * BATCH
    merged = merge_reports(reversed(parts))
    assert content(merged, tmp_path) == content(whole, tmp_path)
    assert merged.costs == whole.costs
    assert merged.shard is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shards_come_back_from_files(given, tmp_path):
    parts = []
    for index in (1, 2):
        part = evaluated(given, shard=(index, 2))
        part.to_json(tmp_path / f"{index}.json")
        parts.append(type(part).from_json(tmp_path / f"{index}.json"))
        assert parts[-1].shard == (index, 2)
    assert content(merge_reports(parts), tmp_path) == (
        content(evaluated(given), tmp_path)
    )


def test_interrupted_shard_resumes_and_no_other(given, tmp_path):
    first = evaluated(given, shard=(2, 3), checkpoint_dir=tmp_path / "c")
    files = sorted(os.listdir(tmp_path / "c"))
    os.remove(tmp_path / "c" / files[1])
    again = evaluated(given, shard=(2, 3), checkpoint_dir=tmp_path / "c")
    assert content(again, tmp_path) == content(first, tmp_path)
    for other in ((2, 4), (1, 3), None):
        with pytest.raises(ValueError, match=r"^checkpoint_dir: expected"):
            evaluated(given, shard=other, checkpoint_dir=tmp_path / "c")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_warnings_are_those_of_all_samples(given, tmp_path):
    """A share that is suspicious in one part may not be so in all."""
    model, x, y = given
    x = np.concatenate([x, np.zeros((1, DIMENSIONS))])  # rho is infinite there
    y = np.append(y, 0)

    def of(**kwargs):
        return evaluate_robustness(
            model, x, y, METRICS, batch_size=BATCH, verbose=0, **kwargs
        )

    parts = [of(shard=(index, 2)) for index in (1, 2)]
    assert merge_reports(parts).warnings == of().warnings


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_outputs_of_one_shard_are_told_of_all(given):
    parts = [evaluated(given, shard=(index, 2)) for index in (1, 2)]
    random = "model: its outputs are random (two passes over one batch differ)"

    class Random(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal(tf.shape(x), dtype=x.dtype)

    model = keras.Sequential([given[0], Random(dtype="float64")])
    found = evaluate_robustness(
        model,
        *given[1:],
        METRICS,
        batch_size=BATCH,
        verbose=0,
        shard=(1, 2),
    )
    assert found.warnings[0].startswith(random)
    merged = merge_reports([found, parts[1]])
    assert merged.warnings[0] == found.warnings[0]


@pytest.mark.parametrize(
    "shard", [(0, 2), (3, 2), (1.0, 2), (1,), 1, "1/2", (1, 0), ("1", "2")]
)
def test_bad_shards_are_refused(given, shard):
    with pytest.raises(
        ValueError,
        match=rf"^shard: expected \(index, count\), .*; received "
        rf"{re.escape(repr(shard))}\.$",
    ):
        evaluated(given, shard=shard)


def test_more_shards_than_batches_are_refused(given):
    with pytest.raises(ValueError, match=r"^shard: expected at most 8 shards"):
        evaluated(given, shard=(1, 9))


def test_shards_of_a_data_set_without_a_length_are_refused(given):
    model, x, y = given
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    unknown = data.filter(lambda *_: True)
    with pytest.raises(ValueError, match=r"^shard: expected data of a known"):
        evaluate_robustness(model, unknown, shard=(1, 2), verbose=0)
    told = unknown.apply(tf.data.experimental.assert_cardinality(8))
    assert len(evaluate_robustness(model, told, shard=(1, 2), verbose=0)) == 24


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_that_do_not_make_a_whole_are_refused(given):
    one, two = (evaluated(given, shard=(index, 2)) for index in (1, 2))
    for parts in ([], [one], [one, one], [one, two, two], [evaluated(given)]):
        with pytest.raises(ValueError, match=r"^reports: expected each shard"):
            merge_reports(parts)
    other = evaluated(given, shard=(2, 2), misclassified="zero")
    with pytest.raises(ValueError, match="received shard 2 with other metrics"):
        merge_reports([one, other])
