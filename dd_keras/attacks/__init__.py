"""Attacks: from a classifier and a batch to a perturbation."""

from dd_keras.attacks.base import (
    Attack,
    AttackResult,
    Forward,
    ascent,
    decide,
    inference_form,
    margin,
    traced,
)
from dd_keras.attacks.carlini_wagner import CarliniWagnerL2
from dd_keras.attacks.deepfool import DeepFool
from dd_keras.attacks.derivatives import missing_named
from dd_keras.attacks.gradient_sign import BIM, FGSM, PGD, MinimalFGSM
from dd_keras.attacks.noise import RandomNoise

__all__ = [
    "BIM",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "CarliniWagnerL2",
    "DeepFool",
    "Forward",
    "MinimalFGSM",
    "RandomNoise",
    "ascent",
    "decide",
    "inference_form",
    "margin",
    "missing_named",
    "traced",
]
