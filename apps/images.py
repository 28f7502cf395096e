"""Deep Defense on any images: a TensorFlow Datasets set, or your own folder.

    python apps/images.py --dataset=fashion_mnist --arch=lenet
    python apps/images.py --dataset=folder --data_dir=PHOTOS --image_size=96 --arch=MobileNetV2 --weights=imagenet

A folder holds one folder of images for each class, PHOTOS/CLASS/*.jpg, or
these for training and test apart, PHOTOS/train/CLASS/*.jpg and
PHOTOS/test/CLASS/*.jpg. Trains a reference, or takes that of --reference,
fine-tunes it with and without the regulariser, or with the defences named by
--defense, evaluates all on the test images, and writes models, numbers and
pictures to --output_dir.

The settings are the paper's for MNIST; c is the one to turn: the larger the
images, the smaller rho, and the larger c (500 on ImageNet).
"""  # noqa: E501

from absl import app, flags

from shared import cli, pipeline
from shared.flags import define_dataset_flag

from dd_keras import networks

FLAGS = flags.FLAGS
define_dataset_flag()
pipeline.define_flags(
    ["lenet", *(name for name in networks.NAMES if name != "lenet")],
    output_dir="runs/images",
)


@cli.main
def main():
    """Trains, defends and evaluates on the data set of the flags."""
    pipeline.run(__name__, FLAGS.dataset, recipe=FLAGS.recipe)


if __name__ == "__main__":
    app.run(main)
