"""Conditions: what each one reads, its floors, and its measures against plain references."""

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from stage1 import adapter as adapters
from stage1.compress import fit_pca, random_projection
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import Encoded, encode, token_counts
from stage1.evaluation.conditions import (
    evaluate,
    evaluate_floors,
    score_answers,
    teacher_forced,
    untrained_conditions,
    without_context,
)
from stage1.model.generation import Answer, generate
from stage1.names import FLOORS

CONFIG = StudyConfig(device="cpu")
TINY = CONFIG.replace(max_new_tokens=4, compressed_width=4)
MEASURES = ["ce_first", "right_first", "ce_later", "right_later"]
QUESTIONS = almanac.table(24, split="test", names="seen").to_pylist()


def random_examples() -> Encoded:
    """Twelve random prompts and answers; every third answer is the end token alone."""
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(3, 4_096) for _ in range(length)]

    prompts = [[1, *text(rng.randrange(2, 20))] for _ in range(12)]
    answers = [[*text(i % 3), 2] for i in range(12)]
    names = [f"q{i}" for i in range(12)]
    return Encoded(names, names, [["Usk"]] * 12, prompts, answers, shortened=0, dropped=0)


RANDOM = random_examples()


def compression_of(lm, encoded, width):
    counts = token_counts(encoded.prompts, len(lm.embedding_table))
    return fit_pca(lm.embedding_table, torch.from_numpy(counts), width)


def conditions(lm, encoded, width):
    counts = token_counts(encoded.prompts, len(lm.embedding_table))
    control = random_projection(lm.embedding_table, torch.from_numpy(counts), width, seed=0)
    return untrained_conditions(lm, compression_of(lm, encoded, width), control)


def random_adapter(lm, encoded, width):
    """An adapter some way off the PCA inverse, as after training."""
    counts = torch.from_numpy(token_counts(encoded.prompts, len(lm.embedding_table)))
    config = CONFIG.replace(compressed_width=width)
    made = adapters.make(compression_of(lm, encoded, width), lm.embedding_table, counts, config)
    torch.nn.init.constant_(made.gain, 0.3)
    return made


