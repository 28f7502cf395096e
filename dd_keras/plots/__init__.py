"""The paper's figures, drawn with matplotlib from given numbers.

Each figure is written to `path`, in the format of its extension: .png, .pdf or
.svg; `inline_svg` gives one as text for a page. Import this package explicitly,
by `from dd_keras import plots`: it needs matplotlib and adjustText, which the
extra `apps` installs. In the library only the HTML reports import it, when one
is written.
"""

try:
    from dd_keras.plots.curves import (
        convergence_curves,
        robust_accuracy_curves,
        success_rate_curves,
        trade_off,
    )
    from dd_keras.plots.frontier import frontier
    from dd_keras.plots.histogram import rho_histogram
    from dd_keras.plots.images import adversarial_images, fooling_images
    from dd_keras.plots.inline import inline_svg
except ModuleNotFoundError as error:
    raise ImportError(
        "dd_keras.plots draws with matplotlib and adjustText: pip install "
        f"'dd_keras[apps]' ({error})"
    ) from error

__all__ = [
    "adversarial_images",
    "convergence_curves",
    "fooling_images",
    "frontier",
    "inline_svg",
    "rho_histogram",
    "robust_accuracy_curves",
    "success_rate_curves",
    "trade_off",
]
