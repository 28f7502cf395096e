"""Adversarial training: "Adv. Train I" and "II" of the Deep Defense paper."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import Attack, DeepFool, Forward
from dd_keras.classifier import logits
from dd_keras.classifier.inputs import has_preprocessor
from dd_keras.defenses.base import DefenseModel
from dd_keras.defenses.deep_defense import DeepDefenseModel
from dd_keras.utils import terminal, validation


def deepfool_dataset(
    model: keras.Model,
    dataset: Iterable[tuple],
    attack: Attack | None = None,
    *,
    include_clean: bool = False,
    verbose: str | int = "auto",
) -> tf.data.Dataset:
    """The fixed adversarial training set of "Adv. Train I".

    Moosavi-Dezfooli et al. (CVPR 2016) fine-tune a classifier on its own
    DeepFool images, which are made once, before training. Every input is
    perturbed until `model` predicts another class; the labels do not change.

    Args:
        model: a built Keras classifier, see `logits_model`: the one to be
            fine-tuned, before fine-tuning.
        dataset: batches of (inputs, labels), a finite `tf.data.Dataset` or
            another iterable. It is iterated once.
        attack: an `attacks.Attack`; `DeepFool()` by default.
        include_clean: whether to append the clean inputs to the adversarial
            ones.
        verbose: 1 shows a progress bar over batches, 2 a line at the end, 0
            nothing; `"auto"`: a bar on a terminal, else a line.

    Returns:
        An unbatched `tf.data.Dataset` of (input, label), in the order of
        `dataset`. It is held in memory, and as large as the data set, or
        twice that with `include_clean`. Inputs are floating, of the dtype in
        which attacks on `model` compute.

    Raises:
        TypeError, ValueError: if `model` is not a built classifier, `dataset`
            is empty or infinite, or a batch is not a pair of inputs and
            labels.

    Example:
        >>> test = tf.data.Dataset.from_tensor_slices((x_test, y_test))
        >>> test = test.batch(50)
        >>> adversarial = dd_keras.deepfool_dataset(classifier, test, verbose=0)
        >>> _, right = classifier.evaluate(test, verbose=0)
        >>> _, fooled = classifier.evaluate(adversarial.batch(50), verbose=0)
        >>> right > 0.9 and fooled < 0.1
        True
        >>> history = classifier.fit(adversarial.batch(50), verbose=0)
    """
    if has_preprocessor(model):
        raise ValueError(
            f"model: expected one without a preprocessor; {model.name!r} has "
            "one, which would be applied to the adversarial inputs once more. "
            "Set its preprocessor to None and preprocess the data set."
        )
    attack = attack or DeepFool()
    batches = _length(dataset)
    bar = keras.utils.Progbar(
        batches, verbose=terminal.verbosity(verbose), unit_name="batch"
    )
    clean, adversarial, labels = [], [], []
    for batch in dataset:
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise ValueError(
                "dataset: expected batches of (inputs, labels); received "
                f"{type(batch).__name__} of "
                f"{len(batch) if isinstance(batch, tuple) else 'one'}."
            )
        x = logits.cast_inputs(model, batch[0])
        adversarial.append(attack(model, x).numpy())
        if include_clean:
            clean.append(x.numpy())
        labels.append(keras.ops.convert_to_numpy(batch[1]))
        bar.add(1)
    if not labels:
        raise ValueError("dataset: expected at least one batch; received none.")
    return _unbatched(adversarial + clean, labels * (1 + include_clean))


@keras.saving.register_keras_serializable("dd_keras")
class AdversarialTrainingModel(DefenseModel):
    """Any Keras classifier, trained on its own adversarial examples.

    Each training step minimises the adversarial objective of Goodfellow et
    al. (ICLR 2015), "Adv. Train II" of the Deep Defense paper:

        alpha * loss(x, y) + (1 - alpha) * loss(x + perturbation, y),

    where `adversary` finds a new perturbation for each batch, from the true
    labels and with the current weights. No gradient flows through the attack.
    `DefenseModel` describes what all defences share.

    Args:
        model: a built Keras classifier, see `logits_model`.
        adversary: the untargeted attack to train on, such as
            `attacks.FGSM(eps)`, with eps in units of the inputs.
        alpha: weight of the clean loss, in [0, 1]; 0.5 in Goodfellow et al.
        evaluation_attack, batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `adversary` is not an untargeted attack, or `model` not
            a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        >>> fgsm = dd_keras.attacks.FGSM(eps=0.1, bounds=(0, 1))
        >>> before = np.mean(fgsm.run(classifier, x_test, y_test).fooled)
        >>> model = dd_keras.AdversarialTrainingModel(
        ...     classifier, adversary=fgsm
        ... )
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, epochs=5, verbose=0)
        >>> after = np.mean(fgsm.run(classifier, x_test, y_test).fooled)
        >>> print(after < before)
        True
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        adversary: Attack,
        alpha: float = 0.5,
        **kwargs: Any,
    ):
        if not isinstance(adversary, Attack) or adversary.targeted:
            raise TypeError(
                "adversary: expected an untargeted dd_keras.attacks.Attack; "
                f"received {adversary!r}."
            )
        super().__init__(model, **kwargs)
        self.adversary = adversary
        self.alpha = validation.validate_number(
            "alpha", alpha, at_least=0, at_most=1
        )

    def shares_forward_pass(self) -> bool:
        """Whether the training attack can reuse the loss' forward pass."""
        return True

    def task_loss(
        self,
        x: tf.Tensor,
        y: tf.Tensor,
        labels: tf.Tensor,
        y_pred: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
        training: bool,
    ) -> tf.Tensor:
        """The adversarial objective, a scalar."""
        if self.alpha > 0:  # a gradient of zero is not free
            clean = self.alpha * super().task_loss(
                x, y, labels, y_pred, forward, sample_weight, training
            )
        else:
            clean = 0.0
        perturbation, weight = self._adversarial(x, labels, forward, training)
        x = tf.stop_gradient(logits.cast_inputs(self.model, x) + perturbation)
        y_pred = self(x, training=training)
        weight = _product(weight, sample_weight)
        adversarial = self.compute_loss(x, y, y_pred, weight, training)
        return clean + (1.0 - self.alpha) * adversarial

    def _adversarial(self, x, labels, forward, training):
        """What moves a batch, (B, ...), and the samples' weights, or None."""
        adversary = self._adversary_of_step(self.adversary, training)
        found, _ = self._attack_batch(adversary, x, labels, forward)
        return found.perturbation, None

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "adversary": keras.saving.serialize_keras_object(self.adversary),
            "alpha": self.alpha,
        }


