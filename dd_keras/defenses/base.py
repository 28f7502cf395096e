"""What all defences share: a classifier in, `fit` as ever, rho in the logs."""

from typing import NamedTuple

import keras
import tensorflow as tf

from dd_keras import distribution
from dd_keras.attacks import DeepFool, Forward
from dd_keras.attacks.derivatives import name_missing_gradients
from dd_keras.classifier import logits, losses
from dd_keras.classifier.inputs import input_spec, pack, prepare, unpack
from dd_keras.defenses import batch_norm as batch_normalization
from dd_keras.defenses import checks
from dd_keras.utils import norms


class Objective(NamedTuple):
    """What a training step makes of a batch.

    Attributes:
        y_pred: (B, ...): the classifier's outputs.
        forward: the attacks' `Forward` at the inputs, where there is one.
        loss: scalar: the task's loss.
        regularizer: scalar: what is minimised besides; None for nothing.
        rho: (B,): relative sizes of the perturbations; None for none.
    """

    y_pred: tf.Tensor
    forward: Forward | None
    loss: tf.Tensor
    regularizer: tf.Tensor | None
    rho: tf.Tensor | None

    @property
    def total(self):
        """Scalar: what is minimised."""
        if self.regularizer is None:
            return self.loss
        return self.loss + tf.cast(self.regularizer, self.loss.dtype)


