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

import common
import recipe
from absl import app, flags

from dd_keras import networks

FLAGS = flags.FLAGS
common.define_dataset_flag()
recipe.define_flags(
    ["lenet", *(name for name in networks.NAMES if name != "lenet")],
    output_dir="/tmp/dd_keras/images",
)
flags.adopt_module_key_flags(common)  # for --help
flags.adopt_module_key_flags(recipe)


@common.main
def main():
    """Runs the recipe on the data set of the flags."""
    recipe.run(FLAGS.dataset, recipe=FLAGS.recipe)


if __name__ == "__main__":
    app.run(main)
