"""What all defences share: any classifier, Keras' `fit`, rho in the logs."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from dd_keras import distribution
from dd_keras.attacks import Attack, AttackResult, DeepFool, Forward
from dd_keras.attacks.derivatives import name_missing_gradients
from dd_keras.classifier import logits, losses
from dd_keras.classifier.inputs import input_spec, pack, prepare, unpack
from dd_keras.classifier.labels import sparse_labels
from dd_keras.defenses import batch_norm as batch_normalization
from dd_keras.defenses import checks
from dd_keras.defenses.objective import Objective, all_computed
from dd_keras.defenses.single_trace import SingleTraceModel
from dd_keras.defenses.wrapper import ClassifierWrapper
from dd_keras.utils import norms, terminal, validation


@keras.saving.register_keras_serializable("dd_keras")
class DefenseModel(SingleTraceModel, ClassifierWrapper):
    """Any Keras classifier, trained by `fit`, with its robustness in the logs.

    This base class minimises the compiled loss, as `keras.Model` does: plain
    fine-tuning, the baseline of every defence. A defence overrides
    `task_loss`, `regularizer`, or both; training minimises their sum.

    `call` and `predict` are those of the classifier. `fit` takes integer or
    one-hot labels (0 or 1 for a single output) and sample or class weights.
    The logs of `evaluate`, and of validation, hold `rho2` (`rho1`, `rhoinf`,
    ... for other norms): the mean over all samples of ||perturbation||_p /
    ||x||_p. `evaluation_attack` finds the perturbations, starting from the
    predicted classes, as in the paper's tables.

    Args:
        model: a built Keras classifier, see `logits_model`.
        evaluation_attack: the attack behind `val_rho2`; by default `DeepFool`
            with up to 50 iterations.
        batch_norm: how batch normalisation is trained: `"trained"` as Keras
            does; `"frozen_statistics"` normalises by the moving statistics,
            which stay fixed, and trains scale and offset; `"frozen"` trains
            neither.
        activation: the final activation of `model`, see `logits_model`.
        needs_second_derivatives: for subclasses: whether training needs
            second derivatives. Models with layers that lack them are refused.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is outside of its range, or `model` is not
            a built classifier with one input and one output.

    Example:
        >>> model = dd_keras.DefenseModel(classifier)  # plain fine-tuning
        >>> model.compile("sgd", "sparse_categorical_crossentropy")
        >>> history = model.fit(
        ...     x_train, y_train, validation_data=(x_test, y_test), verbose=0
        ... )
        >>> sorted(history.history)
        ['loss', 'val_loss', 'val_rho2']
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        evaluation_attack: Attack | None = None,
        batch_norm: str = batch_normalization.TRAINED,
        activation: str | None = None,
        needs_second_derivatives: bool = False,
        **kwargs: Any,
    ):
        activation = logits.output_activation(model, activation)
        validation.validate_choice(
            "batch_norm", batch_norm, batch_normalization.MODES
        )
        network = logits.logits_model(model, activation)
        checks.check_model(
            model, network, needs_second_derivatives, type(self).__name__
        )
        super().__init__(model, network, activation, **kwargs)
        self.evaluation_attack = evaluation_attack or DeepFool()
        self.norm = getattr(self.evaluation_attack, "norm", 2.0)
        self.batch_norm = batch_norm
        self.rho_tracker = keras.metrics.Mean(name=f"rho{self.norm:g}")
        self.built = True

    def call(
        self, inputs: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """The classifier's own outputs."""
        inputs = pack(self.model, unpack(inputs))
        with batch_normalization.frozen_statistics(self.model, self.batch_norm):
            return self.model(inputs, training=training)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The weights that training changes, see `batch_norm`."""
        return batch_normalization.trainable(
            self.model, super().trainable_weights, self.batch_norm
        )

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """As `trainable_weights`."""
        return self.trainable_weights

    def compile(
        self,
        optimizer: str | keras.Optimizer = "rmsprop",
        loss: str | keras.Loss | Callable | None = None,
        *,
        metrics: Sequence | None = None,
        weighted_metrics: Sequence | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, with any classification loss.

        For a cross-entropy or a metric given by name, `from_logits` is set to
        match the model's outputs.

        Raises:
            ValueError: if `loss` is a regression loss, or its `from_logits`
                does not match the model's outputs.
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
        # Integer inputs have no gradient: attacks see them cast, see `logits`.
        self._gives_logits = (
            self.activation == "linear"
            and input_spec(self.model).dtype.is_floating
        )
        self._same_in_training = (
            self._gives_logits
            # Tells most networks apart without two traces, which take seconds.
            and not batch_normalization.differs_in_training(
                self.model, self.batch_norm
            )
            and logits.same_in_training(self)
        )

    def fit(
        self,
        x: object = None,
        y: object = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: object = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`; outside a terminal, one line per epoch.

        Raises:
            ValueError: if inputs are not finite, or labels are not classes of
                the model. Arrays are checked first, data sets batch by batch.
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
                verbose=terminal.verbosity(verbose),
                callbacks=checks.with_guard(
                    callbacks, self.own_callbacks(x, batch_size)
                ),
                validation_split=validation_split,
                validation_data=validation_data,
                **kwargs,
            )

    def own_callbacks(
        self, x: object, batch_size: int | None
    ) -> list[keras.callbacks.Callback]:
        """Further callbacks of `fit`, from its arguments; none by default."""
        del x, batch_size
        return []

    def evaluate(
        self,
        x: object = None,
        y: object = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        **kwargs: Any,
    ) -> float | list[float] | dict[str, float]:
        """As `keras.Model.evaluate`. Raises: see `fit`."""
        checks.check_arrays(self.model, x, y)
        verbose = terminal.verbosity(verbose)
        with checks.named_assertions():
            return super().evaluate(x, y, batch_size, verbose, **kwargs)

    def compile_from_config(self, config: dict) -> None:
        """Compiles a loaded model as the saved one was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

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
        """The loss of the task itself, before regularisation.

        Args:
            x: (B, ...), the inputs.
            y: their labels, as they were passed to `fit`.
            labels: int32, (B,): the labels as class indices.
            y_pred: (B, ...), the outputs at `x`.
            forward: the `Forward` at `x`; None if the attack needs a forward
                pass of its own.
            sample_weight: (B,), or None.
            training: whether this is a training step.

        Returns:
            A scalar.
        """
        del labels, forward
        return self.compute_loss(x, y, y_pred, sample_weight, training)

    def regularizer(
        self,
        x: tf.Tensor,
        labels: tf.Tensor,
        forward: Forward | None,
        sample_weight: tf.Tensor | None,
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """The term that is added to the task's loss.

        Args: see `task_loss`.

        Returns:
            (the term, a scalar, or None; rho of each sample, (B,), or None).
        """
        del x, labels, forward, sample_weight
        return None, None

    def shares_forward_pass(self) -> bool:
        """Whether the training attack can reuse the loss' forward pass."""
        return False

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """One step of gradient descent on the objective; returns the logs."""
        x, y, sample_weight = self._batch(data)
        with tf.GradientTape() as tape:
            found = self._objective(x, y, sample_weight, True)
            total = found.replica_share(self._loss_is_sum())
            scaled_loss = self.optimizer.scale_loss(total)
        with name_missing_gradients(self.logits_model()):
            gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self.optimizer.apply(all_computed(gradients), self.trainable_weights)
        if found.rho is not None:
            self.rho_tracker.update_state(found.rho)
        logs = self.compute_metrics(x, y, found.y_pred, sample_weight)
        if found.rho is None:
            logs.pop(self.rho_tracker.name, None)  # eagerly it is gone
        return logs

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Evaluates the objective, and rho from the predicted classes."""
        x, y, sample_weight = self._batch(data)
        found = self._objective(x, y, sample_weight, False)
        _, rho = self._attack_batch(
            self.evaluation_attack, x, None, found.forward
        )
        self.rho_tracker.update_state(rho)
        return self.compute_metrics(x, y, found.y_pred, sample_weight)

    def predict_step(self, data: object) -> tf.Tensor:
        """The outputs for a batch, preprocessed as by the classifier."""
        x, _, _ = self._batch(data)
        return self(x, training=False)

    def _adversary_of_step(self, attack, training):
        """An attack to train on: with new random numbers at each step."""
        return attack.at_step(self.optimizer.iterations) if training else attack

    def _retrace(self):
        """Has the compiled steps traced again, with the settings of now."""
        self.test_function = None
        if self.train_function is not None:
            self.make_train_function(force=True)

    def _batch(self, data):
        """A batch as (x, y, sample_weight), x being what `call` takes."""
        return prepare(self.model, *keras.utils.unpack_x_y_sample_weight(data))

    def _attack_batch(
        self,
        attack: Attack,
        x: tf.Tensor,
        labels: tf.Tensor | None,
        forward: Forward | None = None,
    ) -> tuple[AttackResult, tf.Tensor]:
        """Attacks a batch, in the graph that is being traced.

        Args: see `Attack.search`; `labels` None: the predicted classes.

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
        labels = sparse_labels(y, max(2, y_pred.shape[-1]))
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
        """The outputs, and the attacks' `Forward` where both are one pass.

        They are if the outputs are logits and the network computes the same
        in training as in inference.
        """
        same = self._same_in_training if training else self._gives_logits
        if not same or (training and not self.shares_forward_pass()):
            return self(x, training=training), None
        x = logits.cast_inputs(self.model, x)
        return Forward.of_model(self, x, training)

    def _track(self, total, batch_size):
        """Updates the mean of the objective over the epoch."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(self.unscaled(total), batch_size)

    def get_metrics_result(self) -> dict[str, tf.Tensor]:
        """The logs, with rho only if it was measured."""
        results = super().get_metrics_result()
        # In a graph `train_step` does this: there the count is not known.
        if tf.executing_eagerly() and not keras.ops.any(self.rho_tracker.count):
            results.pop(self.rho_tracker.name, None)
        return results

    def _loss_is_sum(self):
        return getattr(self.loss, "reduction", None) == "sum"

    def unscaled(self, value: tf.Tensor) -> tf.Tensor:
        """A loss before Keras divided it by the number of replicas."""
        return value * self.distribute_strategy.num_replicas_in_sync

    def get_config(self) -> dict:
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
    def from_config(cls, config: dict) -> Self:
        """Builds the model from what `get_config` returned."""
        config.pop("dtype", None)  # the classifier's own
        config = keras.saving.deserialize_keras_object(config)
        if config["batch_norm"] == "scale_trained":  # its name up to 0.1
            config["batch_norm"] = "frozen_statistics"
        return cls(config.pop("model"), **config)
