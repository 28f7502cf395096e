"""Text of others, made harmless where it is shown."""

import re

# What Markdown gives a meaning, HTML's among it.
_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|~<>&-]")
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def printable(text: object) -> str:
    r"""Text with what cannot be printed as Python writes it.

    Line breaks, the escape codes of terminals and bytes that are not UTF-8
    (as `os.fsdecode` has them) become `\n`, `\x1b`, `\udc80`.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def markdown(text: object) -> str:
    """Text that a page in Markdown shows as it is, in one line."""
    return _MARKUP.sub(
        lambda found: _HTML.get(found[0], f"\\{found[0]}"), printable(text)
    )
