"""What TensorBoard shows of a robustness that grows during `fit`."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dd_keras import attacks, distribution
from dd_keras.classifier import inputs, logits
from dd_keras.classifier.labels import sparse_labels
from dd_keras.evaluation import streams
from dd_keras.evaluation.html_report.images import as_bytes, shown_perturbation
from dd_keras.evaluation.metrics.base import validate_attack
from dd_keras.utils import norms, text, validation

_BATCH = 100  # samples that are attacked at a time
_MOST_CLASSES = 20  # with histograms of their own
# What pixels are if no bounds are given: the first of these that holds them.
_USUAL_BOUNDS = ((0, 1), (0, 255))
_SLACK = 0.5 / 255  # of the range, by which inputs may lie outside of it


class _Measured(NamedTuple):
    """What an attack found: rho, (N,), and where a picture is of it."""

    predictions: np.ndarray
    rho: np.ndarray
    perturbation: np.ndarray  # of the images alone, (M, ...)


class RobustnessBoard(keras.callbacks.Callback):
    """A callback that shows TensorBoard how robustness grows during `fit`.

    It attacks the same samples before the first epoch and after every
    `frequency`-th, and writes for TensorBoard, with the number of finished
    epochs as the step:

    - images, `images/<i> class <class>`: a clean image, its perturbation and
      the adversarial image side by side. The perturbation is amplified by
      `amplification/<i>`, a scalar of the same step, so that its largest
      change is as far from no change as the colours go: of one channel, blue
      darkens, red brightens and white is no change; of three, grey is;
    - histograms of rho, ||perturbation||_p / ||x||_p (Eq. 7): `rho/correct`
      and `rho/misclassified`, by whether the clean sample is classified
      correctly, and `rho/class <class>`, by the true class: of the 20 classes
      with the most samples. None where there is no sample;
    - scalars: `accuracy/all`, and the means of the histograms, `rho_mean/all`,
      `rho_mean/correct`, and so on.

    Attacks start from the predicted classes, as for `val_rho2`. Training is
    the same to the bit with the callback and without it, and so are its logs.

    It costs one attack on `samples` inputs per record: about as much as
    validation on them. With several workers, each attacks and the chief
    writes. A training that `resumable_fit` resumes goes on in the same
    `log_dir`.

    Args:
        log_dir: directory of the event files; `tensorboard --logdir` takes
            it, or one above it.
        data: inputs and labels, as for `evaluate_robustness`: an array of
            inputs, together with `y`; a tuple (inputs, labels); or a batched
            `tf.data.Dataset` or `keras.utils.PyDataset`. Read once, at
            construction. Of a model with a preprocessor of its own (KerasHub)
            they are what that takes, and no images are shown.
        y: labels, integer or one-hot, if `data` is an array of inputs.
        images: number of samples shown as images, the first ones; 0 for none.
            Inputs that are not (N, H, W, 1) or (N, H, W, 3) have none.
        samples: number of samples attacked, the first ones; at most those in
            `data`.
        bounds: (low, high), the inputs that are black and white, numbers or
            arrays that broadcast against a sample. None: (0, 1) or (0, 255),
            if the inputs are within one of these. Only for the images.
        attack: untargeted attack with a `norm`. None: the
            `evaluation_attack` of a `DefenseModel`, else `DeepFool()`.
        class_names: of all classes, in their order; None: their numbers.
        frequency: epochs from one record to the next, at least 1.
        activation: the final activation of the model, see `logits_model`.

    Raises:
        ImportError: if tensorboard is not installed.
        TypeError: if `data` is none of these.
        ValueError: if an argument is outside its range; if `data` is empty,
            has no labels, or images outside `bounds`. At the start of `fit`,
            if `data`, `y` or `class_names` do not fit the model.

    Example:
        >>> board = dd_keras.RobustnessBoard("logs", x_test, y_test, images=4)
        >>> model = dd_keras.DefenseModel(classifier)
        >>> model.compile("sgd", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, callbacks=[board], verbose=0)
        >>> len(os.listdir("logs"))  # tensorboard --logdir logs
        1
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        data: Any,
        y: ArrayLike | None = None,
        *,
        images: int = 8,
        samples: int = 500,
        bounds: tuple | None = None,
        attack: attacks.Attack | None = None,
        class_names: Sequence[str] | None = None,
        frequency: int = 1,
        activation: str | None = None,
    ):
        super().__init__()
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "RobustnessBoard writes with the package tensorboard: pip "
                "install 'dd_keras[apps]'"
            )
        at_least = validation.validate_integer
        self.log_dir = os.fspath(log_dir)
        self.images = at_least("images", images, at_least=0)
        self.samples = at_least("samples", samples, at_least=1)
        self.frequency = at_least("frequency", frequency, at_least=1)
        self.bounds: Any = validation.validate_bounds(bounds)
        if attack is not None:
            validate_attack(attack, "norm")
        self.attack = attack
        if isinstance(class_names, str):
            raise ValueError(
                "class_names: expected a sequence of names; received "
                f"{class_names!r}."
            )
        self.class_names = None if class_names is None else list(class_names)
        self.activation = activation
        self._x, self._y = _first(streams.of(data, y), self.samples)
        if self.images and _are_images(self._x):
            self.bounds = _bounds_of(self._x[: self.images], self.bounds)
        self._writer: Any = None
        self._iterations: int | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Checks the samples against the model."""
        model = self.model
        self._network = logits.logits_model(model, self.activation)
        self._attack = self.attack or getattr(model, "evaluation_attack", None)
        if self._attack is None:
            self._attack = attacks.DeepFool()
        self._norm = getattr(self._attack, "norm", 2.0)
        classes = logits.num_classes(model)
        names = self.class_names
        if names is not None and len(names) != classes:
            raise ValueError(
                f"class_names: expected {classes} names, one for each class "
                f"of the model; received {len(names)}."
            )
        own = inputs.has_preprocessor(model)
        self._inputs = _prepared(model, self._x) if own else self._x
        self._shown = 0
        if not own and _are_images(self._x):
            self._shown = min(self.images, len(self._x))
        try:
            logits.cast_inputs(self._network, self._inputs[:1])
            self._labels = sparse_labels(self._y, classes).numpy()
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            message = getattr(error, "message", str(error))
            raise ValueError(f"data: {message}") from error
        self._groups = self._classes()
        self._iterations = self._steps()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Writes what was there before the first epoch."""
        # `resumable_fit` has loaded a checkpoint by now: if that was of a
        # later step, the first record is written already.
        if epoch == 0 and self._iterations == self._steps():
            self._record(0)
        self._iterations = None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes a record, if it is time."""
        if (epoch + 1) % self.frequency == 0:
            self._record(epoch + 1)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _steps(self):
        """How many steps the optimizer has taken; None without one."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            return None
        return int(keras.ops.convert_to_numpy(optimizer.iterations))

    def _classes(self):
        """The classes with histograms: dict of name to (N,), bool."""
        numbers, counts = np.unique(self._labels, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
        return {
            f"class {self._name(k)}": self._labels == k
            for k in np.sort(numbers[most])
        }

    def _name(self, label):
        """The number of a class, and its name where there is one."""
        if self.class_names is None:
            return str(label)
        # Two classes may have the same name.
        return f"{label} {text.printable(self.class_names[label])}"

    def _record(self, step):
        """Attacks, and writes what came of it."""
        # All workers attack: reading a weight may take all of them.
        found = self._measured()
        if not distribution.is_chief():
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self.log_dir)
        # Whatever another callback has switched off.
        with self._writer.as_default(step), tf.summary.record_if(True):
            self._write_rho(found)
            self._write_images(found)
        self._writer.flush()

    def _measured(self):
        """Attacks all samples, in batches."""
        parts, shown = [], self._shown
        for start in range(0, len(self._inputs), _BATCH):
            x = self._inputs[start : start + _BATCH]
            x = logits.cast_inputs(self._network, x)
            result = self._attack.run(self._network, x)
            size = norms.rho(result.perturbation, x, self._norm)
            kept = result.perturbation.numpy()[: max(0, shown - start)]
            parts.append((result.predictions.numpy(), size.numpy(), kept))
        return _Measured(*map(np.concatenate, zip(*parts, strict=True)))

    def _write_rho(self, found):
        correct = found.predictions == self._labels
        tf.summary.scalar("accuracy/all", np.mean(correct))
        tf.summary.scalar("rho_mean/all", np.mean(found.rho))
        groups = {"correct": correct, "misclassified": ~correct, **self._groups}
        for name, chosen in groups.items():
            if chosen.any():
                rho = found.rho[chosen]
                described = (
                    f"||perturbation||_{self._norm:g} / ||x||_{self._norm:g} "
                    f"of each sample, by {type(self._attack).__name__}"
                )
                tf.summary.histogram(f"rho/{name}", rho, description=described)
                tf.summary.scalar(f"rho_mean/{name}", np.mean(rho))

    def _write_images(self, found):
        if not self._shown:
            return
        low, high = map(np.asarray, self.bounds)
        scale = 255 / (high - low)
        clean = scale * (self._x[: self._shown] - low)
        change = scale * found.perturbation
        for i, (image, added) in enumerate(zip(clean, change, strict=True)):
            shown, factor = shown_perturbation(added)
            strip = [_in_colour(image), shown, _in_colour(image + added)]
            tf.summary.image(
                f"images/{i} class {self._name(self._labels[i])}",
                np.concatenate(strip, axis=1)[None],  # (1, H, 3 W, 3)
                description="Clean; the perturbation, amplified by "
                f"amplification/{i}; adversarial, cut to valid pixels.",
            )
            tf.summary.scalar(f"amplification/{i}", factor)


