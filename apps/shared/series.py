"""Series of trainings: a defence with one of its settings swept."""

import dataclasses
import re
from typing import NamedTuple

from absl import flags

from shared import cli
from shared.training_flags import settings

from dd_keras.defenses import METHODS, Settings

FLAGS = flags.FLAGS


class Point(NamedTuple):
    """One training of a series.

    Attributes:
        series: the name of its series.
        label: what tells it from others of its series, as "c=5"; may be "".
        defense: the defence, see `dd_keras.defenses.METHODS`.
        settings: its `Settings`.
    """

    series: str
    label: str
    defense: str
    settings: Settings

    @property
    def name(self) -> str:
        """Of its files."""
        words = "_".join(word for word in (self.series, self.label) if word)
        return re.sub(r"[^\w.=+-]+", "_", words)


def parse(texts: list[str]) -> dict[str, list[Point]]:
    """The series of a flag, `NAME=DEFENCE SETTING=VALUE,VALUE SETTING=VALUE`.

    Args:
        texts: of the flag.

    Returns:
        dict of names to their points, in the order of the values.

    Raises:
        SystemExit: with a message, if a text is not of this form.
    """
    found: dict[str, list[Point]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        defense, *words = rest.split() or [""]
        if not equals or not name or defense not in METHODS:
            cli.fail(
                "--series: expected NAME=DEFENCE SETTING=VALUE,..., the "
                f"defence of {', '.join(METHODS)}; received {text!r}."
            )
        if name in found:
            cli.fail(f"--series: expected each name once; received {name!r}.")
        found[name] = _points(name, defense, words)
    names = [point.name for points in found.values() for point in points]
    if len(set(names)) < len(names):
        cli.fail(f"--series: expected points of different names; {names}.")
    return found


def _points(series, defense, words):
    """The points of a series, by the words behind its defence."""
    of_method = (*METHODS[defense].settings, "batch_norm")
    swept, fixed = None, {}
    for word in words:
        key, _, values = word.partition("=")
        if key not in of_method:
            cli.fail(
                f"--series: expected settings of {defense}, of "
                f"{', '.join(of_method)}; received {word!r}."
            )
        parsed = [_parsed(key, value) for value in values.split(",")]
        if len(parsed) == 1:
            fixed[key] = parsed[0]
        elif swept is not None:
            cli.fail(
                "--series: expected one setting with several values; received "
                f"{swept[0]} and {key}."
            )
        else:
            swept = key, parsed
    chosen = dataclasses.replace(settings(), **fixed)
    if swept is None:
        return [Point(series, "", defense, chosen)]
    key, values = swept
    return [
        Point(
            series,
            f"{key}={_text(value)}",
            defense,
            dataclasses.replace(chosen, **{key: value}),
        )
        for value in values
    ]


def _parsed(key, text):
    """The value of a setting, as its flag would have it."""
    try:
        return FLAGS[key].parser.parse(text)
    except (TypeError, ValueError) as error:
        return cli.fail(f"--series: {key}={text}: {error}")


def _text(value):
    return f"{value:g}" if isinstance(value, float) else str(value)
