"""Heat maps: a cell's colour is its value."""

import io
from xml.etree import ElementTree

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
from heatmap import NUMBERED, Panel, drawn


def pixels(content: bytes, colour: object) -> int:
    """How many pixels of a PNG have about this colour."""
    image = matplotlib.image.imread(io.BytesIO(content), format="png")[..., :3]
    return int((np.abs(image - np.asarray(colour)[:3]) < 0.01).all(axis=-1).sum())


def test_every_value_is_a_cell_of_its_colour() -> None:
    content = drawn([Panel("one", ["a", "b"], {"x": [1.0, -1.0], "y": [1.0, None]}), Panel("two", ["a"], {"z": [0.5]})])
    shades = plt.get_cmap("RdBu_r")
    red, blue, half = (pixels(content, shades(share)) for share in (1.0, 0.0, 0.75))
    assert red > 1.5 * blue > 0
    assert half > 100
    assert pixels(content, (0xE1 / 255,) * 3) > 100


def test_numbers_are_written_where_there_is_room() -> None:
    def texts(columns: int) -> set[str]:
        panel = Panel("title", [str(i) for i in range(columns)], {"row": [0.25] * columns})
        content = drawn([panel], format="svg", colours="Blues", low=0.0, high=1.0, digits=3)
        return {comment for comment in ("0.250", "title", "row") if f"<!-- {comment} -->" in content.decode()}

    assert texts(3) == {"0.250", "title", "row"}
    assert texts(NUMBERED + 1) == {"title", "row"}
    content = drawn([Panel("", ["a"], {"x": [0.0]})], format="svg")
    assert ElementTree.fromstring(content).tag.endswith("svg") and b"<image" not in content  # a report's policy forbids it