def _first(stream, count):
    """The first samples of a stream: (inputs, labels), NumPy arrays."""
    xs, ys, taken = [], [], 0
    for batch in stream.starting_at(0):
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise ValueError(
                "data: expected batches of (inputs, labels); received "
                f"{type(batch).__name__}."
            )
        x, y = (np.asarray(inputs.unpack(part)) for part in batch[:2])
        if not x.ndim or not y.ndim or len(x) != len(y):
            raise ValueError(
                "data: expected batches of inputs and as many labels; "
                f"received the shapes {x.shape} and {y.shape}."
            )
        xs.append(x[: count - taken])
        ys.append(y[: count - taken])
        taken += len(xs[-1])
        if taken >= count:
            break
    if not taken:
        raise ValueError("data: expected at least one sample; received none.")
    return np.concatenate(xs), np.concatenate(ys)


def _are_images(x):
    return x.ndim == 4 and x.shape[-1] in (1, 3)


def _bounds_of(x, bounds):
    """The bounds of images, those given or usual ones."""
    for low, high in _USUAL_BOUNDS if bounds is None else (bounds,):
        low, high = np.asarray(low), np.asarray(high)
        try:
            slack = np.broadcast_to(_SLACK * (high - low), x.shape[1:])
        except ValueError as error:
            raise ValueError(
                "bounds: expected numbers, or arrays that broadcast against "
                f"samples of shape {x.shape[1:]}; received arrays of shape "
                f"{(high - low).shape}."
            ) from error
        if np.all((x >= low - slack) & (x <= high + slack)):
            return low.tolist(), high.tolist()
    raise ValueError(
        "bounds: expected the inputs that are black and white, (low, high), "
        "and all images within them; received "
        f"{'None' if bounds is None else 'others'}, and images from "
        f"{np.min(x):g} to {np.max(x):g}. images=0 does without images."
    )


def _prepared(model, x):
    """Inputs as a model's own preprocessor makes them."""
    # In a graph, as in `predict`: eagerly some round to whole pixels.
    prepare = tf.function(
        lambda x: inputs.prepare(model, x)[0], autograph=False
    )
    return prepare(tf.convert_to_tensor(x)).numpy()


def _in_colour(image):
    """Pixels as uint8, (H, W, 3)."""
    return np.broadcast_to(as_bytes(image), (*image.shape[:2], 3))
