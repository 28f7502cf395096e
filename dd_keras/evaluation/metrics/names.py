"""Metrics by name: what `evaluate_robustness(metrics=...)` takes."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dd_keras import attacks
from dd_keras.evaluation.metrics.accuracy import Accuracy, AccuracyUnderAttack
from dd_keras.evaluation.metrics.adaptive import AdaptiveChecks
from dd_keras.evaluation.metrics.base import Metric
from dd_keras.evaluation.metrics.best_distance import BestDistance
from dd_keras.evaluation.metrics.distance import Distance
from dd_keras.evaluation.metrics.fgsm import EpsSweep, SmallestEps
from dd_keras.evaluation.metrics.perceptual import PASS
from dd_keras.utils import validation

_SWEEP = np.arange(1, 21) / 50  # eps of "fgsm", in widths of the valid range
_BALL_EPS = 0.1  # eps of "pgd", "autoattack" and "adaptive", likewise
_NEED_BOUNDS = ("fgsm", "paper_fgsm", "pgd", "autoattack", "adaptive", "pass")


def get(
    metric: str | attacks.Attack | Metric, bounds: tuple | None = None
) -> Metric:
    """A metric from its name or its attack.

    Args:
        metric: a `Metric`, which is returned unchanged; an attack, which
            becomes an `AccuracyUnderAttack` if it has an `eps`, else a
            `Distance`; or a name:

            - "accuracy";
            - "rho2", "l2": `Distance(DeepFool())`, and so for any norm, as
              "rho1", "rho1.5" or "rhoinf";
            - "fgsm_rho" (the paper's rho_inf), "fgsm_eps", "eps_ref":
              `SmallestEps()`;
            - "fgsm": `EpsSweep` at 20 eps up to 0.4 of the valid range;
            - "paper_fgsm", and "paper_fgsm_rho", "paper_fgsm_eps" or
              "paper_eps_ref": the same with `float32_gradient=True`, which
              agrees with the paper's numbers;
            - "pgd": `AccuracyUnderAttack` PGD in l_inf with 40 steps, at eps a
              tenth of the valid range;
            - "autoattack": `AccuracyUnderAttack` by `AutoAttack` in l_inf, at
              eps a tenth of the valid range;
            - "adaptive": `AdaptiveChecks` at the same eps;
            - "cw": `Distance` by `CarliniWagnerL2`, as `cw_rho2`, `cw_l2`;
            - "rho2_best", "l2_best": `BestDistance.standard`, the shortest of
              DeepFool, DDN and FAB, and so for other norms, without DDN;
            - "pass": `PASS` of DeepFool's images.
        bounds: (low, high), the valid range of the inputs. "fgsm", "pgd",
            "autoattack", "adaptive" and "pass" need it. PGD, AutoAttack, C&W
            and the attacks of "rho2_best" keep to it; as in the paper, the
            DeepFool of "rho2" and FGSM do not.

    Returns:
        A `Metric`.

    Raises:
        ValueError: if the name is not known, or bounds are missing.

    Example:
        >>> from dd_keras.evaluation import metrics
        >>> metrics.get("rhoinf").attack.norm
        inf
        >>> metrics.get(dd_keras.attacks.PGD(eps=0.1))
        AccuracyUnderAttack(name='pgd')
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, attacks.Attack):
        sized = getattr(metric, "eps", None) is not None
        return AccuracyUnderAttack(metric) if sized else Distance(metric)
    bounds = validation.validate_bounds(bounds)
    if metric in _NEED_BOUNDS and bounds is None:
        raise ValueError(
            f"bounds: the metric {metric!r} needs the valid range of the "
            "inputs, (low, high); received None."
        )
    width: Any = (
        None if bounds is None else float(np.max(np.subtract(*bounds[::-1])))
    )
    known: dict[str, Callable[[], Metric]] = {
        "accuracy": Accuracy,
        **dict.fromkeys(("fgsm_rho", "fgsm_eps", "eps_ref"), SmallestEps),
        "fgsm": lambda: EpsSweep(width * _SWEEP),
        **dict.fromkeys(
            ("paper_fgsm_rho", "paper_fgsm_eps", "paper_eps_ref"),
            lambda: SmallestEps(attacks.MinimalFGSM(float32_gradient=True)),
        ),
        "paper_fgsm": lambda: EpsSweep(width * _SWEEP, float32_gradient=True),
        "pgd": lambda: AccuracyUnderAttack(
            attacks.PGD(_BALL_EPS * width, bounds=bounds)
        ),
        "autoattack": lambda: AccuracyUnderAttack(
            attacks.AutoAttack(_BALL_EPS * width, bounds=bounds)
        ),
        "adaptive": lambda: AdaptiveChecks(_BALL_EPS * width, bounds=bounds),
        "cw": lambda: Distance(attacks.CarliniWagnerL2(bounds=bounds), "cw_"),
        "pass": lambda: PASS(bounds=bounds),
    }
    if isinstance(metric, str) and metric in known:
        return known[metric]()
    if metric == "rho_inf":
        raise ValueError(
            "metrics: 'rho_inf' could be two things; expected 'fgsm_rho', the "
            "paper's rho_inf: the smallest eps of FGSM over ||x||_inf (its "
            "length is 'fgsm_eps'), or 'rhoinf', DeepFool in l_inf."
        )
    norm = re.fullmatch(r"(?:rho|l)(inf|\d+(?:\.\d+)?)(_best)?", str(metric))
    if norm and float(norm[1]) >= 1:
        if norm[2]:
            return BestDistance.standard(float(norm[1]), bounds)
        return Distance(attacks.DeepFool(float(norm[1])))
    raise ValueError(
        "metrics: expected names of "
        f"{sorted({*known, 'rho<p>', 'l<p>', 'rho<p>_best', 'l<p>_best'})} "
        "(rho<p> for a norm p, as rho2 or rhoinf), attacks or Metric objects; "
        f"received {metric!r}."
    )
