"""What a run is made of: a data set, its options, the program's flags."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from shared import cli, inputs, provenance

from dd_keras import datasets
from dd_keras.networks import applications

FLAGS = flags.FLAGS

# What may change between two starts of a run: where things are, and what
# changes no more than the last bits of its results.
_NOT_OF_THE_RUN = {
    "data_dir", "output_dir", "export_dir", "checkpoint_steps",
    "distribution", "replicas", "overwrite", "max_image_pixels", "html",
    "robustness_board",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A training program's data set and flags.

    Attributes:
        dataset: its name, see `dd_keras.datasets.load`.
        flags: dict of the program's flags, as JSON holds them.
        recipe: of ImageNet, see `datasets.load`.
    """

    dataset: str
    flags: dict[str, Any]
    recipe: str | None = None

    @classmethod
    def of_flags(
        cls, program: str, dataset: str, recipe: str | None = None
    ) -> "Run":
        """A run of the program whose `__name__` this is."""
        return cls(dataset, provenance.flag_values(program), recipe)

    @property
    def identity(self) -> dict[str, Any]:
        """What the results depend on, as a `RunDirectory` takes it."""
        kept = {k: v for k, v in self.flags.items() if k not in _NOT_OF_THE_RUN}
        recipe = {} if self.recipe is None else {"recipe": self.recipe}
        return kept | recipe | {"dataset": self.dataset}

    def load_data(self) -> datasets.Data:
        """The data set, as the network of --arch takes it.

        Raises:
            SystemExit: with a message, if it cannot be had, or a flag does
                not fit it.
        """
        data = inputs.load_data(
            self.dataset,
            augment=FLAGS.augment,
            seed=FLAGS.seed,
            validation_split=FLAGS.validation_split,
            recipe=self.recipe,
        )
        _check_batches(data)
        _check_candidates(data)
        if FLAGS.arch in applications.NAMES:
            return data._replace(preprocessing=keras.layers.Identity())
        if FLAGS.weights is not None:
            cli.fail(
                "--weights: expected with a keras.applications as --arch; "
                f"received with {FLAGS.arch}."
            )
        return data


def _check_batches(data):
    """Makes sure that each replica has a part of every batch."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    for split in (data.train, data.validation or data.test):
        size = int(split.cardinality())
        last = size % FLAGS.batch_size or FLAGS.batch_size
        if -(-last // replicas) * (replicas - 1) >= last:
            cli.fail(
                f"--batch_size: expected one that gives each of {replicas} "
                f"replicas a part of every batch; with {FLAGS.batch_size} the "
                f"last of {size} images make a batch of {last}."
            )


def _check_candidates(data):
    others = data.num_classes - 1
    for name in ("candidates", "evaluation_candidates"):
        if (FLAGS[name].value or 0) > others:
            cli.fail(
                f"--{name}: expected at most {others}, the classes other than "
                f"the source; received {FLAGS[name].value}."
            )


def training_batches(data: datasets.Data) -> datasets.ResumableBatches:
    """Batches to train on, the same in each training."""
    return datasets.ResumableBatches.of(data, FLAGS.batch_size, FLAGS.seed)


def test_batches(data: datasets.Data) -> tf.data.Dataset:
    """Batches to evaluate on."""
    return _in_order(data, data.test)


def validation_batches(data: datasets.Data) -> tf.data.Dataset:
    """Batches of the validation images, or else of the test images."""
    return _in_order(data, data.validation or data.test)


def _in_order(data, split):
    return datasets.batches(
        split, data.preprocessing, FLAGS.batch_size, cache=data.cache
    )
