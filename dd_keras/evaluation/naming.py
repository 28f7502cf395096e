"""Names for metrics, each once in one report."""

import hashlib
from collections.abc import Sequence

from dd_keras import attacks
from dd_keras.evaluation import metrics as metrics_module
from dd_keras.evaluation.metrics import AccuracyUnderAttack, Distance, Metric


def with_unique_names(
    metrics: Sequence[str | attacks.Attack | Metric],
    bounds: tuple | None = None,
) -> list[Metric]:
    """Metrics from what was asked for, each name once.

    Attacks that differ but would have one name are named after the settings
    in which they differ, as few as it takes: two `PGD` become
    `pgd_linf@12.75` and `pgd_linf@25.5` (norm and eps are always told), with
    equal eps `pgd_linf@12.75_steps=20` and `pgd_linf@12.75_steps=40`; two
    `DeepFool` in l_2 become `deepfool_candidates=3_rho2` and
    `deepfool_candidates=5_rho2`. An attack that shares its name with none
    keeps it, and so do names and metrics: whoever gave them chose what they
    are called.

    Args:
        metrics: sequence of what `metrics.get` takes.
        bounds: as in `metrics.get`.

    Returns:
        list of `metrics.Metric`, without those that are there twice.

    Raises:
        ValueError: as `metrics.get`, or if two metrics that differ were given
            the same name.
    """
    asked, found = [], []
    for given in metrics:
        metric = metrics_module.get(given, bounds)
        if metric not in found:
            asked.append(isinstance(given, attacks.Attack))
            found.append(metric)
    names = [m.name for m in found]
    for name in {n for n in names if names.count(n) > 1}:
        alike = [m for m in found if m.name == name]
        for i, metric in enumerate(found):
            if metric.name == name and asked[i]:
                found[i] = _named_by_settings(metric, alike)
    for i, metric in enumerate(found):
        if metric.name in {m.name for m in found[:i]}:
            raise ValueError(
                "metrics: expected one of each name; received two that "
                f"differ and are both named {metric.name!r}. Give one another "
                "name= (of a Distance: prefix=)."
            )
    return found


def _named_by_settings(metric, alike):
    """The metric, named after how its attack differs from others."""
    attack = metric.attack
    config = attack.get_config()
    under = isinstance(metric, AccuracyUnderAttack)
    told = [key for key in ("norm", "eps") if under or key == "norm"]
    others = [
        m.attack.get_config()
        for m in alike
        if type(m.attack) is type(attack)
        and all(getattr(m.attack, k) == getattr(attack, k) for k in told)
    ]
    differing = ""
    for key, value in config.items():
        same = [other for other in others if other[key] == value]
        if len(same) < len(others):  # this setting tells some apart
            differing += f"_{key}={_setting(value)}"
        others = same
    kind = type(attack).__name__.lower()
    if under:
        size = f"_l{attack.norm:g}@{attack.eps:g}"
        return AccuracyUnderAttack(attack, f"{kind}{size}{differing}")
    return Distance(attack, f"{kind}{differing}_")


def _setting(value):
    """A setting for a name; of arrays a few digits that stand for them."""
    if isinstance(value, tuple):
        text = " to ".join(map(_setting, value))
        return text.replace(" ", "_")
    if isinstance(value, list):
        return hashlib.sha256(repr(value).encode()).hexdigest()[:6]
    return f"{value:g}" if isinstance(value, float) else str(value)
