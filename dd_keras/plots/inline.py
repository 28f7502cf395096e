"""Figures as SVG text, to be put into a page of HTML."""

import html
import os
import re
import tempfile
import warnings
from collections.abc import Callable

from matplotlib import rc_context

# What a page must not have in its middle, or has once: XML's prolog, the
# metadata (who drew it), comments (the texts of the figure, once more).
_DROPPED = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->",
    re.DOTALL,
)
# Texts are escaped: what is in angle brackets is a tag, and no one's name.
_TAG = re.compile(r"<[^>]*>")
_FONT = re.compile(r"font: ([^;\"']*?)'[^;\"]*")
_IDS = re.compile(r'(\bid="|href="#|url\(#)')
_SIZE = re.compile(r'width="([\d.]+)pt" height="([\d.]+)pt"')
_SPACE = re.compile(r"\n\s*")


def inline_svg(draw: Callable[[str], None], name: str, label: str) -> str:
    """What a function of this package draws, as SVG to stand in a page.

    Texts stay texts, in the page's own font; black becomes the page's text
    colour (`currentColor`), and there is no background, so that the figure
    goes with a light page and a dark one. The same figure gives the same text.

    Args:
        draw: takes a path, and draws there.
        name: of the figure, letters and digits, each once in a page: what its
            ids begin with.
        label: what a screen reader says of it.

    Returns:
        The element `<svg>`, without XML's prolog, comments and metadata.

    Raises:
        ValueError: if `name` is not of letters and digits.

    Example:
        >>> curves = {"reference": {"eps": [1, 2], "success_rate": [0.2, 0.5]}}
        >>> text = dd_keras.plots.inline_svg(
        ...     lambda path: dd_keras.plots.success_rate_curves(curves, path),
        ...     "fgsm",
        ...     "Success rate of FGSM against eps",
        ... )
        >>> text[:4], text[-6:]
        ('<svg', '</svg>')
    """
    if not (name.isascii() and name.isalnum()):
        raise ValueError(
            f"name: expected letters and digits; received {name!r}."
        )
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "savefig.transparent": True,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        rc_context(settings),
        warnings.catch_warnings(),
    ):
        # The reader's fonts may have the letters that matplotlib's lack.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        path = os.path.join(folder, f"{name}.svg")
        draw(path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
    text = _SPACE.sub("\n", _DROPPED.sub("", text)).strip()
    text = _TAG.sub(lambda tag: _in_page(tag[0], name), text)
    return _SIZE.sub(
        r'width="\1pt" height="\2pt" fill="currentColor" role="img" '
        f'aria-label="{_escaped(label)}"',
        text,
        count=1,
    )


def _in_page(tag, name):
    """A tag with the page's font and colour, and ids that begin with a name."""
    tag = _FONT.sub(r"font: \1var(--font, sans-serif)", tag)
    tag = _IDS.sub(rf"\g<1>{name}-", tag)
    return tag.replace("#000000", "currentColor")


def _escaped(label):
    """A text for an attribute, and for the right side of a substitution."""
    return html.escape(label).replace("\\", r"\\")
