"""ImageNet 2012, streamed from disk, as AlexNet and the ResNets have it."""

import functools

import tensorflow as tf

from dd_keras.datasets import tfds_sets
from dd_keras.datasets.data import Data
from dd_keras.datasets.images import (
    augmented,
    flip,
    normalization,
    resize,
    split_off,
)

# The mean pixels come as red, green, blue. Caffe's own order is blue first:
# weights from Caffe need the first convolution's input channels reversed.
_CAFFE_MEAN = (123.0, 117.0, 104.0)
_TORCH_MEAN = (0.485, 0.456, 0.406)  # of pixels 0 to 1, as the next
_TORCH_STD = (0.229, 0.224, 0.225)


def load(
    name: str,
    data_dir: str | None,
    recipe: str,
    image_size: int | None,
    augment: bool,
    seed: int,
    validation_split: float,
) -> Data:
    """See `dd_keras.datasets.load`."""
    builder = tfds_sets.builder_of(name, data_dir)
    needed = ("train", "validation")
    missing = [s for s in needed if s not in builder.info.splits]
    if missing:
        raise RuntimeError(
            f"{name}: expected the splits {needed} in "
            f"{tfds_sets.where(data_dir)}; not there: {missing}. ImageNet is "
            "downloaded by hand: register at image-net.org, put "
            "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into "
            "DIR/downloads/manual, and run `python "
            '-c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='DIR').download_and_prepare()\"`,"
            " which takes hours and 300 GB. Then pass DIR as data_dir "
            "(--data_dir in the apps)."
        )
    train, test, class_names = tfds_sets.read(builder, *needed)
    train, validation = split_off(train, validation_split)
    original, middle, vary, *moments = RECIPES[recipe]
    crop = image_size or original
    side = round(crop * 256 / original)
    middle = functools.partial(middle, side=side, crop=crop)
    vary = functools.partial(vary, side=side, crop=crop)

    def centred(split):
        return split.map(lambda x, y: (middle(x), y), tf.data.AUTOTUNE)

    varied = functools.partial(augmented, train, vary, seed)
    return Data(
        varied() if augment else centred(train),
        centred(test),
        normalization((crop, crop, 3), -1, *moments),
        len(class_names),
        tuple(class_names),
        cache=False,
        resize=middle,
        epoch=varied if augment else None,
        validation=None if validation is None else centred(validation),
    )


def _caffe_middle(image, side, crop):
    return _centre(resize(image, (side, side)), crop)


def _caffe_random(image, seed, side, crop):
    seeds = tf.random.split(seed)
    image = resize(image, (side, side))
    image = tf.image.stateless_random_crop(image, (crop, crop, 3), seeds[0])
    return flip(image, seeds[1])


def _resnet_middle(image, side, crop):
    size = tf.shape(image)[:2]
    return _centre(resize(image, size * side // tf.reduce_min(size)), crop)


def _resnet_random(image, seed, side, crop):
    del side  # a part of the image as it is
    seeds = tf.random.split(seed)
    start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        [[[0.0, 0.0, 1.0, 1.0]]],
        seeds[0],
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        use_image_if_no_bounding_boxes=True,
    )
    image = resize(tf.slice(image, start, size), (crop, crop))
    return flip(tf.ensure_shape(image, (crop, crop, 3)), seeds[1])


def _centre(image, crop):
    top, left = tf.unstack((tf.shape(image)[:2] - crop) // 2)
    image = image[top : top + crop, left : left + crop]
    return tf.ensure_shape(image, (crop, crop, 3))


# Side of the crop, test images, training images, mean, variance.
RECIPES = {
    "caffe": (227, _caffe_middle, _caffe_random, _CAFFE_MEAN, (1.0,) * 3),
    "resnet": (
        224,
        _resnet_middle,
        _resnet_random,
        [255 * mean for mean in _TORCH_MEAN],
        [(255 * std) ** 2 for std in _TORCH_STD],
    ),
}
