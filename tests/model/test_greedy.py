"""Greedy decoding: the answers of `generate_ids`, shared prefixes read once, finished rows gone."""

import random
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import embedding
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from stage1.compress import fit_pca
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode, token_counts
from stage1.model import greedy, loading
from stage1.model.generation import generate, generate_ids, read_answer
from stage1.model.greedy import (
    Split,
    by_prefix,
    can_share_prefixes,
    cheapest_split,
    greedy_ids,
    group_by_prefix,
)
from stage1.model.language_model import FrozenLM

CONFIG = StudyConfig(device="cpu")
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] You read a passage and answer a "
    "question on it.\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def questions(tokenizer, count, split="test", config=CONFIG) -> list[list[int]]:
    return encode(almanac.table(count, split=split).to_pylist(), tokenizer, config).prompts


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    """90 test questions, about three on a passage, and some on a passage of their own.

    One occurs twice, one is a single token, and one is a prefix of another.
    """
    shared, alone = questions(tokenizer, 90), questions(tokenizer, 300, "train")[::20]
    mixed = [*shared, *alone, shared[0], shared[5][:1], shared[7][:-4]]
    return random.Random(0).sample(mixed, len(mixed))


@pytest.fixture(scope="module")
def conditions(lm, prompts):
    """What the model reads: token ids, their embeddings, or what PCA keeps of them at K=4."""
    table = lm.embedding_table
    pca = fit_pca(table, torch.from_numpy(token_counts(prompts, len(table))), 4, "token")
    broken = partial(embedding, weight=pca.expand(pca.compress(table)))
    return {"text": None, "embeddings": lm.embed, "K=4": broken}


@pytest.fixture(scope="module")
def plain(lm, prompts, conditions):
    """The rows of `generate_ids`, by condition."""
    rows = {}
    for name, embed in conditions.items():
        batches = [prompts[start : start + 50] for start in range(0, len(prompts), 50)]
        rows[name] = [row for batch in batches for row in generate_ids(lm, batch, embed, 20)]
    return rows


@contextmanager
def watch(lm):
    """Yield a list that collects the shape [rows, tokens] of every forward pass."""
    shapes = []

    def see(module, args, kwargs):
        tokens = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        shapes.append(tuple(tokens.shape[:2]))

    hook = lm.model.register_forward_pre_hook(see, with_kwargs=True)
    yield shapes
    hook.remove()


@pytest.fixture
def endless_lm(tiny_lm, monkeypatch):
    """The tiny model without an end token."""
    monkeypatch.setattr(tiny_lm.model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(FrozenLM, "end_tokens", [len(tiny_lm.embedding_table)])
    return tiny_lm


def about(passage: int, count: int, length: int = 40, size: int = 6) -> list[list[int]]:
    """Return prompts on a passage of `length` tokens; their questions differ in the first token."""
    rng = random.Random(passage)
    context = [rng.randrange(3, 4_096) for _ in range(length)]
    return [
        [*context, 5 + k, *(rng.randrange(3, 4_096) for _ in range(size - 1))] for k in range(count)
    ]


# ---------------------------------------------------------------- the answers of generate_ids


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["text", "embeddings", "K=4"])
@pytest.mark.parametrize("size", [7, 64])
def test_answers_match_generate_ids(lm, prompts, conditions, plain, condition, size):
    answers = generate(lm, prompts, conditions[condition], batch_size=size)
    assert answers == [read_answer(lm, row) for row in plain[condition]]


@pytest.mark.slow
def test_answers_end_from_original_embeddings_and_mostly_not_from_broken_ones(lm, plain):
    """The comparison above thus covers short answers, long ones, and many different ones."""
    ended = {
        name: sum(row[-1] in lm.end_tokens for row in rows) / len(rows)
        for name, rows in plain.items()
    }
    assert ended["embeddings"] > 0.97 and 0.1 < ended["K=4"] < 0.6
    assert all(len(set(map(tuple, rows))) > 50 for rows in plain.values())


