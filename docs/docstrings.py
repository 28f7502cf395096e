"""Docstrings, plain text with Google's sections, to what Sphinx reads."""

import inspect
import re

_SECTION = re.compile(
    r"(Args|Arguments|Attributes|Example|Raises|Returns|Yields)( and .*)?:"
)
_CODE = re.compile(r"(`+[^`]+`+)")


def to_rst(app, what, name, obj, options, lines):
    """Rewrites the lines of a docstring in place, before Napoleon.

    Indented blocks, which are formulas, and examples, which are doctests,
    become literal blocks.
    Elsewhere bars, asterisks and underscores are those of mathematics.
    """
    del app, what, name, obj, options
    lines[:] = _literal(lines)


def signature(app, what, name, obj, options, arguments, returns):
    """The arguments of a class as its own `__init__` has them.

    Keras' base classes hide them behind a `__new__` of their own.
    """
    del app, name, options, returns
    own = vars(obj).get("__init__") if what == "class" else None
    if own is None:
        return None
    found = inspect.signature(own)
    shown = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in list(found.parameters.values())[1:]
    ]
    return str(inspect.Signature(shown)), None


def _literal(lines):
    found, literal, section = [], None, None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None:
            if not line.strip() or indent >= literal:
                found.append(line)
                continue
            literal = None
        match = indent == 0 and _SECTION.fullmatch(line.strip())
        if match:
            section = match[1]
            if section == "Example":
                found += ["Example:", "", ".. code-block:: pycon", ""]
                literal = 1
                continue
            if match[2]:  # "Args and raises: as ...", a sentence
                section = None
        after_blank = number > 0 and not lines[number - 1].strip()
        if section is None and line.strip() and after_blank and indent:
            previous = next(
                (text for text in reversed(lines[:number]) if text.strip()), ""
            )
            if indent > len(previous) - len(previous.lstrip()):
                found += ["::", "", line]
                literal = indent
                continue
        found.append(_escaped(line))
    return found


def _escaped(line):
    """A line whose special characters are what they look like."""
    if re.match(r"\s*\*", line) and not re.match(r"\s*\* ", line):
        return line  # *args and **kwargs, which Napoleon knows
    parts = _CODE.split(line)
    return "".join(
        part
        if part.startswith("`")
        else re.sub(r"([|*])|(_)(?=\W|$)", r"\\\1\2", part)
        for part in parts
    )