@keras.saving.register_keras_serializable("dd_keras")
class DefenseModel(keras.Model):
    """Any Keras classifier, trained by `fit`, with its robustness in the logs.

    As it stands it minimises the compiled loss, as `keras.Model` does: the
    plain fine-tuning that defences are compared with. A defence overrides
    `task_loss`, `regularizer`, or both; their sum is minimised.

    `call`, `predict` and the outputs are those of the classifier. `fit` takes
    ordinary labels (classes, one-hot, or 0 and 1 for one output) and sample or
    class weights. The logs of `evaluate`, and of validation, hold `rho2`
    (`rho1`, `rhoinf`, ... for other norms): ||perturbation||_p / ||x||_p, its
    mean over all samples, found by `evaluation_attack` from the predicted
    classes, as in the paper's tables.

    Args:
        model: a built Keras classifier, see `logits_model`.
        evaluation_attack: the attack behind `val_rho2`; by default `DeepFool`
            with up to 50 iterations.
        batch_norm: what training does to batch normalisation: `"trained"` is
            Keras' own; `"frozen_statistics"` normalises by the moving statistics
            and leaves them as they are, but trains scale and offset;
            `"frozen"` trains neither.
        activation: what `model` ends in, see `logits_model`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.
    """

    # Whether training differentiates the gradient by the inputs once more.
    needs_second_derivatives = False

    def __init__(
        self,
        model,
        *,
        evaluation_attack=None,
        batch_norm=batch_normalization.TRAINED,
        activation=None,
        **kwargs,
    ):
        activation = logits.output_activation(model, activation)
        if batch_norm not in batch_normalization.MODES:
            raise ValueError(
                f"batch_norm: expected one of {batch_normalization.MODES}; "
                f"received {batch_norm!r}."
            )
        network = logits.logits_model(model, activation)
        checks.check_model(
            model, network, self.needs_second_derivatives, type(self).__name__
        )
        kwargs.setdefault("dtype", model.dtype_policy)
        super().__init__(**kwargs)
        self.model = model
        self.evaluation_attack = evaluation_attack or DeepFool()
        self.norm = getattr(self.evaluation_attack, "norm", 2.0)
        self.batch_norm = batch_norm
        self.activation = activation
        self.rho_tracker = keras.metrics.Mean(name=f"rho{self.norm:g}")
        # In a closure: Keras would take an attribute for a second sublayer.
        self._network = lambda: network
        self.built = True

    def logits_model(self):
        """The classifier up to its logits, see `dd_keras.logits_model`."""
        return self._network()

    def call(self, inputs, training=None):
        """The classifier's own outputs."""
        inputs = pack(self.model, unpack(inputs))
        with batch_normalization.statistics_of(self.model, self.batch_norm):
            return self.model(inputs, training=training)

    @property
    def input(self):
        """The classifier's own, for tools that take networks apart."""
        return self.model.input

    @property
    def output(self):
        """The classifier's own."""
        return self.model.output

    @property
    def inputs(self):
        """The classifier's own."""
        return self.model.inputs

    @property
    def outputs(self):
        """The classifier's own."""
        return self.model.outputs

    @property
    def preprocessor(self):
        """The classifier's own, of a KerasHub task; else None."""
        return getattr(self.model, "preprocessor", None)

    def preprocess_samples(self, x, y=None, sample_weight=None):
        """A batch as the classifier's own preprocessor makes it."""
        return self.model.preprocess_samples(x, y, sample_weight)

    def get_layer(self, name=None, index=None):
        """The classifier's layer of this name or index."""
        return self.model.get_layer(name, index)

    @property
    def trainable_weights(self):
        """The weights that training changes, see `batch_norm`."""
        return batch_normalization.trained(
            self.model, super().trainable_weights, self.batch_norm
        )

    @property
    def trainable_variables(self):
        """As `trainable_weights`."""
        return self.trainable_weights

    def export(self, *args, **kwargs):
        """Writes the classifier as `keras.Model.export` does.

        See `dd_keras.export` for what a server needs besides.
        """
        self.model.export(*args, **kwargs)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        *,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        """As `keras.Model.compile`, with any classification loss.

        A cross-entropy given by name learns from the model whether its
        outputs are logits, and so do metrics given by name.

        Raises:
            ValueError: if `loss` is for regression, or takes logits for
                probabilities or the reverse.
        """
        loss = losses.classification_loss(loss, self.activation)
        one_output = logits.num_outputs(self.model) == 1
        super().compile(
            optimizer,
            loss,
            metrics=losses.classification_metrics(
                metrics, self.activation, one_output
            ),
            weighted_metrics=losses.classification_metrics(
                weighted_metrics, self.activation, one_output
            ),
            **kwargs,
        )
        # Of integers there is no gradient: the network casts them elsewhere.
        self._gives_logits = (
            self.activation == "linear"
            and input_spec(self.model).dtype.is_floating
        )
        self._same_in_training = (
            self._gives_logits
            # Known without two traces, which are seconds of a large network.
            and not batch_normalization.differs_in_training(
                self.model, self.batch_norm
            )
            and logits.same_in_training(self)
        )

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        **kwargs,
    ):
        """As `keras.Model.fit`.

        Raises:
            ValueError: if inputs are not finite, or labels no classes of the
                model; of arrays before anything is compiled, of data sets by
                the batch at hand.
            DivergenceError: if the loss is not finite.
        """
        checks.check_arrays(self.model, x, y)
        if isinstance(validation_data, (list, tuple)):
            checks.check_arrays(self.model, *validation_data[:2])
        with checks.named_assertions():
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=checks.with_guard(callbacks),
                validation_split=validation_split,
                validation_data=validation_data,
                **kwargs,
            )

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`. Raises: see `fit`."""
        checks.check_arrays(self.model, x, y)
        with checks.named_assertions():
            return super().evaluate(x, y, *args, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded model as the saved one was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def task_loss(self, x, y, labels, y_pred, forward, sample_weight, training):
        """What the classifier is trained for: the compiled loss.

        Args:
            x: (B, ...), the inputs.
            y: their labels, as `fit` was given them.
            labels: int32, (B,): the same as classes.
            y_pred: (B, ...), the outputs at `x`.
            forward: the `Forward` at `x`; None where the attack's pass is
                another than the loss'.
            sample_weight: (B,), or None.
            training: whether this is a training step.

        Returns:
            A scalar.
        """
        del labels, forward
        return self.compute_loss(x, y, y_pred, sample_weight, training)

    def regularizer(self, x, labels, forward, sample_weight):
        """What is minimised besides.

        Args: see `task_loss`.

        Returns:
            (scalar, or None for nothing; rho of the samples, (B,), or None).
        """
        del x, labels, forward, sample_weight
        return None, None

    def attacks_in_training(self):
        """Whether a `Forward` of the clean inputs is of use in training."""
        return False

    def train_step(self, data):
        """One step down the gradient of the objective; returns the logs."""
        x, y, sample_weight = self._batch(data)
        with tf.GradientTape() as tape:
            found = self._objective(x, y, sample_weight, True)
            total = self._share_of_batch(found)
            scaled_loss = self.optimizer.scale_loss(total)
        with name_missing_gradients(self.logits_model()):
            gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self.optimizer.apply(_together(gradients), self.trainable_weights)
        if found.rho is not None:
            self.rho_tracker.update_state(found.rho)
        logs = self.compute_metrics(x, y, found.y_pred, sample_weight)
        if found.rho is None:
            logs.pop(self.rho_tracker.name, None)  # eagerly it is gone
        return logs

    def test_step(self, data):
        """Evaluates the objective, and rho from the predicted classes."""
        x, y, sample_weight = self._batch(data)
        found = self._objective(x, y, sample_weight, False)
        _, rho = self._attack_batch(
            self.evaluation_attack, x, None, found.forward
        )
        self.rho_tracker.update_state(rho)
        return self.compute_metrics(x, y, found.y_pred, sample_weight)

    def predict_step(self, data):
        """The outputs for a batch, prepared as the classifier does it."""
        x, _, _ = self._batch(data)
        return self(x, training=False)

    def _batch(self, data):
        """A batch as (x, y, sample_weight), x being what `call` takes."""
        return prepare(self.model, *keras.utils.unpack_x_y_sample_weight(data))

    def _attack_batch(self, attack, x, labels, forward=None):
        """Attacks a batch in the graph at hand.

        Args:
            attack: an `attacks.Attack`.
            x: (B, ...).
            labels: int32, (B,); None for the predicted classes.
            forward: the network's `Forward` at `x`, where there is one.

        Returns:
            (`AttackResult`, rho of its perturbations, (B,)).
        """
        x = logits.cast_inputs(self.model, x)
        network = self.logits_model()
        with name_missing_gradients(network):
            found = attack.search(network, x, labels, forward=forward)
        return found, norms.rho(found.perturbation, x, self.norm)

    def _objective(self, x, y, sample_weight, training):
        """The `Objective` of a batch, or of a replica's part of it."""
        x = distribution.not_empty(x)
        y_pred, forward = self._forward(x, training)
        labels = logits.sparse_labels(y, max(2, y_pred.shape[-1]))
        with tf.control_dependencies([labels]):  # checked before they are used
            y = tf.identity(y)
        loss = self.task_loss(
            x, y, labels, y_pred, forward, sample_weight, training
        )
        regularizer, rho = self.regularizer(x, labels, forward, sample_weight)
        found = Objective(y_pred, forward, loss, regularizer, rho)
        self._track(found.total, tf.size(labels))
        return found

    def _forward(self, x, training):
        """The outputs, and the attacks' `Forward` if they come to the same.

        They do if they are logits and training changes nothing in the network.
        """
        same = self._same_in_training if training else self._gives_logits
        if not same or (training and not self.attacks_in_training()):
            return self(x, training=training), None
        x = logits.cast_inputs(self.model, x)
        return Forward.of_model(self, x, training)

    def _track(self, total, batch_size):
        """Updates the mean of the objective over the epoch."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(self.unscaled(total), batch_size)

    def _share_of_batch(self, found):
        """What this replica adds to the objective of the whole batch."""
        share = distribution.batch_share(tf.shape(found.y_pred)[0])
        if share is None:
            return found.total
        loss, regularizer = found.loss, found.regularizer
        # A sum over the samples is what it is, whoever has how many of them.
        if getattr(self.loss, "reduction", None) != "sum":
            loss *= tf.cast(share, loss.dtype)
        if regularizer is not None:
            regularizer *= tf.cast(share, regularizer.dtype)
        return found._replace(loss=loss, regularizer=regularizer).total

    def get_metrics_result(self):
        """The logs; rho only where it was measured."""
        results = super().get_metrics_result()
        # In a graph `train_step` does this: there the count is not known.
        if tf.executing_eagerly() and not keras.ops.any(self.rho_tracker.count):
            results.pop(self.rho_tracker.name, None)
        return results

    def unscaled(self, value):
        """A loss as it is: Keras divides it by the number of replicas."""
        return value * self.distribute_strategy.num_replicas_in_sync

    def get_config(self):
        """The constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "model": serialize(self.model),
            "evaluation_attack": serialize(self.evaluation_attack),
            "batch_norm": self.batch_norm,
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config):
        """Builds the model from what `get_config` returned."""
        config.pop("dtype", None)  # the classifier's own
        config = keras.saving.deserialize_keras_object(config)
        if config["batch_norm"] == "scale_trained":  # its name up to 0.1
            config["batch_norm"] = "frozen_statistics"
        return cls(config.pop("model"), **config)


def _together(gradients):
    """The gradients, none of them before all of them are there.

    A weight that the regulariser does not reach has its gradient while the
    attack still runs. It must not be updated by then: TensorFlow's graph
    optimizer lets updates overtake the attack's reads, now and then.

    Args:
        gradients: list of tensors, None where there is none.
    """
    with tf.control_dependencies([g for g in gradients if g is not None]):
        return [None if g is None else tf.identity(g) for g in gradients]