@pytest.mark.parametrize("share", [True, False])
def test_rows_of_one_batch_match_generate_ids_with_their_end_token(lm, prompts, share):
    with watch(lm) as shapes:
        rows = greedy_ids(lm, prompts[:32], None, 20, share)
    assert rows == generate_ids(lm, prompts[:32], None, 20)
    assert (shapes[0][0] < 32) == share  # prefixes come first


def test_prompts_of_a_chat_template_are_answered_alike(lm, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    chat = CONFIG.replace(prompt_template="chat", max_prompt_tokens=200)
    prompts = questions(tokenizer, 60, config=chat)
    assert len(group_by_prefix(prompts)) >= 20  # the template's header does not join all passages
    with watch(lm) as shapes:
        rows = greedy_ids(lm, prompts, None, 20)
    assert rows == generate_ids(lm, prompts, None, 20)
    assert shapes[0][0] < 30


TOKENS = st.lists(st.integers(3, 4_095), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=4),
    st.randoms(),
)
def test_any_prompts_are_continued_as_by_generate_ids(steep_lm, passages, rng):
    drawn = [context * 2 + question for context, questions in passages for question in questions]
    drawn += [drawn[0], drawn[0][:1], drawn[-1][:-1] or drawn[-1]]
    rng.shuffle(drawn)
    rows = greedy_ids(steep_lm, drawn, steep_lm.embed, 4)
    assert rows == generate_ids(steep_lm, drawn, steep_lm.embed, 4)


@pytest.fixture(scope="module")
def steep_lm(tiny_folder):
    """The tiny model with a steep head, so that no two next tokens are nearly as likely."""
    lm = loading.load(CONFIG.replace(language_model=str(tiny_folder)))
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.normal_(generator=torch.Generator().manual_seed(0))
    return lm


def test_bfloat16_embeddings_may_come_in_float32(tiny_folder):
    lm = loading.load(CONFIG.replace(language_model=str(tiny_folder), dtype="bfloat16"))
    prompts = about(0, 3) + about(1, 3)
    rows = greedy_ids(lm, prompts, lambda ids: lm.embed(ids).float(), 4)
    assert rows == greedy_ids(lm, prompts, None, 4)


# ---------------------------------------------------------------- what is read


def test_a_shared_prefix_is_read_once(endless_lm):
    with watch(endless_lm) as shapes:
        greedy_ids(endless_lm, about(0, 5) + about(1, 5) + about(2, 5), None, 3)
    assert shapes == [(3, 40), (15, 6), (15, 1), (15, 1)]


def test_prefixes_are_shared_whatever_the_order_of_the_prompts(endless_lm):
    """A batch of 12 has no room for a third passage."""
    prompts = [prompt for passage in range(4) for prompt in about(passage, 5)]
    random.Random(0).shuffle(prompts)
    with watch(endless_lm) as shapes:
        generate(endless_lm, prompts, endless_lm.embed, 1, batch_size=12)
    assert shapes == [(2, 40), (10, 6)] * 2


def test_prompts_that_share_nothing_are_read_in_one_pass(endless_lm):
    prompts = [prompt for passage in range(6) for prompt in about(passage, 1)]
    with watch(endless_lm) as shapes:
        greedy_ids(endless_lm, prompts, None, 2)
    assert shapes == [(6, 46), (6, 1)]


def test_a_pair_in_a_large_batch_is_not_worth_a_pass_of_its_own():
    prompts = [prompt for passage in range(30) for prompt in about(passage, 1)] + about(30, 2)
    assert cheapest_split(prompts) == Split([], [], prompts)


