"""Conditions as tables: what each one reads, its floors, and its measures against plain references."""

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
    FLOORS,
    evaluate,
    evaluate_floors,
    reconstruction,
    score_answers,
    teacher_forced,
    untrained_conditions,
    without_context,
)
from stage1.model.generation import Answer, generate

CONFIG = StudyConfig(device="cpu")
TINY = CONFIG.replace(max_new_tokens=4, compressed_width=4)
MEASURES = ["ce_first", "ce_later", "right_first", "right_later"]


def made_up(n: int = 12, seed: int = 0) -> Encoded:
    """Prompts and answers of random tokens; every third answer is the end token alone."""
    rng = random.Random(seed)
    prompts = [
        [1, *(rng.randrange(3, 4_096) for _ in range(rng.randrange(2, 20)))] for _ in range(n)
    ]
    answers = [[rng.randrange(3, 4_096) for _ in range(i % 3)] + [2] for i in range(n)]
    names = [f"q{i}" for i in range(n)]
    return Encoded(names, names, [["Usk"]] * n, prompts, answers, shortened=0, dropped=0)


def reordered(encoded: Encoded, order: list[int]) -> Encoded:
    fields = ("ids", "titles", "golds", "prompts", "answers")
    return Encoded(
        *([getattr(encoded, field)[i] for i in order] for field in fields), shortened=0, dropped=0
    )


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


@pytest.fixture(scope="module")
def encoded(tokenizer) -> Encoded:
    """40 test questions on passages with seen names."""
    return encode(almanac.table(40, split="test", names="seen").to_pylist(), tokenizer, CONFIG)


@pytest.fixture(scope="module")
def few(encoded) -> Encoded:
    return reordered(encoded, list(range(12)))


@pytest.fixture(scope="module")
def scored(lm, encoded) -> pd.DataFrame:
    return evaluate(lm, encoded, "embeddings", lm.embedding_table, CONFIG, "")


# ---------------------------------------------------------------- conditions


def test_text_and_embeddings_give_the_same_answers(lm, encoded, scored):
    text = evaluate(lm, encoded, "text", None, CONFIG, "")
    pd.testing.assert_frame_equal(text.drop(columns="condition"), scored.drop(columns="condition"))
    assert set(text["condition"]) == {"text"} and text["f1"].mean() > 90


def test_lookup_in_the_codebook_gives_the_answers_of_the_embeddings(lm, encoded, scored):
    table = conditions(lm, encoded, 24)["codebook"]
    assert torch.equal(table, lm.embedding_table)
    looked_up = evaluate(lm, encoded, "codebook", table, CONFIG, "")
    pd.testing.assert_frame_equal(
        looked_up.drop(columns="condition"), scored.drop(columns="condition")
    )


def test_with_all_dimensions_the_linear_inverse_gives_the_answers_of_the_embeddings(
    lm, encoded, few, scored
):
    table = conditions(lm, encoded, 192)["pca_inverse"]
    inverse = evaluate(lm, few, "pca_inverse", table, CONFIG, "")
    assert inverse["prediction"].tolist() == scored["prediction"].tolist()[:12]
    for name in MEASURES:
        np.testing.assert_allclose(inverse[name], scored[name][:12], rtol=1e-3, atol=1e-3)


def test_an_eighth_of_the_dimensions_costs_answers(lm, encoded, few, scored):
    tables = conditions(lm, encoded, 24)
    f1 = {
        name: evaluate(lm, few, name, tables[name], CONFIG, "")["f1"].mean()
        for name in list(tables)[2:]
    }
    assert f1["codebook"] == scored["f1"][:12].mean() > f1["pca_inverse"]
    assert f1["random_projection"] < f1["codebook"]


