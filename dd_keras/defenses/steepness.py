"""c of Eq. 6, from how far a classifier's decision boundaries are.

exp(-c * rho) tells near boundaries from far ones only where c * rho is of the
order of 1. The paper's own products of c and the reference's mean rho_2 (its
Table 1) lie between 0.6 and 5.1, though its c goes from 25 to 500.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras import distribution
from dd_keras.classifier import inputs, logits
from dd_keras.utils import config, norms

AUTO = "auto"
# c * the median rho of the classifier to be defended, of c="auto". README.md
# has what other products gain.
PRODUCT = 1.0
# Above, the penalty is that of a few samples; below, it hardly knows rho.
USUAL_PRODUCTS = (0.1, 10.0)
BATCHES = 4
_STEPS = 10  # of training until its mean rho is relied on


def choose(rho: ArrayLike) -> float:
    """C for samples at these distances from the decision boundary.

    Args:
        rho: (N,), of the classifier that is to be defended.

    Returns:
        c, such that c times the median of `rho` is `PRODUCT`.

    Raises:
        ValueError: if there is no sample, or the median is not above 0.
    """
    rho = np.asarray(rho)
    median = float(np.median(rho)) if rho.size else 0.0
    if not 0 < median < np.inf:
        raise ValueError(
            "c: expected a number, as 'auto' finds no boundary to go by: the "
            f"median rho of {rho.size} samples is {median:g}."
        )
    return PRODUCT / median


def first_batches(
    x: Any, batch_size: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """The few batches that rho is measured on, as `fit` would see them.

    Args:
        x: what `fit` takes for inputs. Of arrays, which may be sorted by
            class, samples are taken evenly from all of them.
        batch_size: samples a batch, of arrays; None: 32, as in `fit`.

    Yields:
        Up to `BATCHES` tuples, the inputs first.

    Raises:
        TypeError: if `x` can be gone through only once.
    """
    if isinstance(x, keras.utils.PyDataset):
        return map(x.__getitem__, range(min(BATCHES, x.num_batches or BATCHES)))
    if isinstance(x, tf.data.Dataset):
        return iter(x.take(BATCHES))
    if isinstance(x, Iterator):
        raise TypeError(
            "c: expected a number with data that can be gone through only "
            f"once; received 'auto' with a {type(x).__name__}."
        )
    arrays = keras.tree.flatten(x)
    if arrays and hasattr(arrays[0], "shape"):
        return _of_arrays(x, len(arrays[0]), batch_size)
    return itertools.islice(iter(x), BATCHES)  # a PyTorch DataLoader


def _of_arrays(x, samples, batch_size):
    wanted = BATCHES * (batch_size or config.DEFAULT_BATCH_SIZE)
    chosen = np.linspace(0, samples - 1, min(samples, wanted)).astype(int)
    for indices in np.array_split(chosen, min(BATCHES, len(chosen))):
        yield (
            keras.tree.map_structure(
                lambda array, rows=indices: keras.ops.take(array, rows, axis=0),
                x,
            ),
        )


def measure(model: Any, batches: Iterable[tuple[Any, ...]]) -> float:
    """C for a classifier as it is now, the same on all workers.

    rho (Eq. 7) is that of the training attack, from the predicted classes.

    Args:
        model: a `DeepDefenseModel`.
        batches: as `fit` takes them, the inputs first.
    """
    found = [np.zeros(0)]
    for batch in batches:
        first, *_ = keras.utils.unpack_x_y_sample_weight(batch)
        first, *_ = inputs.prepare(model.model, first)
        x = logits.cast_inputs(model.model, first)
        perturbation = model.attack.perturb(model.logits_model(), x)
        found.append(norms.rho(perturbation, x, model.norm).numpy())
    return distribution.from_chief(choose(np.concatenate(found)))


class SteepnessCallback(keras.callbacks.Callback):
    """Chooses c where it is to be, and warns where it does not fit.

    Args:
        model: a `DeepDefenseModel`, whose `c` may be `"auto"`.
        x: inputs, or a data set, as for `fit`.
        batch_size: samples a batch, of arrays, or None.
    """

    def __init__(self, model: Any, x: Any, batch_size: int | None):
        super().__init__()
        self._rho = model.rho_tracker.name
        self._checked = False
        self._batches: Iterable = ()
        if model.c == AUTO:  # what cannot be is refused before any step
            self._batches = first_batches(x, batch_size)

    def on_train_batch_begin(
        self, batch: int, logs: dict | None = None
    ) -> None:
        """Chooses c, behind any epochs that train without the regulariser."""
        if self.model.c == AUTO and self.model.regularizes:
            self.model.c = measure(self.model, self._batches)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks once at the mean rho of the first steps."""
        rho = (logs or {}).get(self._rho)
        if self._checked or rho is None or batch + 1 < _STEPS:
            return
        self._checked = True
        rho, c = float(rho), self.model.c
        low, high = USUAL_PRODUCTS
        if not low <= c * rho <= high:
            warnings.warn(
                f"c: expected c * rho between {low:g} and {high:g}, where the "
                f"penalty exp(-c * rho) tells samples apart; received c = "
                f"{c:.4g} and a mean rho of {rho:.3g}, {c * rho:.3g}. c='auto' "
                "chooses one. Or the classifier is barely trained.",
                stacklevel=2,
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Leaves later epochs alone: there rho has grown."""
        self._checked = True