def test_one_long_question_does_not_widen_all_suffixes():
    prompts = about(0, 10) + about(1, 9) + [about(1, 1)[0][:40] + list(range(100, 140))]
    parts = cheapest_split(prompts)
    assert max(map(len, parts.suffixes)) == 6 and len(parts.prefixes) == 3
    assert parts.tokens() == 3 * 74 + 20 * 6


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=30), min_size=1, max_size=20))
def test_a_split_loses_nothing_and_never_costs_more(prompts):
    parts = cheapest_split(prompts)
    prefixes = [parts.prefixes[owner] for owner in parts.owners] or [[]] * len(prompts)
    pairs = zip(prefixes, parts.suffixes, strict=True)
    assert [prefix + suffix for prefix, suffix in pairs] == prompts
    assert all(parts.suffixes)
    assert parts.tokens() <= len(prompts) * max(map(len, prompts))


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_batches_hold_every_prompt_once_longest_first(prompts, size):
    batches, groups = by_prefix(prompts, size), group_by_prefix(prompts)
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
    assert all(0 < len(batch) <= size for batch in batches)
    (first,) = [group for group in groups if batches[0][0] in group]
    assert max(len(prompts[i]) for i in first) == max(map(len, prompts))
    if size >= max(map(len, groups)):  # no group is divided
        longest = [max(len(prompts[i]) for i in batch) for batch in batches]
        assert longest == sorted(longest, reverse=True)


def test_prompts_that_share_a_prefix_stay_together(prompts):
    batches, groups = by_prefix(prompts, 64), group_by_prefix(prompts)
    batch_of = {i: number for number, batch in enumerate(batches) for i in batch}
    assert all(len({batch_of[i] for i in group}) == 1 for group in groups)
    assert Counter(map(len, groups))[3] > 18
    assert min(map(len, batches[:-1])) > 64 - max(map(len, groups))


# ---------------------------------------------------------------- finished rows


@pytest.mark.slow
def test_finished_rows_leave_the_batch(lm, prompts, plain, conditions):
    by_row_length = sorted(range(len(prompts)), key=lambda i: len(plain["K=4"][i]))
    chosen = [*by_row_length[:20], *by_row_length[-5:]]
    expected = [plain["K=4"][i] for i in chosen]
    with watch(lm) as shapes:
        rows = greedy_ids(lm, [prompts[i] for i in chosen], conditions["K=4"], 20)
    assert rows == expected
    steps = [size for size, tokens in shapes if tokens == 1]
    active = [sum(len(row) > step for row in rows) for step in range(1, 20)]
    assert steps[0] == 25 and steps[-1] < 10 and len(steps) == 19
    assert all(0.5 < left / size <= 1 for left, size in zip(active, steps, strict=True))


def test_decoding_stops_with_the_last_row(lm, prompts):
    with watch(lm) as shapes:
        rows = greedy_ids(lm, prompts[:10], None, 20)
    assert sum(tokens == 1 for _, tokens in shapes) == max(map(len, rows)) - 1 < 19


# ---------------------------------------------------------------- other models


def test_models_with_full_attention_and_position_ids_are_supported(lm, tokenizer):
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=4_096, n_embd=32, n_layer=2, n_head=2, eos_token_id=2)
    gpt2 = FrozenLM(GPT2LMHeadModel(shape).eval(), tokenizer, "gpt2")
    prompts = about(0, 4) + about(1, 4)
    assert can_share_prefixes(lm) and can_share_prefixes(gpt2)
    assert greedy_ids(gpt2, prompts, None, 4) == generate_ids(gpt2, prompts, None, 4)


def test_a_model_with_a_sliding_window_falls_back_to_generate_ids(tokenizer, monkeypatch):
    """Its window counts slots, and padding between the parts of a prompt would take some."""
    torch.manual_seed(0)
    shape = MistralConfig(
        vocab_size=4_096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        eos_token_id=2,
    )
    sliding = FrozenLM(MistralForCausalLM(shape).eval(), tokenizer, "mistral")
    assert not can_share_prefixes(sliding)
    monkeypatch.setattr(greedy.DecodeState, "forward", None)
    prompts = about(0, 4)
    rows = generate_ids(sliding, prompts, None, 4)
    assert generate(sliding, prompts, None, 4) == [read_answer(sliding, row) for row in rows]