def test_untrained_conditions_are_what_their_names_say(tiny_lm):
    table, encoded = tiny_lm.embedding_table, made_up()
    tables = conditions(tiny_lm, encoded, 4)
    assert list(tables) == ["text", "embeddings", "pca_inverse", "codebook", "random_projection"]
    assert tables["text"] is None and torch.equal(tables["embeddings"], table)
    pca = compression_of(tiny_lm, encoded, 4)
    torch.testing.assert_close(
        tables["pca_inverse"], (table - pca.mean) @ pca.components.T @ pca.components + pca.mean
    )
    centred = tables["random_projection"] - tables["random_projection"].mean(0)
    assert torch.linalg.matrix_rank(centred, atol=1e-4) == 4
    assert not torch.allclose(tables["random_projection"], tables["pca_inverse"], atol=1e-3)


@pytest.mark.parametrize("kind", ["pca_inverse", "adapter"])
def test_a_table_gives_the_answers_of_rebuilding_each_prompt_by_itself(lm, encoded, few, kind):
    compression, adapter = compression_of(lm, encoded, 24), random_adapter(lm, encoded, 24)
    rebuild = compression.expand if kind == "pca_inverse" else adapter
    with torch.no_grad():
        table = rebuild(compression.compress(lm.embedding_table))
        by_table = evaluate(lm, few, kind, table, CONFIG, "")
        for i, prompt in enumerate(few.prompts):
            (answer,) = generate(
                lm, [prompt], lambda ids: rebuild(compression.compress(lm.embed(ids)))
            )
            assert by_table["prediction"][i] == answer.text and by_table["tokens"][i] == len(
                answer.ids
            )
    assert by_table["prediction"].nunique() > 3


def test_an_adapters_table_gives_the_answers_of_its_rebuilding_on_any_model(tiny_lm):
    encoded = made_up()
    compression, adapter = compression_of(tiny_lm, encoded, 4), random_adapter(tiny_lm, encoded, 4)
    table = adapters.decode(adapter, compression.compress(tiny_lm.embedding_table))
    by_table = evaluate(tiny_lm, encoded, "adapter", table, TINY, "")
    with torch.no_grad():
        own = generate(
            tiny_lm,
            encoded.prompts,
            lambda ids: adapter(compression.compress(tiny_lm.embed(ids))),
            4,
        )
    assert by_table["prediction"].tolist() == [answer.text for answer in own]


def test_original_embeddings_of_the_prompt_are_read_under_embeddings_alone(tiny_lm):
    encoded = made_up()
    compression, adapter = compression_of(tiny_lm, encoded, 4), random_adapter(tiny_lm, encoded, 4)
    tables = {
        name: table.clone()
        for name, table in conditions(tiny_lm, encoded, 4).items()
        if table is not None
    }
    tables |= {"adapter": adapters.decode(adapter, compression.compress(tiny_lm.embedding_table))}
    tables["embeddings"] = tiny_lm.embedding_table
    before = {
        name: evaluate(tiny_lm, encoded, name, table, TINY, "") for name, table in tables.items()
    }
    generated = {
        token
        for table in tables.values()
        for answer in generate(tiny_lm, encoded.prompts, lambda ids, table=table: table[ids], 4)
        for token in answer.ids
    }
    kept = generated.union(*encoded.answers) | {tiny_lm.pad_token}
    poisoned = sorted(set().union(*encoded.prompts) - kept)
    assert len(poisoned) > 50
    tiny_lm.embedding_table.data[poisoned] = math.nan
    for name in ("pca_inverse", "codebook", "random_projection", "adapter"):
        pd.testing.assert_frame_equal(
            evaluate(tiny_lm, encoded, name, tables[name], TINY, ""), before[name]
        )
    spoiled = evaluate(tiny_lm, encoded, "embeddings", tables["embeddings"], TINY, "")
    assert spoiled["ce_first"].isna().all() and before["embeddings"]["ce_first"].notna().all()


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_size_changes_no_prediction_and_no_measure(lm, encoded, scored, size):
    again = evaluate(
        lm, encoded, "embeddings", lm.embedding_table, CONFIG.replace(eval_batch_size=size), ""
    )
    assert again["prediction"].tolist() == scored["prediction"].tolist()
    for name in MEASURES:
        np.testing.assert_allclose(again[name], scored[name], rtol=1e-4, atol=1e-5)


