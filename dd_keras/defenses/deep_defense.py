"""Deep Defense (Yan, Guo, Zhang, NeurIPS 2018) as a Keras model."""

import contextlib
import functools

import keras
import tensorflow as tf

from dd_keras.attacks import DeepFool
from dd_keras.classifier import logits
from dd_keras.defenses.base import DefenseModel
from dd_keras.defenses.split_exponential import SplitExponential
from dd_keras.utils import keras_internals, validation


@keras.saving.register_keras_serializable("dd_keras")
class DeepDefenseModel(DefenseModel):
    """Any Keras classifier, trained to resist adversarial perturbations.

    Each training step minimises (Eq. 6 of the paper)

        mean loss + lam * mean of [ exp(-c * rho) if correctly classified,
                                    exp(d * rho) otherwise ],

    where rho = ||perturbation||_p / ||x||_p is the relative size of the
    perturbation that DeepFool finds, differentiated through all of its
    iterations. See `DefenseModel` for what else there is to a defence.

    Sample and class weights also weigh the regulariser. The logs hold, beside
    the compiled metrics: `loss`, the objective above; `regularization`, its
    mean penalty, before lam; and `rho2` (`rho1`, `rhoinf`, ... for other
    norms). In training, rho is that of the training attack, and its mean
    leaves out nothing; as `val_rho2` it is that of `evaluation_attack`.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0.
        c: steepness for correctly classified samples, above 0. Larger values
            work on the least robust samples only.
        d: steepness for misclassified samples, above 0.
        attack: the differentiable attack; `DeepFool(max_iter=5)` by default.
            Any `attacks.Attack` serves whose `search` is differentiable by
            the network's weights (the paper's footnote 1). Its `norm` is p.
        regularized_layers: names of layers of `model`: the regulariser's
            gradient reaches only their weights, all others are trained by
            the loss alone (Figure 4). None for all layers.
        evaluation_attack: as in `DefenseModel`, of the norm of `attack`.
        batch_norm, activation: see `DefenseModel`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        model = dd_keras.DeepDefenseModel(classifier, lam=15.0, c=25.0, d=5.0)
        model.compile(
            "sgd", "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        model.fit(x_train, y_train, validation_data=(x_test, y_test))
        classifier.save("robust.keras")  # the weights are shared
    """

    needs_second_derivatives = True

    def __init__(
        self,
        model,
        *,
        lam=15.0,
        c=25.0,
        d=5.0,
        attack=None,
        regularized_layers=None,
        evaluation_attack=None,
        **kwargs,
    ):
        attack = attack or DeepFool(max_iter=5)
        norm = getattr(attack, "norm", 2.0)
        evaluation_attack = evaluation_attack or DeepFool(norm)
        if getattr(evaluation_attack, "norm", norm) != norm:
            raise ValueError(
                f"evaluation_attack: expected one of the norm of attack, "
                f"{norm:g}; received {evaluation_attack!r}."
            )
        super().__init__(model, evaluation_attack=evaluation_attack, **kwargs)
        self.penalty = SplitExponential(c, d, dtype=logits.working_dtype(model))
        self._attack = attack
        self.regularized_layers = _layer_names(model, regularized_layers)
        self.regularization_tracker = keras.metrics.Mean("regularization")
        self._lam = validation.validate_number("lam", lam, at_least=0)
        self._lam_share = 1.0
        # What is in force. No weight: what saves the model need not have it.
        self._lam_now = tf.Variable(self._lam, False, dtype=tf.float64)
        self._regularizes = self._lam > 0

    @property
    def lam(self):
        """Weight of the regulariser; a new one is in force from then on."""
        return self._lam

    @lam.setter
    def lam(self, value):
        self._lam = validation.validate_number("lam", value, at_least=0)
        self._put_in_force()

    @property
    def c(self):
        """Steepness for correctly classified samples; may be changed."""
        return self.penalty.c

    @c.setter
    def c(self, value):
        self._set_penalty(value, self.d)

    @property
    def d(self):
        """Steepness for misclassified samples; may be changed."""
        return self.penalty.d

    @d.setter
    def d(self, value):
        self._set_penalty(self.c, value)

    @property
    def attack(self):
        """The attack in training; one of the same norm may replace it."""
        return self._attack

    @attack.setter
    def attack(self, value):
        if getattr(value, "norm", self.norm) != self.norm:
            raise ValueError(
                f"attack: expected one of the norm {self.norm:g}, as before; "
                f"received {value!r}."
            )
        self._attack = value
        self._make_functions_anew()

    def scale_lam(self, share):
        """Lets a share of `lam` be in force from the next step on.

        With a share of 0 no attack is run, and a step costs what it does
        without a defence. For callbacks, see `RegularizationWarmup`.

        Args:
            share: a number in [0, 1].

        Raises:
            ValueError: if `share` is outside of its range.
        """
        self._lam_share = validation.validate_number(
            "share", share, at_least=0, at_most=1
        )
        self._put_in_force()

    def _put_in_force(self):
        """Lets `lam` and its share count from the next step on."""
        now = self._lam * self._lam_share
        self._lam_now.assign(now)
        if (now > 0) != self._regularizes:  # another graph
            self._regularizes = now > 0
            self._make_functions_anew()

    def _set_penalty(self, c, d):
        """Replaces the penalty of Eq. 6."""
        dtype = logits.working_dtype(self.model)
        self.penalty = SplitExponential(c, d, dtype=dtype)
        self._make_functions_anew()

    def _make_functions_anew(self):
        """Has what is compiled traced again, with the settings of now."""
        self.test_function = None
        if self.train_function is not None:
            self.make_train_function(force=True)

    @functools.wraps(keras.Model.fit, assigned=())  # the same signature
    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`; after an error, `lam` is as it was before.

        Callbacks that scale it are not told of errors.
        """
        share = self._lam_share
        try:
            return super().fit(*args, **kwargs)
        except BaseException:
            self.scale_lam(share)
            raise

    def attacks_in_training(self):
        """Whether a `Forward` of the clean inputs is of use in training."""
        # Layer by layer the loss' gradient must be the clean one, to the bit.
        return self._regularizes and self.regularized_layers is None

    def regularizer(self, x, labels, forward, sample_weight):
        """The mean penalty of Eq. 6 times lam, and rho, (B,)."""
        if not self._regularizes:
            self.regularization_tracker.update_state(0.0, tf.size(labels))
            return None, None
        layerwise = self.regularized_layers is not None
        if layerwise:  # what a subclass shares is open to all weights
            forward = None
        with self._held() if layerwise else contextlib.nullcontext():
            found, rho = self._attack_batch(self.attack, x, labels, forward)
        correct = found.predictions == labels
        penalty = self.penalty(correct, rho, sample_weight)
        self.regularization_tracker.update_state(
            self.unscaled(penalty), tf.size(labels)
        )
        return tf.cast(self._lam_now, penalty.dtype) * penalty, rho

    def _held(self):
        """A scope in which all weights but those regularised are constants."""
        chosen = {
            id(weight)
            for layer in keras_internals.layers_of(
                self.model, include_self=False
            )
            if layer.name in (self.regularized_layers or ())
            for weight in layer.weights
        }
        return keras.StatelessScope(
            [
                (weight, tf.stop_gradient(weight.value))
                for weight in self.model.trainable_weights
                if id(weight) not in chosen
            ]
        )

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "lam": self.lam,
            "c": self.c,
            "d": self.d,
            "attack": keras.saving.serialize_keras_object(self.attack),
            "regularized_layers": self.regularized_layers,
        }


def _layer_names(model, layers):
    """The names of layers that have weights to regularise, or None."""
    if layers is None:
        return None
    names = [getattr(layer, "name", layer) for layer in layers]
    known = [
        layer.name
        for layer in keras_internals.layers_of(model, include_self=False)
        if layer.trainable_weights
    ]
    unknown = [name for name in names if name not in known]
    if unknown or not names or isinstance(layers, str):
        raise ValueError(
            "regularized_layers: expected a list of names of layers of "
            f"{model.name!r} with trainable weights, of {known}; received "
            f"{layers!r}."
        )
    return names
