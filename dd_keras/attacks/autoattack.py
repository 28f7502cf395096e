"""AutoAttack (Croce and Hein, ICML 2020): one attack after the other.

The ensemble of Section 5 of "Reliable evaluation of adversarial robustness
with an ensemble of diverse parameter-free attacks".
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import base, decisions, lp_ball, rows
from dd_keras.attacks.apgd import APGD
from dd_keras.attacks.fab import FAB
from dd_keras.attacks.forward import CleanInputs, Forward
from dd_keras.attacks.square import Square
from dd_keras.classifier import logits
from dd_keras.utils import norms, validation

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
}
# Restarts of the untargeted attacks along the gradient.
_RESTARTS = {"standard": 1, "plus": 5}
# If Square, which needs no gradient, finds what attacks along the gradient do
# not, the gradients are of no use. From this share of the samples on it is a
# sign, as in the authors' code.
_SIGN_OF_MASKING = 0.002
# How far a result may be beyond eps, from rounding.
_SLACK = 1e-5


class AutoAttackResult(NamedTuple):
    """The result of `AutoAttack`: an `AttackResult` with `found_by`.

    Attributes:
        perturbation: floating, (B, ...): zero where no attack succeeded.
        predictions: int32, (B,): the classes predicted for the clean inputs.
        fooled: bool, (B,): whether an attack succeeded, or the sample was
            misclassified without one.
        iterations: int32, (B,): steps and queries, summed over all attacks.
        found_by: int32, (B,): the index in `attack_names` of the attack that
            succeeded; -1 for none, or if the sample was misclassified without
            one.

    Example:
        >>> attack = dd_keras.attacks.AutoAttack(
        ...     eps=0.1, version=["apgd-ce", "apgd-t"], bounds=(0, 1)
        ... )
        >>> found = attack.run(classifier, x_test[:20], y_test[:20])
        >>> by_first = np.mean(found.found_by == 0)
        >>> print(attack.attack_names[0], by_first <= np.mean(found.fooled))
        apgd-ce True
    """

    perturbation: tf.Tensor
    predictions: tf.Tensor
    fooled: tf.Tensor
    iterations: tf.Tensor
    found_by: tf.Tensor


@keras.saving.register_keras_serializable("dd_keras")
class AutoAttack(base.Attack):
    """An ensemble of attacks in a ball, each on the still robust samples.

    `version` says which:

    - `"standard"`: APGD on the cross-entropy, targeted APGD on the DLR loss
      and targeted FAB, both with up to 9 targets, and Square with 5,000
      queries.
    - `"plus"`: APGD on the cross-entropy, APGD on DLR and untargeted FAB, with
      5 restarts each, then Square, targeted APGD and targeted FAB.
    - a list of attacks: names (`"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`,
      `"fab"`, `"fab-t"`, `"square"`), or attacks with a `norm` and bounds of
      their own, whose perturbations count up to a length of `eps`.

    A sample is robust if no attack fools the network. DLR needs three classes,
    its targeted form four. So with three classes `"apgd-t"` becomes
    `"apgd-dlr"`, and with two both are omitted; there the cross-entropy
    increases with the difference of the logits anyway.

    Outside a `tf.function`, `run` warns of signs that a result is unreliable:
    logits that differ from one call to the next, gradients that are zero, and
    samples that Square fools but no attack along the gradient does.

    Args:
        eps: radius of the l_p ball, above 0, in units of the inputs.
        norm: the order p, inf or 2.
        version: `"standard"`, `"plus"` or a list of attacks.
        bounds: as in `FGSM`. Give the range of the pixels, such as (0, 1):
            without it, adversarial inputs need not be valid images.
        seed: seed of all random numbers, an integer of at least 0.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> attack = dd_keras.attacks.AutoAttack(eps=0.1, bounds=(0, 1))
        >>> attack.attack_names
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']
        >>> quick = dd_keras.attacks.AutoAttack(
        ...     eps=0.1, version=["apgd-ce", "fab-t"], bounds=(0, 1)
        ... )
        >>> found = quick.run(classifier, x_test, y_test)
        >>> print(1 - np.mean(found.fooled) < 0.9)  # robust accuracy
        True
    """

    def __init__(
        self,
        eps: float,
        norm: float = math.inf,
        version: str | Sequence = "standard",
        bounds: tuple | None = None,
        seed: int = 0,
    ):
        self.eps = validation.validate_number("eps", eps, above=0)
        self.norm = lp_ball.validate_order(norm)
        self.bounds = validation.validate_bounds(bounds)
        self.seed = validation.validate_integer("seed", seed, at_least=0)
        self.version = version if isinstance(version, str) else list(version)
        self._attacks = self._attacks_of(self.version)

    @property
    def attack_names(self) -> list[str]:
        """The names that `found_by` indexes: a list of str."""
        return [name for name, _ in self._attacks]

    def run(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        verbose: int = 0,
    ) -> AutoAttackResult:
        """As `Attack.run`, with an `AutoAttackResult` and warnings."""
        found = super().run(model, x, y, batch_size=batch_size, verbose=verbose)
        if tf.executing_eagerly():
            x = logits.cast_inputs(model, x)[: batch_size or len(x)]
            for warning in self.reliability_warnings(model, x, found):
                warnings.warn(f"AutoAttack: {warning}", stacklevel=2)
        return found

    def search(  # type: ignore[override]  # more fields than `AttackResult`
        self,
        network: keras.Model,
        x: tf.Tensor,
        y: Any = None,
        forward: Forward | None = None,
    ) -> AutoAttackResult:
        """As `run`, in the current graph, for a network that gives logits."""
        clean = CleanInputs.of(network, x, y, forward)
        fooled = decisions.is_fooled(clean.logits, clean.y)
        zero = tf.zeros_like(x)
        none = tf.zeros_like(clean.y)
        found = AutoAttackResult(
            zero, clean.predictions, fooled, none, none - 1
        )
        for number, attack in self._used_on(clean.logits.shape[-1]):
            found = tf.cond(
                tf.reduce_all(found.fooled),
                lambda found=found: found,
                lambda found=found, number=number, attack=attack: (
                    self._attack_robust(
                        number, attack, network, x, clean.y, found
                    )
                ),
            )
        return found

    def _attack_robust(self, number, attack, network, x, y, found):
        """The result after one attack on what is still robust."""
        robust = rows.active_rows(~found.fooled)
        before = rows.gather_rows(found, robust)
        result = attack.search(network, *rows.gather_rows((x, y), robust))
        length = norms.sample_norm(result.perturbation, self.norm)
        fooled = result.fooled & (length <= self.eps * (1 + _SLACK))
        new = fooled & ~before.fooled  # under XLA all are attacked
        after = AutoAttackResult(
            rows.choose_rows(new, result.perturbation, before.perturbation),
            before.predictions,
            before.fooled | fooled,
            before.iterations + tf.where(before.fooled, 0, result.iterations),
            tf.where(new, number, before.found_by),
        )
        return rows.scatter_rows(found, robust, after)

    def reliability_warnings(
        self, model: keras.Model, x: tf.Tensor, found: AutoAttackResult
    ) -> list[str]:
        """Signs that a result is unreliable, one sentence each.

        Args:
            model: the classifier.
            x: (B, ...), some of the clean inputs.
            found: the result of `run`.
        """
        warned = []
        network = logits.logits_model(model)
        at = Forward.of(lambda x: network(x, training=False), x)
        again = network(x, training=False)
        if not np.allclose(at.logits, again, rtol=1e-4, atol=1e-4):
            warned.append(
                "the logits differ from one call to the next; attacks on "
                "random networks need gradients averaged over many calls."
            )
        y = decisions.predicted_class(at.logits)
        gradient = at.gradient(decisions.margin_logit_gradient(at.logits, y))
        zero = int(np.sum(norms.sample_norm(gradient) <= norms.ZERO_NORM))
        if zero:
            warned.append(
                f"the gradient is zero at {zero} of {len(y)} inputs; there "
                "attacks along the gradient stand still."
            )
        return warned + self.masking_warnings(found.found_by)

    def masking_warnings(self, found_by: Any) -> list[str]:
        """Whether Square fooled samples that gradient attacks did not.

        Args:
            found_by: int, (N,), as in `AutoAttackResult`.

        Returns:
            list of at most one sentence.
        """
        by_square = [isinstance(attack, Square) for _, attack in self._attacks]
        share = np.mean(np.take([*by_square, False], found_by))
        if share <= _SIGN_OF_MASKING or all(by_square):
            return []
        return [
            f"Square, which uses no gradient, fooled {share:.1%} of the "
            "samples that attacks along the gradient did not; the gradients "
            "may be masked. Run Square with more queries, or an attack "
            "adapted to the defence."
        ]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, attacks in a list serialised."""
        config = super().get_config()
        if not isinstance(self.version, str):
            config["version"] = [
                item
                if isinstance(item, str)
                else keras.saving.serialize_keras_object(item)
                for item in self.version
            ]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AutoAttack":
        """The attack that `get_config` describes."""
        version = config["version"]
        if not isinstance(version, str):
            version = [
                item
                if isinstance(item, str)
                else keras.saving.deserialize_keras_object(item)
                for item in version
            ]
        return cls(**{**config, "version": version})

    def _attacks_of(self, version):
        """The attacks of a version, as pairs (name, attack)."""
        if isinstance(version, str) and version not in VERSIONS:
            raise ValueError(
                f"version: expected one of {', '.join(VERSIONS)}, or a list "
                f"of attacks; received {version!r}."
            )
        named = self._named(version)
        chosen = []
        for item in VERSIONS[version] if isinstance(version, str) else version:
            if isinstance(item, base.Attack):
                chosen.append((type(item).__name__, item))
            elif item in named:
                chosen.append((item, named[item]))
            else:
                raise ValueError(
                    f"version: expected attacks, or names among "
                    f"{', '.join(named)}; received {item!r}."
                )
        if not chosen:
            raise ValueError(
                "version: expected at least one attack; received none."
            )
        return chosen

    def _named(self, version):
        """All attacks that have a name."""
        restarts = _RESTARTS["plus" if version == "plus" else "standard"]
        ends = {"bounds": self.bounds, "seed": self.seed}
        ball = {"eps": self.eps, "norm": self.norm, **ends}
        return {
            "apgd-ce": APGD(**ball, restarts=restarts),
            "apgd-dlr": APGD(**ball, loss="dlr", restarts=restarts),
            "apgd-t": APGD(**ball, loss="targeted_dlr"),
            "fab": FAB(**ball, num_targets=None, restarts=restarts),
            "fab-t": FAB(**ball),
            "square": Square(**ball),
        }

    def _used_on(self, num_classes):
        """The attacks on a model of so many classes: (number, attack)."""
        least = {"apgd-dlr": 3, "apgd-t": 4}
        for number, (name, attack) in enumerate(self._attacks):
            if num_classes >= least.get(name, 2):
                yield number, attack
            elif num_classes == 3:
                yield number, self._named(self.version)["apgd-dlr"]