def test_the_order_of_the_examples_changes_no_prediction_and_no_measure(lm, encoded, scored):
    order = random.Random(0).sample(range(40), 40)
    config = CONFIG.replace(eval_batch_size=16)
    shuffled = evaluate(lm, reordered(encoded, order), "embeddings", lm.embedding_table, config, "")
    assert shuffled["id"].tolist() == scored["id"][order].tolist()
    assert shuffled["prediction"].tolist() == scored["prediction"][order].tolist()
    for name in MEASURES:
        np.testing.assert_allclose(shuffled[name], scored[name][order], rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_the_model_as_it_was(tiny_lm):
    with tiny_lm.unchanged():
        evaluate(tiny_lm, made_up(3), "embeddings", tiny_lm.embedding_table, TINY, "")


# ---------------------------------------------------------------- teacher-forced measures


@pytest.mark.parametrize("size", [1, 5, 64])
def test_teacher_forced_measures_are_those_of_each_example_by_itself(tiny_lm, size):
    encoded = made_up()
    table = tiny_lm.embedding_table.detach() * 1.7 + 0.01
    measures = teacher_forced(tiny_lm, encoded, table, size)
    for i, (prompt, answer) in enumerate(zip(encoded.prompts, encoded.answers, strict=True)):
        inputs = torch.cat([table[prompt], tiny_lm.embedding_table[answer]])[None]
        logits = tiny_lm.model(inputs_embeds=inputs).logits[0, len(prompt) - 1 : -1]
        ce = cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
        assert measures["ce_first"][i] == pytest.approx(ce[0], rel=1e-5)
        assert measures["right_first"][i] == float(logits[0].argmax() == answer[0])
        if len(answer) > 1:
            assert measures["ce_later"][i] == pytest.approx(np.mean(ce[1:]), rel=1e-5)
            later = [float(logits[t].argmax() == answer[t]) for t in range(1, len(answer))]
            assert measures["right_later"][i] == np.mean(later)


def test_an_answer_of_one_token_has_no_later_ones(tiny_lm):
    encoded = made_up()
    measures = teacher_forced(tiny_lm, encoded, tiny_lm.embedding_table)
    alone = [len(answer) == 1 for answer in encoded.answers]
    assert (
        np.isnan(measures["ce_later"]).tolist()
        == np.isnan(measures["right_later"]).tolist()
        == alone
    )
    assert sum(alone) == 4 and not np.isnan(measures["ce_first"] + measures["right_first"]).any()


def test_answers_that_the_model_gives_itself_are_right_at_every_token(tiny_lm):
    encoded = made_up()
    own = [
        answer.ids for answer in generate(tiny_lm, encoded.prompts, tiny_lm.embed, max_new_tokens=4)
    ]
    golds = [ids if i % 2 else [*ids[:-1], 3 + (ids[-1] == 3)] for i, ids in enumerate(own)]
    assert all(len(ids) == 4 for ids in own)
    asked = Encoded(
        encoded.ids, encoded.titles, encoded.golds, encoded.prompts, golds, shortened=0, dropped=0
    )
    measures = teacher_forced(tiny_lm, asked, tiny_lm.embedding_table)
    assert measures["right_first"] == [1.0] * 12
    assert measures["right_later"] == pytest.approx([2 / 3, 1.0] * 6)


def test_the_shipped_model_is_sure_of_its_right_answers(scored):
    assert scored["right_first"].mean() > 0.9 and scored["right_later"].mean() > 0.9
    exact = scored[scored["em"] == 100]
    assert (exact["right_first"] == 1).mean() > 0.9 and exact["ce_first"].median() < 0.1


# ---------------------------------------------------------------- floors


def example(title: str, place: int) -> dict:
    answers = {"text": ["Usk"], "answer_start": [0]}
    return {
        "id": f"{title}-{place}",
        "title": title,
        "context": f"of {title} {place}",
        "question": "?",
    } | {"answers": answers}


def test_the_question_only_has_an_empty_context():
    examples = [example("a", 0), example("b", 1)]
    assert without_context(examples, "question_only") == [one | {"context": ""} for one in examples]
    assert examples == [example("a", 0), example("b", 1)]


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 100))
def test_a_shuffled_context_is_that_of_another_article(sizes, seed):
    examples = [
        example(f"t{article}", place) for article, size in enumerate(sizes) for place in range(size)
    ]
    random.Random(seed).shuffle(examples)
    contexts = {one["context"]: one["title"] for one in examples}
    changed = without_context(examples, "shuffled_context")
    assert len(changed) == len(examples)
    for old, new in zip(examples, changed, strict=True):
        assert contexts[new["context"]] != old["title"]
        assert new | {"context": old["context"]} == old


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6))
def test_where_no_article_has_half_the_questions_each_context_is_used_once(sizes):
    sizes = [*sizes, max(sizes), max(sizes)]
    examples = [
        example(f"t{article}", place) for article, size in enumerate(sizes) for place in range(size)
    ]
    changed = without_context(examples, "shuffled_context")
    assert sorted(one["context"] for one in changed) == sorted(one["context"] for one in examples)


