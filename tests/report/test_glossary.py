"""The pipeline's picture and the names that every page takes for granted."""

from bs4 import BeautifulSoup

from stage1 import names
from stage1.report import glossary


def test_every_letter_split_objective_and_condition_is_explained():
    letters, splits, objectives, conditions = glossary.tables()
    assert list(letters["letter"]) == list("BTDKV")
    assert list(splits["split"]) == ["train", "selection", "test"]
    assert list(objectives["objective"]) == list(names.OBJECTIVES)
    assert list(conditions["condition"]) == list(names.CONDITIONS)
    html = glossary.shown().data
    texts = BeautifulSoup(html, "html.parser").get_text()
    sentences = [entry.sentence.replace("`", "") for entry in names.CONDITIONS.values()]
    assert all(sentence in texts for sentence in sentences)
    assert "`" not in html and "<code>text</code>" in html


def test_the_picture_holds_every_box_in_its_frame():
    figure = glossary.pipeline()
    (axis,) = figure.axes
    figure.canvas.draw()
    texts = [text.get_text() for text in axis.texts if text.get_text()]
    assert texts == [f"{title}\n{state}" for title, state, _ in glossary.BOXES]
    frame = figure.bbox
    for text in axis.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 <= frame.y1
