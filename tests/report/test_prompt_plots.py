"""Figures about one prompt, from made-up tables."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from stage1 import names
from stage1.report import prompt_plots

ADAPTER = "full/distill-seed0"
FIRST = pd.DataFrame(
    {" 23": [1.0, 0.2, 0.0], " of": [0.0, 0.5, 0.9]}, index=pd.Index([1.0, 3.0, 8.0], name="ratio")
)
SUMMARY = pd.DataFrame({"ratio": [1.0, 3.0, 8.0], "wrong_percent": [0.0, 10.0, 60.0]})
READINGS = pd.DataFrame(
    {
        "condition": ["pca_inverse", ADAPTER],
        "ratio": [8.0, 8.0],
        "wrong_percent": [60.0, 40.0],
        "agrees": [0.1, 0.9],
    }
)
TOKENS = pd.DataFrame(
    {
        "condition": ["pca_inverse", "pca_inverse", ADAPTER],
        "cosine": [0.5, 0.9, 0.7],
        "right": [False, True, False],
    }
)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pca_inverse", names.CONDITIONS["pca_inverse"].colour),
        (ADAPTER, names.OBJECTIVES["distill"].colour),
        ("runs/quick-1a/adapters/answer_ce-seed12", names.OBJECTIVES["answer_ce"].colour),
        ("my/folder", names.GREY),
    ],
)
def test_a_condition_or_an_adapter_has_its_colour(name, expected):
    assert prompt_plots.colour(name) == expected


def test_the_figure_against_the_ratio_shows_each_token_and_adapter():
    left, right = prompt_plots.against_ratio(FIRST, SUMMARY, READINGS).axes
    assert [line.get_label() for line in left.lines] == ["' 23'", "' of'"]
    assert list(left.lines[1].get_ydata()) == [0.0, 0.5, 0.9]
    assert list(right.lines[0].get_ydata()) == [0.0, 10.0, 60.0]
    (point,) = right.collections
    assert point.get_offsets().tolist() == [[8.0, 40.0]] and point.get_label() == "distill-seed0"
    assert [text.get_text() for text in left.get_xticklabels()] == ["1x", "8x"]


def test_the_figure_of_moved_tokens_has_a_row_per_condition():
    left, right = prompt_plots.moved(TOKENS, READINGS).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["distill-seed0", "pca_inverse"]
    points = {tuple(each.get_offsets()[0].tolist()): each for each in left.collections}
    assert set(points) == {(0.5, 1.0), (0.9, 1.0), (0.7, 0.0)}
    hollow = {place for place, each in points.items() if not len(each.get_facecolor())}
    assert hollow == {(0.5, 1.0), (0.7, 0.0)}
    assert [bar.get_width() for bar in right.patches] == [0.9, 0.1]
    assert to_hex(right.patches[0].get_facecolor()).upper() == prompt_plots.colour(ADAPTER).upper()