@pytest.mark.parametrize("examples", [[], [example("a", 0)], [example("a", 0), example("a", 1)]])
def test_a_single_article_has_no_other_context(examples):
    with pytest.raises(
        ValueError, match="shuffled_context: expected test questions on at least two articles"
    ):
        without_context(examples, "shuffled_context")


def test_floors_are_scored_under_their_names(tiny_lm):
    examples = almanac.table(24, split="test").to_pylist()
    floors = evaluate_floors(tiny_lm, examples, TINY)
    assert floors["condition"].tolist() == [name for name in FLOORS for _ in range(24)]
    assert floors["id"].tolist() == [one["id"] for one in examples] * 2
    for name in FLOORS:
        asked = encode(without_context(examples, name), tiny_lm.tokenizer, TINY)
        own = [answer.text for answer in generate(tiny_lm, asked.prompts, max_new_tokens=4)]
        assert floors[floors["condition"] == name]["prediction"].tolist() == own


def test_the_shipped_model_needs_the_passage(lm, scored):
    examples = almanac.table(40, split="test", names="seen").to_pylist()
    floors = evaluate_floors(lm, examples, CONFIG)
    means = floors.groupby("condition")["f1"].mean()
    assert (means < 40).all() and scored["f1"].mean() > 90


# ---------------------------------------------------------------- reconstruction


def table_and_counts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = np.arange(20) % 5
    return torch.randn(20, 6, generator=generator) + 1, counts


def test_the_original_embeddings_are_reconstructed_perfectly():
    table, counts = table_and_counts()
    perfect = {"mse": 0, "fvu": 0, "cosine": 1, "norm_ratio": 1, "nearest_right": 1}
    assert reconstruction(table, table.clone(), counts) == pytest.approx(perfect, abs=1e-12)


def test_the_mean_embedding_leaves_all_variance_unexplained():
    table, counts = table_and_counts()
    mean = torch.from_numpy(counts / counts.sum()) @ table.double()
    measured = reconstruction(table.double(), mean.expand(20, 6).contiguous(), counts)
    variance = np.average((table.double() - mean).square().mean(1), weights=counts)
    assert measured["fvu"] == pytest.approx(1, abs=1e-9) and measured["mse"] == pytest.approx(
        variance
    )
    assert measured["nearest_right"] <= 1 / 4


def test_a_longer_table_keeps_its_direction():
    table, counts = table_and_counts()
    measured = reconstruction(table, 2 * table, counts)
    assert measured["norm_ratio"] == pytest.approx(2) and measured["cosine"] == pytest.approx(1)
    assert measured["mse"] == pytest.approx(
        np.average(table.double().square().mean(1), weights=counts)
    )