@keras.saving.register_keras_serializable("dd_keras")
class CombinedModel(AdversarialTrainingModel, DeepDefenseModel):
    """Deep Defense combined with adversarial training (supplement, Section 2).

    Each training step minimises the objective of `AdversarialTrainingModel`
    plus the regulariser of `DeepDefenseModel` at the clean inputs.

    Args: those of both classes.

    Raises: as both classes.

    Example:
        >>> model = dd_keras.CombinedModel(
        ...     classifier, adversary=dd_keras.attacks.FGSM(eps=0.1), lam=1.0
        ... )
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = model.fit(x_train, y_train, verbose=0)
        >>> sorted(history.history)
        ['loss', 'regularization', 'rho2']
    """


def _product(weight, other):
    """Of weights of samples, (B,), which may be None."""
    if weight is None or other is None:
        return other if weight is None else weight
    return weight * tf.cast(other, weight.dtype)


def _length(dataset):
    """The number of batches, or None where it cannot be told."""
    try:
        return len(dataset)
    except TypeError as error:
        if "infinite" in str(error):
            raise ValueError(
                "dataset: expected a finite one; received one that repeats "
                "without end."
            ) from error
        return None


def _unbatched(inputs, labels):
    """Batches of inputs and labels as one data set of samples."""
    return tf.data.Dataset.from_tensor_slices(
        (np.concatenate(inputs), np.concatenate(labels))
    )