def assert_same_answers(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal predictions, and measures that differ by rounding alone."""
    assert one["id"].tolist() == other["id"].tolist()
    assert one["prediction"].tolist() == other["prediction"].tolist()
    for name in MEASURES:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def encoded(tokenizer) -> Encoded:
    """24 test questions on passages with seen names."""
    return encode(QUESTIONS, tokenizer, CONFIG)


@pytest.fixture(scope="module")
def scored(lm, encoded) -> pd.DataFrame:
    return evaluate(lm, encoded, "embeddings", lm.embedding_table, CONFIG, "")


# ---------------------------------------------------------------- conditions


def test_text_and_embeddings_give_the_same_answers(lm, encoded, scored):
    text = evaluate(lm, encoded, "text", None, CONFIG, "")
    pd.testing.assert_frame_equal(text.drop(columns="condition"), scored.drop(columns="condition"))
    assert set(text["condition"]) == {"text"} and text["f1"].mean() > 90


def test_with_all_dimensions_the_linear_inverse_gives_the_answers_of_the_embeddings(
    lm, encoded, scored
):
    compression, few = compression_of(lm, encoded, 192), encoded.first(12)
    table = compression.expand(compression.compress(lm.embedding_table))
    inverse = evaluate(lm, few, "pca_inverse", table, CONFIG, "")
    assert inverse["prediction"].tolist() == scored["prediction"].tolist()[:12]
    for name in MEASURES:
        np.testing.assert_allclose(inverse[name], scored[name][:12], rtol=1e-3, atol=1e-3)


def test_an_eighth_of_the_dimensions_costs_answers_unless_entries_are_looked_up(
    lm, encoded, scored
):
    tables, few = conditions(lm, encoded, 24), encoded.first(12)
    assert torch.equal(tables["codebook"], lm.embedding_table)
    for name in ("pca_inverse", "random_projection"):
        rebuilt = evaluate(lm, few, name, tables[name], CONFIG, "")
        assert rebuilt["f1"].mean() < scored["f1"][:12].mean()


def test_untrained_conditions_are_what_their_names_say(tiny_lm):
    table, tables = tiny_lm.embedding_table, conditions(tiny_lm, RANDOM, 4)
    assert list(tables) == ["text", "embeddings", "pca_inverse", "codebook", "random_projection"]
    assert tables["text"] is None and torch.equal(tables["embeddings"], table)
    assert torch.equal(tables["codebook"], table)
    pca = compression_of(tiny_lm, RANDOM, 4)
    inverse = (table - pca.mean) @ pca.components.T @ pca.components + pca.mean
    torch.testing.assert_close(tables["pca_inverse"], inverse)
    projected = tables["random_projection"]
    assert torch.linalg.matrix_rank(projected - projected.mean(0), atol=1e-4) == 4
    assert not torch.allclose(projected, tables["pca_inverse"], atol=1e-3)


@pytest.mark.parametrize("kind", ["pca_inverse", "adapter"])
def test_a_table_gives_the_answers_of_rebuilding_each_prompt_by_itself(lm, encoded, kind):
    compression, adapter = compression_of(lm, encoded, 24), random_adapter(lm, encoded, 24)
    rebuild = compression.expand if kind == "pca_inverse" else adapter
    few = encoded.first(8)
    with torch.no_grad():
        table = rebuild(compression.compress(lm.embedding_table))
        by_table = evaluate(lm, few, kind, table, CONFIG, "")
        for i, prompt in enumerate(few.prompts):
            (own,) = generate(
                lm, [prompt], lambda ids: rebuild(compression.compress(lm.embed(ids)))
            )
            assert by_table["prediction"][i] == own.text
            assert by_table["tokens"][i] == len(own.ids)
    assert by_table["prediction"].nunique() > 3


def test_an_adapters_table_gives_the_answers_of_its_reconstruction_on_any_model(tiny_lm):
    compression, adapter = compression_of(tiny_lm, RANDOM, 4), random_adapter(tiny_lm, RANDOM, 4)
    table = adapters.decode(adapter, compression.compress(tiny_lm.embedding_table))
    by_table = evaluate(tiny_lm, RANDOM, "adapter", table, TINY, "")
    with torch.no_grad():
        embed = lambda ids: adapter(compression.compress(tiny_lm.embed(ids)))  # noqa: E731
        own = generate(tiny_lm, RANDOM.prompts, embed, 4)
    assert by_table["prediction"].tolist() == [answer.text for answer in own]


def test_only_the_condition_embeddings_reads_the_prompts_original_embeddings(tiny_lm):
    compression, adapter = compression_of(tiny_lm, RANDOM, 4), random_adapter(tiny_lm, RANDOM, 4)
    tables = conditions(tiny_lm, RANDOM, 4)
    del tables["text"]
    tables = {name: table.clone() for name, table in tables.items()}
    tables["adapter"] = adapters.decode(adapter, compression.compress(tiny_lm.embedding_table))
    tables["embeddings"] = tiny_lm.embedding_table

    def evaluated(name: str) -> pd.DataFrame:
        return evaluate(tiny_lm, RANDOM, name, tables[name], TINY, "")

    before, kept = {name: evaluated(name) for name in tables}, {tiny_lm.pad_token}
    for table in tables.values():
        for answer in generate(tiny_lm, RANDOM.prompts, lambda ids, table=table: table[ids], 4):
            kept.update(answer.ids)
    kept.update(*RANDOM.answers)
    poisoned = sorted(set().union(*RANDOM.prompts) - kept)
    assert len(poisoned) > 50
    tiny_lm.embedding_table.data[poisoned] = math.nan
    for name in tables.keys() - {"embeddings"}:
        pd.testing.assert_frame_equal(evaluated(name), before[name])
    assert before["embeddings"]["ce_first"].notna().all()
    assert evaluated("embeddings")["ce_first"].isna().all()


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_size_changes_no_prediction_and_no_measure(lm, encoded, scored, size):
    config = CONFIG.replace(eval_batch_size=size)
    again = evaluate(lm, encoded.first(14), "embeddings", lm.embedding_table, config, "")
    assert_same_answers(again, scored[:14])


def test_the_order_of_the_examples_changes_no_prediction_and_no_measure(lm, encoded, scored):
    order = random.Random(0).sample(range(24), 24)
    config = CONFIG.replace(eval_batch_size=16)
    again = evaluate(lm, encoded.chosen(order), "embeddings", lm.embedding_table, config, "")
    assert_same_answers(again, scored.iloc[order])


def test_evaluation_leaves_the_model_as_it_was(tiny_lm):
    with tiny_lm.unchanged():
        evaluate(tiny_lm, RANDOM.first(3), "embeddings", tiny_lm.embedding_table, TINY, "")


# ---------------------------------------------------------------- teacher-forced measures


@pytest.mark.parametrize("size", [1, 5, 64])
def test_teacher_forced_measures_are_those_of_each_example_by_itself(tiny_lm, size):
    table = tiny_lm.embedding_table.detach() * 1.7 + 0.01
    measures = teacher_forced(tiny_lm, RANDOM, table, size)
    for i, (prompt, answer) in enumerate(zip(RANDOM.prompts, RANDOM.answers, strict=True)):
        inputs = torch.cat([table[prompt], tiny_lm.embedding_table[answer]])[None]
        logits = tiny_lm.model(inputs_embeds=inputs).logits[0, len(prompt) - 1 : -1]
        targets = torch.tensor(answer)
        first, *later = cross_entropy(logits, targets, reduction="none").tolist()
        first_right, *later_right = (logits.argmax(-1) == targets).double().tolist()
        assert measures["ce_first"][i] == pytest.approx(first, rel=1e-5)
        assert measures["right_first"][i] == first_right
        if later:
            assert measures["ce_later"][i] == pytest.approx(np.mean(later), rel=1e-5)
            assert measures["right_later"][i] == np.mean(later_right)


def test_an_answer_of_one_token_has_no_later_tokens(tiny_lm):
    measures = teacher_forced(tiny_lm, RANDOM, tiny_lm.embedding_table)
    alone = [len(answer) == 1 for answer in RANDOM.answers]
    for name in ("ce_later", "right_later"):
        assert np.isnan(measures[name]).tolist() == alone
    assert sum(alone) == 4 and not np.isnan(measures["ce_first"] + measures["right_first"]).any()


def test_greedy_answers_are_right_at_every_token(tiny_lm):
    own = [answer.ids for answer in generate(tiny_lm, RANDOM.prompts, tiny_lm.embed, 4)]
    golds = [ids if i % 2 else [*ids[:-1], 3 + (ids[-1] == 3)] for i, ids in enumerate(own)]
    assert all(len(ids) == 4 for ids in own)
    lists = (RANDOM.ids, RANDOM.titles, RANDOM.golds, RANDOM.prompts)
    encoded = Encoded(*lists, golds, shortened=0, dropped=0)
    measures = teacher_forced(tiny_lm, encoded, tiny_lm.embedding_table)
    assert measures["right_first"] == [1.0] * 12
    assert measures["right_later"] == pytest.approx([2 / 3, 1.0] * 6)


def test_the_shipped_model_is_confident_in_its_right_answers(scored):
    assert scored["right_first"].mean() > 0.9 and scored["right_later"].mean() > 0.9
    exact = scored[scored["em"] == 100]
    assert (exact["right_first"] == 1).mean() > 0.9 and exact["ce_first"].median() < 0.1


# ---------------------------------------------------------------- floors


def example(title: str, number: int) -> dict:
    name, answers = f"{title} {number}", {"text": ["Usk"], "answer_start": [0]}
    return {"id": name, "title": title, "context": name, "question": "?", "answers": answers}


def articles(sizes: list[int]) -> list[dict]:
    """Examples of articles with these numbers of questions."""
    return [example(f"t{i}", number) for i, size in enumerate(sizes) for number in range(size)]


def test_question_only_has_an_empty_context():
    examples = articles([1, 1])
    assert without_context(examples, "question_only") == [one | {"context": ""} for one in examples]
    assert examples == articles([1, 1])


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 100))
def test_a_shuffled_context_is_that_of_another_article(sizes, seed):
    examples = articles(sizes)
    random.Random(seed).shuffle(examples)
    title_of = {one["context"]: one["title"] for one in examples}
    changed = without_context(examples, "shuffled_context")
    for old, new in zip(examples, changed, strict=True):
        assert title_of[new["context"]] != old["title"]
        assert new | {"context": old["context"]} == old


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6))
def test_where_no_article_has_half_the_questions_each_context_is_used_once(sizes):
    examples = articles([*sizes, max(sizes), max(sizes)])
    changed = without_context(examples, "shuffled_context")
    assert sorted(one["context"] for one in changed) == sorted(one["context"] for one in examples)


@pytest.mark.parametrize("sizes", [[], [1], [2]])
def test_a_single_article_has_no_other_context(sizes):
    message = "shuffled_context: expected test questions on at least two articles"
    with pytest.raises(ValueError, match=message):
        without_context(articles(sizes), "shuffled_context")


def test_floors_are_scored_under_their_names(tiny_lm):
    floors = evaluate_floors(tiny_lm, QUESTIONS, TINY)
    assert floors["condition"].tolist() == [name for name in FLOORS for _ in range(24)]
    assert floors["id"].tolist() == [one["id"] for one in QUESTIONS] * 2
    for name in FLOORS:
        asked = encode(without_context(QUESTIONS, name), tiny_lm.tokenizer, TINY)
        own = [answer.text for answer in generate(tiny_lm, asked.prompts, max_new_tokens=4)]
        assert floors[floors["condition"] == name]["prediction"].tolist() == own


def test_the_shipped_model_needs_the_context(lm, scored):
    means = evaluate_floors(lm, QUESTIONS, CONFIG).groupby("condition")["f1"].mean()
    assert (means < 40).all() and scored["f1"].mean() > 90


# ---------------------------------------------------------------- scores


def test_scored_answers_have_a_row_per_example():
    golds, titles = [["Ada Bell", "Bell"], ["Usk"], ["Wye"]], ["a", "b", "b"]
    encoded = Encoded(["1", "2", "3"], titles, golds, [[1]] * 3, [[2]] * 3, shortened=0, dropped=0)
    answers = [
        Answer("the Bell", [5, 6], True),
        Answer("River Usk", [7, 8, 9], False),
        Answer("", [], True),
    ]
    rows = [
        ("1", "a", "text", "the Bell", ["Ada Bell", "Bell"], 100.0, 100.0, True, False, 2),
        ("2", "b", "text", "River Usk", ["Usk"], 200 / 3, 0.0, False, False, 3),
        ("3", "b", "text", "", ["Wye"], 0.0, 0.0, True, True, 0),
    ]
    names = "id title condition prediction golds f1 em ended empty tokens"
    expected = pd.DataFrame(rows, columns=names.split())
    pd.testing.assert_frame_equal(score_answers(encoded, answers, "text"), expected)


def test_an_evaluation_has_the_scores_and_the_measures_of_every_example(tiny_lm):
    few, original = RANDOM.first(5), tiny_lm.embedding_table
    table = evaluate(tiny_lm, few, "mine", original, TINY, "")
    plain = score_answers(few, generate(tiny_lm, few.prompts, tiny_lm.embed, 4), "mine")
    measures = teacher_forced(tiny_lm, few, original)
    pd.testing.assert_frame_equal(table, plain.assign(**measures))
    assert list(measures) == MEASURES and table["id"].tolist() == few.ids


@pytest.mark.parametrize("description, shown", [(None, "mine"), ("other", "other"), ("", "")])
def test_progress_is_shown_under_the_conditions_name_unless_it_is_hidden(
    tiny_lm, capsys, description, shown
):
    evaluate(tiny_lm, RANDOM.first(2), "mine", None, TINY, description)
    out = capsys.readouterr().out
    assert shown in out and bool(out) == bool(shown)
