"""The table of number formats tells differences to bf16, figures against the truth, and speed round by round."""

import numpy as np

from benchmarks.int8 import compared


def test_a_format_is_told_beside_bf16() -> None:
    gold = np.array([0, 1])
    scores = {"int8": np.array([[0.4, 0.6], [0.1, 0.9]]), "bf16": np.array([[0.6, 0.4], [0.1, 0.9]])}
    seconds = {"int8": [1.0, 1.0, 2.0], "bf16": [2.0, 3.0, 3.0]}
    lines = compared(scores, gold, seconds).splitlines()
    int8, bf16 = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert int8 == ["int8", "0.2000", "0.1000", "50.0%", "0.3333", "0.5000", "2.00 (1.50–3.00)"]
    assert bf16 == ["bf16", "0.0000", "0.0000", "0.0%", "1.0000", "1.0000", "1.00 (1.00–1.00)"]
