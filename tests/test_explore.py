"""Inside one prompt: the same answers as `ask`, marked tokens, and widgets without a browser."""

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import stage1
from stage1.ask import explore
from stage1.ask.explore import MARKS, View, mark
from stage1.ask.inside import UNTRAINED, Explorer, moved
from stage1.ask.reader import first_question
from stage1.corpus.prompts import shorten
from stage1.evaluation.reconstruction import reconstruction

SMALL = {"device": "cpu", "train_examples": 400, "selection_examples": 0, "test_examples": 4}
DISTILL = "full/distill-seed0"
RECONSTRUCTED = "full/option1_reconstruction-seed0"


@pytest.fixture(scope="module")
def explorer():
    return Explorer.of(stage1.load(**SMALL))


@pytest.fixture(scope="module")
def asked(explorer) -> tuple[str, str]:
    return first_question(explorer.reader.config)[:2]


@pytest.fixture(scope="module")
def view(explorer, asked) -> View:
    return View(explorer, *asked)


@pytest.fixture
def box(view):
    """Return the widgets by their description, the shown view under ""."""
    return {field.description: field for field in view.widgets().children}


# ---------------------------------------------------------------- what the model reads


def test_answers_and_probabilities_are_those_of_a_question(explorer, asked):
    answers = explorer.reader.ask(*asked, ratio=16).answers
    for name in explorer.conditions:
        inside = explorer.look(*asked, name, 16)
        assert inside.answer.text == answers[name].text
        assert inside.answer.probability == pytest.approx(answers[name].probability)
        likeliest = inside.answer.tokens[0]
        assert float(inside.first.max()) == pytest.approx(likeliest[1], rel=1e-3)
        assert float(inside.first.sum()) == pytest.approx(1, rel=1e-4)


def test_the_tokens_are_the_prompt(explorer, asked):
    tokens = explorer.look(*asked).tokens["token"]
    tokenizer = explorer.reader.lm.tokenizer
    prompt, _ = shorten(tokenizer, explorer.reader.config, *asked)
    assert "".join(tokens) == tokenizer.decode(prompt) and len(tokens) == len(prompt)


@pytest.mark.parametrize("name", [DISTILL, RECONSTRUCTED])
def test_an_adapters_wrong_tokens_are_those_of_its_reconstruction(explorer, asked, name):
    reader, inside = explorer.reader, explorer.look(*asked, name)
    table = reader.lm.embedding_table
    prompt, _ = shorten(reader.lm.tokenizer, reader.config, *asked)
    counts, every = np.bincount(prompt, minlength=len(table)), torch.arange(len(table))
    rebuilt = reader.rebuilt(explorer.trained[name], every)
    measured = reconstruction(table, rebuilt, counts)
    assert 1 - inside.wrong / len(prompt) == pytest.approx(measured["nearest_right"])
    assert inside.tokens["cosine"].mean() == pytest.approx(measured["cosine"], rel=1e-4)
    linear = explorer.linear(every, explorer.trained[name])
    before = reconstruction(table, linear, counts)
    assert inside.tokens["pca_right"].mean() == pytest.approx(before["nearest_right"])
    assert inside.tokens["pca_cosine"].mean() == pytest.approx(before["cosine"], rel=1e-4)


def test_lookup_and_all_components_lose_no_token_and_the_linear_inverse_loses_most(explorer, asked):
    wrong = {ratio: explorer.look(*asked, ratio=ratio).wrong for ratio in (1, 4, 8, 64)}
    assert wrong[1] == 0 < wrong[4] < wrong[8] < wrong[64]
    for ratio in (8, 64):
        assert explorer.look(*asked, "codebook", ratio).wrong == 0
    assert explorer.look(*asked, "embeddings").wrong == 0


def test_tables_have_one_row_per_reading(explorer, asked):
    by_ratio = explorer.by_ratio(*asked, [1, 8, 500])
    first = explorer.first_tokens(by_ratio, count=3)
    assert list(first.index) == [1, 8] and first.shape == (2, 3)
    assert float(by_ratio[1].first.max()) == pytest.approx(first.loc[8].max())
    original = explorer.look(*asked, "embeddings")
    summary = explorer.summary([original, *by_ratio], original)
    assert list(summary["ratio"]) == [1, 1, 8]
    assert summary["agrees"][0] == float(original.first.max()) > summary["agrees"][2]
    assert list(summary["wrong"]) == [0, 0, by_ratio[1].wrong]
    assert len(moved(by_ratio)) == 2 * len(original.tokens)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"condition": "distil"}, "condition='distil': expected embeddings, pca_inverse, codebook"),
        ({"question": " "}, "question=' ': expected a question"),
        ({"ratio": 500}, "ratio=500: expected a number from 1 to 192"),
    ],
)
def test_bad_input_is_refused_by_name(explorer, asked, changes, message):
    given = {"context": asked[0], "question": asked[1]} | changes
    with pytest.raises(ValueError, match=message):
        explorer.look(**given)


