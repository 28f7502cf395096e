"""Small data sets, written to disk as TFDS keeps its own."""

import numpy as np
import tensorflow_datasets as tfds

IMAGENET_CLASSES = ("n01440764", "n01443537", "n01484850")


def write(
    data_dir,
    name,
    splits,
    *,
    version="1.0.0",
    classes=("one", "two"),
    shape=(None, None, 3),
    encoding="png",
    supervised_keys=("image", "label"),
):
    """Writes a data set that `tfds.load(name, data_dir=data_dir)` reads.

    Args:
        data_dir: a TFDS data directory.
        name: of the data set; any, also one that TFDS knows.
        splits: for each split's name a list of (image, label), images uint8
            arrays, labels integers. TFDS shuffles them, always alike.
        version: its version.
        classes: names of the classes.
        shape: of all images, as far as they have the same.
        encoding: "png" or "jpeg".
        supervised_keys: what it has of "image" and "label", or None.
    """
    features = {
        "image": tfds.features.Image(shape=shape, encoding_format=encoding),
        "label": tfds.features.ClassLabel(names=list(classes)),
        "file_name": tfds.features.Text(),
    }

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {
                split: self._generate_examples(split, examples)
                for split, examples in splits.items()
            }

        def _generate_examples(self, split, examples):
            for index, (image, label) in enumerate(examples):
                file_name = f"{split}_{index}.{encoding}"
                yield (
                    index,
                    {"image": image, "label": label, "file_name": file_name},
                )

    Written.name = name
    Written(data_dir=str(data_dir)).download_and_prepare()


def write_imagenet(
    data_dir, train=12, validation=6, classes=IMAGENET_CLASSES, seed=0
):
    """Writes an ImageNet of few small photographs, JPEGs of several sizes.

    Each class has a colour of its own, so that a network can learn it.

    Args:
        data_dir: a TFDS data directory.
        train: number of images to train with.
        validation: number of images to test with.
        classes: names of the classes, one or more.
        seed: of the images.
    """
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(0).integers(40, 216, (len(classes), 3))

    def images(count):
        for index in range(count):
            label = index % len(classes)
            height, width = rng.integers(40, 90, 2)
            noise = rng.integers(-40, 41, (height, width, 3))
            yield (colours[label] + noise).astype(np.uint8), label

    write(
        data_dir,
        "imagenet2012",
        {"train": list(images(train)), "validation": list(images(validation))},
        version="5.1.0",
        classes=classes,
        encoding="jpeg",
    )
