"""Formulas as MathML, which browsers draw themselves: no script, no network."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert


def _inline(self, node):
    self.body.append(convert(node.astext()))
    raise SkipNode


def _block(self, node):
    self.body.append(
        f'<div class="math">{convert(node.astext(), display="block")}</div>'
    )
    raise SkipNode


def setup(app):
    """Registers the renderer."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_inline, None),
        block_renderers=(_block, None),
    )
    return {"parallel_read_safe": True}
