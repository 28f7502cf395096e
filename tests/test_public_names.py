"""What `dd_keras` shows to the outside."""

import dd_keras


def test_public_names_exist_and_are_sorted():
    assert dd_keras.__all__ == sorted(dd_keras.__all__)
    assert len(set(dd_keras.__all__)) == len(dd_keras.__all__)
    missing = [n for n in dd_keras.__all__ if not hasattr(dd_keras, n)]
    assert missing == []