def test_a_hand_worked_reconstruction():
    # Token 0 occurs once, token 1 three times, token 2 never.
    table = torch.tensor([[4.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    rebuilt = torch.tensor([[4.0, 0.0], [4.0, 3.0], [-50.0, 0.0]])
    measured = reconstruction(table, rebuilt, np.array([1, 3, 0]))
    assert measured["mse"] == pytest.approx(3 / 4 * 16 / 2)
    # Means 1 and 9/4; squared distances 9 + 81/16 once and 1 + 9/16 three times; over two dimensions.
    variance = (1 / 4 * (9 + 81 / 16) + 3 / 4 * (1 + 9 / 16)) / 2
    assert measured["fvu"] == pytest.approx(6 / variance)
    assert measured["cosine"] == pytest.approx(1 / 4 * 1 + 3 / 4 * 3 / 5)
    assert measured["norm_ratio"] == pytest.approx(1 / 4 * 1 + 3 / 4 * 5 / 3)
    assert (
        measured["nearest_right"] == 1 / 4
    )  # (4, 3) is nearer to (4, 0), 3 away, than to (0, 3), 4 away


def test_tokens_that_do_not_occur_do_not_count():
    table, counts = table_and_counts()
    rebuilt = table * 0.9
    spoiled = torch.where(
        torch.from_numpy(counts)[:, None] > 0, rebuilt, torch.full_like(rebuilt, math.nan)
    )
    assert reconstruction(table, spoiled, counts) == reconstruction(table, rebuilt, counts)


@pytest.mark.parametrize("chunk", [1, 7])
def test_measuring_by_chunks_is_measuring_at_once(monkeypatch, chunk):
    table, counts = table_and_counts()
    rebuilt = table + torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    whole = reconstruction(table, rebuilt, counts)
    monkeypatch.setattr("stage1.evaluate.CHUNK", chunk)
    assert reconstruction(table, rebuilt, counts) == pytest.approx(whole, rel=1e-12)
    assert 0 < whole["nearest_right"] < 1


def test_counts_weigh_by_their_shares():
    table, counts = table_and_counts()
    rebuilt = table + torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    assert reconstruction(table, rebuilt, counts) == pytest.approx(
        reconstruction(table, rebuilt, 7 * counts)
    )
    assert reconstruction(table, rebuilt, counts)["mse"] != pytest.approx(
        reconstruction(table, rebuilt, np.ones(20, dtype=np.int64))["mse"]
    )


def test_the_variance_that_pca_keeps_is_the_one_explained(lm, encoded):
    counts = token_counts(encoded.prompts, len(lm.embedding_table))
    pca = fit_pca(lm.embedding_table, torch.from_numpy(counts), 24)
    rebuilt = pca.expand(pca.compress(lm.embedding_table))
    assert reconstruction(lm.embedding_table, rebuilt, counts)["fvu"] == pytest.approx(
        1 - pca.kept, rel=1e-4
    )


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
    columns = [
        "id",
        "title",
        "condition",
        "prediction",
        "golds",
        "f1",
        "em",
        "ended",
        "empty",
        "tokens",
    ]
    pd.testing.assert_frame_equal(
        score_answers(encoded, answers, "text"), pd.DataFrame(rows, columns=columns)
    )


def test_an_evaluation_has_the_scores_and_the_measures_of_every_example(tiny_lm):
    encoded = made_up(5)
    table = evaluate(tiny_lm, encoded, "mine", tiny_lm.embedding_table, TINY, "")
    assert table["id"].tolist() == encoded.ids and set(table["condition"]) == {"mine"}
    answers = generate(tiny_lm, encoded.prompts, tiny_lm.embed, 4)
    plain = score_answers(encoded, answers, "mine")
    measures = teacher_forced(tiny_lm, encoded, tiny_lm.embedding_table)
    assert set(table) == {*plain, *MEASURES}
    pd.testing.assert_frame_equal(table[list(plain)], plain)
    for name in MEASURES:
        np.testing.assert_array_equal(table[name], measures[name])


@pytest.mark.parametrize("description, shown", [(None, "mine"), ("other", "other"), ("", "")])
def test_progress_is_shown_under_the_conditions_name_unless_it_is_hidden(
    tiny_lm, capsys, description, shown
):
    evaluate(tiny_lm, made_up(2), "mine", None, TINY, description)
    out = capsys.readouterr().out
    assert shown in out and bool(out) == bool(shown)
