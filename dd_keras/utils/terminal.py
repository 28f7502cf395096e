"""What progress looks like where it is printed: bars, or lines."""

import sys


def verbosity(verbose: str | int) -> int:
    """What `"auto"` means for Keras' progress bars.

    Args:
        verbose: as for `keras.Model.fit`.

    Returns:
        1, a bar, where stdout is a terminal; 2, a line, where it is a file, a
        pipe or a notebook, which keep every state of a bar; what is not
        `"auto"` stays as it is.
    """
    if verbose != "auto":
        return int(verbose)
    return 1 if sys.stdout is not None and sys.stdout.isatty() else 2
