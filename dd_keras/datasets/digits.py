"""scikit-learn's handwritten digits, which its package brings along."""

import numpy as np
import tensorflow as tf

# A fixed permutation of the 1,797 digits. scikit-learn orders them by writer;
# a test split off the end would hold other writers than the training split.
_SEED = 20181203
_TEST_SIZE = 360
_LEVELS = 16  # scikit-learn's pixels count ink from 0 to 16


def splits() -> tuple[tf.data.Dataset, tf.data.Dataset, list[str]]:
    """The splits of scikit-learn's digits, and the names of the classes.

    Returns:
        (train, test, class_names): unbatched data sets of (image, label).

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the data set 'digits' comes with scikit-learn: pip install "
            f"'dd_keras[apps]' ({error})"
        ) from error

    digits = load_digits()
    order = np.random.RandomState(_SEED).permutation(len(digits.target))
    images = digits.images[order, ..., None] * (255 / _LEVELS)
    images, labels = images.astype(np.float32), digits.target[order]
    test = slice(-_TEST_SIZE, None)
    train = slice(None, -_TEST_SIZE)
    halves = (
        tf.data.Dataset.from_tensor_slices((images[part], labels[part]))
        for part in (train, test)
    )
    return *halves, [str(name) for name in digits.target_names]