def test_a_model_without_adapters_and_with_few_dimensions(tiny_folder):
    reader = stage1.load(
        language_model=str(tiny_folder), device="cpu", weighting="vocabulary", compressed_width=4
    )
    explorer = Explorer.of(replace(reader, pca=reader.pca.narrowed(16)))
    assert explorer.conditions == list(UNTRAINED)
    assert explorer.ratios() == [2, 3, 4, 6, 8, 12, 16, 24, 32]
    asked = ("The river is the Usk.", "Which river?")
    insides = explorer.by_ratio(*asked)
    assert [inside.K for inside in insides] == [16, 11, 8, 5, 4, 3, 2, 1, 1]
    assert "No adapter" in explore.passages([], explorer.reader.D).data
    assert "from pca_inverse, K = 4 of 32 (8x)" in View(explorer, *asked).html()


# ---------------------------------------------------------------- the view as HTML


def test_every_wrong_token_is_marked_with_its_nearest_entry(explorer, asked):
    inside = explorer.look(*asked, ratio=8)
    shown = explore.marked(inside)
    assert shown.count("<rt") == shown.count(MARKS["wrong"][0]) == inside.wrong > 0
    assert explore.marked(explorer.look(*asked, "codebook")).count("<ruby") == 0


@pytest.mark.parametrize(
    "right, before, expected",
    [
        (True, None, ""),
        (False, None, "wrong"),
        (True, True, ""),
        (True, False, "repaired"),
        (False, True, "broken"),
        (False, False, "wrong"),
    ],
)
def test_an_adapter_repairs_and_breaks_tokens(right, before, expected):
    row = {"right": right} | ({} if before is None else {"pca_right": before})
    assert mark(row) == expected


def test_text_is_shown_as_text_and_control_characters_are_seen(explorer, asked):
    shown = View(explorer, f"<script>x</script> {asked[0]}", asked[1]).html()
    assert "<script" not in shown and "&lt;" in shown
    assert [explore.label(text) for text in (" a", " ", "\x02", "\ufffd")] == [
        "a",
        "' '",
        "'\\x02'",
        "(byte)",
    ]


def test_passages_fold_all_but_the_first(explorer, asked):
    insides = explorer.by_ratio(*asked, [4, 8, 16])
    shown = explore.passages(insides, explorer.reader.D, opened=1).data
    assert shown.count("<details open>") == 1 and shown.count("<details>") == 2
    assert "pca_inverse, 16x: " in shown


# ---------------------------------------------------------------- widgets


def test_each_change_shows_another_view_in_less_than_half_a_second(box, view):
    changes = [
        ("ratio", 3),
        ("ratio", 64),
        ("condition", RECONSTRUCTED),
        ("question", "What is the main product of Larkaley College?"),
        ("passage", "The main product of Larkaley College is bottled walnut."),
    ]
    for name, value in changes:
        before, begin = box[""].value, time.process_time()
        box[name].value = value
        assert time.process_time() - begin < 0.5
        assert box[""].value != before
    assert "bottled walnut" in box[""].value and f"from {RECONSTRUCTED}" in box[""].value
    expected = replace(
        view, context=changes[4][1], question=changes[3][1], condition=RECONSTRUCTED, ratio=64
    )
    assert box[""].value == expected.html()


def test_the_slider_stops_where_the_ratio_changes_nothing(box):
    assert not box["ratio"].disabled
    box["condition"].value = DISTILL
    assert box["ratio"].disabled
    box["condition"].value = "codebook"
    assert not box["ratio"].disabled


def test_a_value_that_is_refused_is_named_and_the_next_one_shown(box):
    box["question"].value = " "
    assert "expected a question, not empty" in box[""].value
    box["question"].value = "What is the main product of Larkaley College?"
    assert "from the original embeddings" in box[""].value


def test_a_page_gets_html_with_ipywidgets_and_without(view, monkeypatch):
    live = view._repr_mimebundle_()
    assert "model_id" in live.pop(explore.WIDGET)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert view._repr_mimebundle_() == live
    assert live["text/html"] == view.html()


# ---------------------------------------------------------------- what the notebook says one sees


def test_things_to_try_show_what_the_notebook_says(explorer, asked):
    context, _ = asked
    other = "When did Larkaley College open its doors?"
    right = {"25 April 1663", "23 April 1778"}
    answers = {name: explorer.look(context, other, name).answer.text for name in explorer.trained}
    first = {name: explorer.look(*asked, name).answer.text for name in explorer.trained}
    became_wrong = [
        answers[name] for name in first if first[name] in right and answers[name] not in right
    ]
    assert any(text.split()[-1] not in context for text in became_wrong)
    uniform = Explorer(stage1.load(**SMALL, weighting="vocabulary"))
    lost = [
        min(
            ratio
            for ratio in each.ratios()
            if each.look(*asked, ratio=ratio).answer.text not in right
        )
        for each in (uniform, explorer)
    ]
    assert lost[0] < lost[1]
