"""Deep Defense (Yan, Guo, Zhang, NeurIPS 2018) as a Keras model."""

import keras
import tensorflow as tf

from dd_keras import logits, losses, numerics
from dd_keras.attacks import DeepFool, Forward
from dd_keras.defenses.split_exponential import SplitExponential


@keras.saving.register_keras_serializable("dd_keras")
class DeepDefenseModel(keras.Model):
    """Any Keras classifier, trained to resist adversarial perturbations.

    Each training step minimises (Eq. 6 of the paper)

        mean loss + lam * mean of [ exp(-c * rho) if correctly classified,
                                    exp(d * rho) otherwise ],

    where rho = ||perturbation||_p / ||x||_p is the relative size of the
    perturbation that DeepFool finds, differentiated through all of its
    iterations. `call`, `predict` and the outputs are those of the classifier.

    `fit` takes ordinary labels (classes, one-hot, or 0 and 1 for one output)
    and sample or class weights, which also weigh the regulariser. Its logs
    hold, beside the compiled metrics: `loss`, the objective above;
    `regularization`, its mean penalty, before lam; and `rho2` (`rho1`,
    `rhoinf`, ... for other norms). In training, rho is that of the training
    attack; in `evaluate` and as `val_rho2`, that of `evaluation_attack` from
    the predicted classes, over all samples, as in the paper's tables.

    Args:
        model: a built Keras classifier, see `logits_model`.
        lam: weight of the regulariser, at least 0.
        c: steepness for correctly classified samples, above 0. Larger values
            work on the least robust samples only.
        d: steepness for misclassified samples, above 0.
        attack: the differentiable attack; `DeepFool(max_iter=5)` by default.
        evaluation_attack: the attack behind `val_rho2`; by default
            `DeepFool` in the norm of `attack`, with up to 50 iterations.
        activation: what `model` ends in, see `logits_model`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        model = dd_keras.DeepDefenseModel(classifier, lam=15.0, c=25.0, d=5.0)
        model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
        model.fit(x_train, y_train, validation_data=(x_test, y_test))
        classifier.save("robust.keras")  # the weights are shared
    """

    def __init__(
        self,
        model,
        *,
        lam=15.0,
        c=25.0,
        d=5.0,
        attack=None,
        evaluation_attack=None,
        activation=None,
        **kwargs,
    ):
        activation = logits.output_activation(model, activation)
        kwargs.setdefault("dtype", model.dtype_policy)
        super().__init__(**kwargs)
        self.model = model
        self.lam = numerics.validate_number("lam", lam, at_least=0)
        self.penalty = SplitExponential(c, d, dtype=logits.working_dtype(model))
        self.attack = attack or DeepFool(max_iter=5)
        norm = getattr(self.attack, "norm", 2.0)
        self.evaluation_attack = evaluation_attack or DeepFool(norm)
        self.activation = activation
        self.rho_tracker = keras.metrics.Mean(name=f"rho{norm:g}")
        self.regularization_tracker = keras.metrics.Mean("regularization")
        # In a closure: Keras would take an attribute for a second sublayer.
        network = logits.logits_model(model, activation)
        self._network = lambda: network
        self.built = True

    def logits_model(self):
        """The classifier up to its logits, see `dd_keras.logits_model`."""
        return self._network()

    def call(self, inputs, training=None):
        """The classifier's own outputs."""
        return self.model(inputs, training=training)

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """As `keras.Model.compile`, with any classification loss.

        A cross-entropy given by name learns from the model whether its
        outputs are logits.

        Raises:
            ValueError: if `loss` is for regression, or takes logits for
                probabilities or the reverse.
        """
        loss = losses.classification_loss(loss, self.activation)
        super().compile(optimizer, loss, **kwargs)
        self._same_in_training = (
            self.activation == "linear" and logits.same_in_training(self.model)
        )

    def compile_from_config(self, config):
        """Compiles a loaded model as the saved one was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, data):
        """One step down the gradient of the objective; returns the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred, _, loss, rho = self._objective(x, y, sample_weight, True)
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        if rho is not None:
            self.rho_tracker.update_state(rho)
        logs = self.compute_metrics(x, y, y_pred, sample_weight)
        if rho is None:
            logs.pop(self.rho_tracker.name)
        return logs

    def test_step(self, data):
        """Evaluates the objective, and rho from the predicted classes."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred, forward, *_ = self._objective(x, y, sample_weight, False)
        rho = self._attack(self.evaluation_attack, x, None, forward)[1]
        self.rho_tracker.update_state(rho)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _forward(self, x, training):
        """The outputs, and the attack's `Forward` if they come to the same.

        They do if they are logits and training changes nothing in the network.
        """
        same = self._same_in_training or not training
        if self.lam == 0 or self.activation != "linear" or not same:
            return self(x, training=training), None
        x = logits.cast_inputs(self.model, x)
        return Forward.of_model(self, x, training)

    def _objective(self, x, y, sample_weight, training):
        """Eq. 6 on a batch: outputs, their `Forward`, loss, and rho, (B,).

        With lam = 0 there is no attack, and rho is None.
        """
        y_pred, forward = self._forward(x, training)
        labels = logits.sparse_labels(y, max(2, y_pred.shape[-1]))
        with tf.control_dependencies([labels]):  # checked before they are used
            y = tf.identity(y)
        loss = self.compute_loss(x, y, y_pred, sample_weight, training)
        penalty, rho = 0.0, None
        if self.lam > 0:
            classes, rho = self._attack(self.attack, x, labels, forward)
            penalty = self.penalty(classes == labels, rho, sample_weight)
            loss += self.lam * tf.cast(penalty, loss.dtype)
        self._track(loss, penalty, tf.size(labels))
        return y_pred, forward, loss, rho

    def _attack(self, attack, x, labels, forward):
        """The predicted classes and rho, each of shape (B,)."""
        x = logits.cast_inputs(self.model, x)
        found = attack.search(self.logits_model(), x, labels, forward=forward)
        norm = getattr(self.attack, "norm", 2.0)
        return found.predictions, numerics.rho(found.perturbation, x, norm)

    def _track(self, loss, penalty, batch_size):
        """Updates the means of loss and penalty over the epoch."""
        # Keras divides every Loss by the number of replicas.
        replicas = self.distribute_strategy.num_replicas_in_sync
        self.regularization_tracker.update_state(penalty * replicas, batch_size)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss * replicas, batch_size)

    def get_config(self):
        """The constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "model": serialize(self.model),
            "lam": self.lam,
            "c": self.penalty.c,
            "d": self.penalty.d,
            "attack": serialize(self.attack),
            "evaluation_attack": serialize(self.evaluation_attack),
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config):
        """Builds the model from what `get_config` returned."""
        deserialize = keras.saving.deserialize_keras_object
        for key in ("model", "attack", "evaluation_attack"):
            config[key] = deserialize(config[key])
        config.pop("dtype", None)  # the classifier's own
        return cls(config.pop("model"), **config)
