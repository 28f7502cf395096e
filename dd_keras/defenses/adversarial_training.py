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

    Moosavi-Dezfooli et al., CVPR 2016, fine-tune a classifier on the DeepFool
    images of itself, made once, before training. Every input is perturbed
    until `model` changes the class it predicts; the labels stay.

    Args:
        model: a built Keras classifier, see `logits_model`: the one that is
            to be fine-tuned, as it is now.
        dataset: batches of (inputs, labels), gone through once: a finite
            `tf.data.Dataset` or other iterable.
        attack: an `attacks.Attack`; `DeepFool()` by default.
        include_clean: whether the clean inputs follow the adversarial ones.
        verbose: 1 shows a progress bar over batches, 2 a line at the end, 0
            nothing; `"auto"`: a bar on a terminal, else a line.

    Returns:
        An unbatched `tf.data.Dataset` of (input, label), in the order of
        `dataset`, held in memory: of the size of the data set, and twice that
        with `include_clean`. Inputs have the dtype of the model's norms.

    Raises:
        TypeError, ValueError: if `model` is no built classifier, `dataset`
            is empty or infinite, or a batch is no pair of inputs and labels.

    Example:
        adversarial = dd_keras.deepfool_dataset(classifier, train, verbose=0)
        classifier.compile("sgd", "sparse_categorical_crossentropy")
        classifier.fit(adversarial.shuffle(1000).batch(6), verbose=0)
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
    """Any Keras classifier, trained on adversarial images of itself.

    Each training step minimises the adversarial objective of Goodfellow et
    al. (ICLR 2015), "Adv. Train II" of the Deep Defense paper:

        alpha * loss(x, y) + (1 - alpha) * loss(x + perturbation, y),

    with the perturbation made anew for each batch, from the true labels, by
    the classifier as it is. No gradient goes through the attack. See
    `DefenseModel` for what else there is to a defence.

    Args:
        model: a built Keras classifier, see `logits_model`.
        adversary: the attack, such as `attacks.FGSM(eps)`, whose eps is in
            units of the inputs.
        alpha: share of the clean loss, in [0, 1]; 0.5 in Goodfellow et al.
        evaluation_attack, batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `adversary` is no attack, or `model` no Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        model = dd_keras.AdversarialTrainingModel(
            classifier, adversary=dd_keras.attacks.FGSM(eps=10.0)
        )
        model.compile(
            "sgd", "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        model.fit(x_train, y_train, validation_data=(x_test, y_test))
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
        """Whether the attack in training can use the loss' forward pass."""
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
    """Deep Defense on top of adversarial training (supplement, section 2).

    Minimises the adversarial objective of `AdversarialTrainingModel` plus the
    regulariser of `DeepDefenseModel`, which looks at the clean inputs.

    Args: those of both.

    Raises: as both.

    Example:
        model = dd_keras.CombinedModel(
            classifier, adversary=dd_keras.attacks.FGSM(eps=0.1), lam=5.0
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(x_train, y_train)
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
