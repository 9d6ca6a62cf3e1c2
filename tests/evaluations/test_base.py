"""A row's name is that of its line in results.csv."""

import pytest

from hatemtl.evaluations.base import Row


@pytest.mark.parametrize(
    ("row", "metric"),
    [
        (Row("test", "target", "f1", "african", 0.5), "test_target_f1_african"),
        (Row("test", "target", "tp", "women", 7.0), "test_target_tp_women"),
        (Row("val", "rationale", "tp", "rationale", 7.0), "val_rationale_tp_rationale"),
        (Row("test", "my_task", "macro_f1", None, 0.5), "test_my_task_macro_f1"),
        (Row("test", "target", "f1", "", 0.5), "test_target_f1_"),  # a label may have any name
    ],
)
def test_a_row_is_named_by_stage_task_name_and_label(row: Row, metric: str) -> None:
    assert row.metric == metric
