"""Attacks: from a classifier and a batch to a perturbation."""

from dd_keras.attacks.attack import Attack, AttackResult, Forward
from dd_keras.attacks.deepfool import DeepFool

__all__ = ["Attack", "AttackResult", "DeepFool", "Forward"]
