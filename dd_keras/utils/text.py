"""Text of others, made harmless where it is shown."""

import html
import re

# What has a meaning in the middle of a line of Markdown; an underscore has
# none within a word. `tables.render` escapes what has one in a table.
_MARKUP = re.compile(r"[\\`*\[\]]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: object) -> str:
    r"""Text with what cannot be printed as Python writes it.

    Line breaks, the escape codes of terminals and bytes that are not UTF-8
    (as `os.fsdecode` has them) become `\n`, `\x1b`, `\udc80`.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def markdown(text: object) -> str:
    """Text that Markdown, and HTML made of it, shows as it is, in one line.

    To be put behind other text of the line, where no list or title begins.
    """
    marked = _MARKUP.sub(lambda found: f"\\{found[0]}", printable(text))
    return html.escape(marked, quote=False)
