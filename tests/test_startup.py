"""The search for garbage: off while a run is built, on while it works, and as before when it ends."""

import gc

import pytest

from hatemtl.startup import started, starting


def test_garbage_is_searched_for_again_once_the_run_is_built_and_after_it() -> None:
    with starting():
        assert not gc.isenabled()
        started()
        assert gc.isenabled()
        assert gc.get_freeze_count()
    assert gc.isenabled()
    assert not gc.get_freeze_count()


def test_a_run_that_fails_while_it_is_built_leaves_no_trace() -> None:
    with pytest.raises(ValueError), starting():
        raise ValueError
    assert gc.isenabled()


def test_without_starting_nothing_is_frozen() -> None:
    started()
    assert not gc.get_freeze_count()
