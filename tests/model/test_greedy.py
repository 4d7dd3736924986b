"""Greedy decoding of our own: the plain path's answers, a shared beginning read once, finished rows gone."""

import random
from collections import Counter
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
from stage1.model import greedy, language_model
from stage1.model.generation import generate, generate_ids, read_answer
from stage1.model.greedy import Split, alike, by_prefix, greedy_ids, reads_in_parts, split
from stage1.model.language_model import FrozenLM

CONFIG = StudyConfig(device="cpu")
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] You read a passage and answer a question on it.\n"
    "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    """200 test questions, about three on a passage; every seventh stands alone, one twice, and one is a single token.

    The last is the beginning of another.
    """
    asked = encode(
        almanac.table(200, split="test", names="seen").to_pylist(), tokenizer, CONFIG
    ).prompts
    alone = encode(almanac.table(600, split="train").to_pylist()[::20], tokenizer, CONFIG).prompts
    mixed = [*asked, *alone, asked[0], asked[5][:1], asked[7][:-4]]
    return random.Random(0).sample(mixed, len(mixed))


@pytest.fixture(scope="module")
def conditions(lm, prompts):
    """How prompts are read: as ids, from their own embeddings, and from those that PCA leaves at two widths K."""
    table, counts = (
        lm.embedding_table,
        torch.from_numpy(token_counts(prompts, len(lm.embedding_table))),
    )
    read = {"text": None, "embeddings": lm.embed}
    for width in (24, 4):
        pca = fit_pca(table, counts, width, "token")
        read[f"K={width}"] = partial(embedding, weight=pca.expand(pca.compress(table)))
    return read


@pytest.fixture(scope="module")
def plain(lm, prompts, conditions):
    """What the plain path writes, by condition."""
    rows = {}
    for name, embed in conditions.items():
        batches = [prompts[start : start + 50] for start in range(0, len(prompts), 50)]
        rows[name] = [row for batch in batches for row in generate_ids(lm, batch, embed, 20)]
    return rows


class Parts:
    """Shapes [rows, tokens] that go through the model while it is watched, in order, and the token ids among them."""

    def __init__(self, lm: FrozenLM):
        self.shapes: list[tuple[int, int]] = []
        self.lm = lm

    def see(self, _, __, given):
        self.shapes.append(
            tuple(
                (given["inputs_embeds"] if "inputs_embeds" in given else given["input_ids"]).shape[
                    :2
                ]
            )
        )

    def __enter__(self):
        self.hook = self.lm.model.register_forward_pre_hook(self.see, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.hook.remove()


def never_ends(lm: FrozenLM, monkeypatch) -> None:
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(FrozenLM, "end_tokens", [len(lm.embedding_table)])


def about(passage: int, questions: int, length: int = 40, asked: int = 6) -> list[list[int]]:
    """Prompts of `length` tokens and a question of `asked`, on a passage of its own, whose first tokens differ."""
    rng = random.Random(passage)
    context = [rng.randrange(3, 4_096) for _ in range(length)]
    return [
        [*context, 5 + k, *(rng.randrange(3, 4_096) for _ in range(asked - 1))]
        for k in range(questions)
    ]


# ---------------------------------------------------------------- the plain path's answers


@pytest.mark.parametrize("condition", ["text", "embeddings", "K=24", "K=4"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_answers_are_those_of_the_plain_path(lm, prompts, conditions, plain, condition, size):
    answers = generate(lm, prompts, conditions[condition], batch_size=size)
    assert answers == [read_answer(lm, row) for row in plain[condition]]


def test_original_embeddings_end_their_answers_and_broken_ones_hardly_ever(lm, plain):
    """What the comparison above rests on: short answers, long ones, and many that differ."""
    ended = {
        name: sum(row[-1] in lm.end_tokens for row in rows) / len(rows)
        for name, rows in plain.items()
    }
    assert ended["embeddings"] > 0.97 and 0.1 < ended["K=4"] < 0.6
    assert all(len(set(map(tuple, rows))) > 100 for rows in plain.values())


@pytest.mark.parametrize("share", [True, False])
def test_rows_of_one_batch_are_those_of_the_plain_path_with_their_end_token(
    lm, prompts, plain, share
):
    with Parts(lm) as parts:
        rows = greedy_ids(lm, prompts[:64], None, 20, share)
    assert rows == plain["text"][:64]
    assert (parts.shapes[0][0] < 64) == share  # beginnings go first


def test_prompts_of_a_chat_template_are_answered_alike(lm, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    chat = CONFIG.replace(prompt_template="chat", max_prompt_tokens=200)
    asked = encode(
        almanac.table(60, split="test", names="seen").to_pylist(), tokenizer, chat
    ).prompts
    assert len(alike(asked)) >= 20  # the turn's header is no reason to read all passages as one
    with Parts(lm) as parts:
        rows = greedy_ids(lm, asked, None, 20)
    assert rows == generate_ids(lm, asked, None, 20)
    assert parts.shapes[0][0] < 30


TOKENS = st.lists(st.integers(3, 4_095), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=4),
    st.randoms(),
)
def test_any_prompts_are_continued_as_by_the_plain_path(random_lm, passages, rng):
    drawn = [context * 2 + question for context, questions in passages for question in questions]
    drawn += [drawn[0], drawn[0][:1], drawn[-1][:-1] or drawn[-1]]
    rng.shuffle(drawn)
    assert greedy_ids(random_lm, drawn, random_lm.embed, 4) == generate_ids(
        random_lm, drawn, random_lm.embed, 4
    )


@pytest.fixture(scope="module")
def random_lm(tiny_folder):
    """The tiny random model with a steep head, so that no two next tokens are nearly as likely."""
    lm = language_model.load(CONFIG.replace(language_model=str(tiny_folder)))
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.normal_(generator=torch.Generator().manual_seed(0))
    return lm


def test_bfloat16_embeddings_may_come_in_float32(tiny_folder):
    lm = language_model.load(CONFIG.replace(language_model=str(tiny_folder), dtype="bfloat16"))
    asked = about(0, 3) + about(1, 3)
    assert greedy_ids(lm, asked, lambda ids: lm.embed(ids).float(), 4) == greedy_ids(
        lm, asked, None, 4
    )


# ---------------------------------------------------------------- what is read


def test_a_shared_beginning_is_read_once(tiny_lm, monkeypatch):
    never_ends(tiny_lm, monkeypatch)
    asked = about(0, 5) + about(1, 5) + about(2, 5)
    with Parts(tiny_lm) as parts:
        greedy_ids(tiny_lm, asked, None, 3)
    assert parts.shapes == [(3, 40), (15, 6), (15, 1), (15, 1)]


def test_batches_share_as_one_batch_does(tiny_lm, monkeypatch):
    """Whatever the order of the prompts, and though a batch of 12 has no room for a third passage."""
    never_ends(tiny_lm, monkeypatch)
    asked = [prompt for passage in range(4) for prompt in about(passage, 5)]
    random.Random(0).shuffle(asked)
    with Parts(tiny_lm) as parts:
        generate(tiny_lm, asked, tiny_lm.embed, 1, batch_size=12)
    assert parts.shapes == [(2, 40), (10, 6)] * 2


def test_without_anything_shared_the_prompts_are_read_as_in_the_plain_path(tiny_lm, monkeypatch):
    never_ends(tiny_lm, monkeypatch)
    asked = [prompt for passage in range(6) for prompt in about(passage, 1)]
    with Parts(tiny_lm) as parts:
        greedy_ids(tiny_lm, asked, None, 2)
    assert parts.shapes == [(6, 46), (6, 1)]


def test_a_pair_in_a_large_batch_is_not_worth_a_pass_of_its_own():
    asked = [prompt for passage in range(30) for prompt in about(passage, 1)] + about(30, 2)
    assert split(asked) == Split([], [], asked)


def test_one_long_question_does_not_make_all_suffixes_long():
    asked = about(0, 10) + about(1, 9) + [about(1, 1)[0][:40] + list(range(100, 140))]
    parts = split(asked)
    assert max(map(len, parts.suffixes)) == 6 and len(parts.prefixes) == 3
    assert parts.tokens() == 3 * 74 + 20 * 6


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=30), min_size=1, max_size=20))
def test_a_split_loses_nothing_and_never_costs_more(asked):
    parts = split(asked)
    owned = [parts.prefixes[owner] for owner in parts.owners] or [[]] * len(asked)
    assert [prefix + suffix for prefix, suffix in zip(owned, parts.suffixes, strict=True)] == asked
    assert all(parts.suffixes)
    assert parts.tokens() <= len(asked) * max(map(len, asked))


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 3, 7, 64, 1_000])
def test_batches_hold_every_prompt_once_longest_first(prompts, size):
    batches = by_prefix(prompts, size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
    assert all(0 < len(batch) <= size for batch in batches)
    longest = [max(len(prompts[i]) for i in batch) for batch in batches]
    assert longest[0] == max(map(len, prompts))
    if size >= max(map(len, alike(prompts))):  # no group is cut
        assert longest == sorted(longest, reverse=True)


def test_what_begins_alike_stays_together(prompts):
    batches = by_prefix(prompts, 64)
    place = {i: number for number, batch in enumerate(batches) for i in batch}
    assert all(len({place[i] for i in group}) == 1 for group in alike(prompts))
    assert Counter(map(len, alike(prompts)))[3] > 40
    assert min(map(len, batches[:-1])) > 64 - max(map(len, alike(prompts)))


# ---------------------------------------------------------------- finished rows


def test_finished_rows_leave_the_batch(lm, prompts, plain, conditions):
    by_row_length = sorted(range(len(prompts)), key=lambda i: len(plain["K=4"][i]))
    chosen = [*by_row_length[:40], *by_row_length[-5:]]
    with Parts(lm) as parts:
        rows = greedy_ids(lm, [prompts[i] for i in chosen], conditions["K=4"], 20)
    assert rows == [plain["K=4"][i] for i in chosen]
    steps = [rows for rows, tokens in parts.shapes if tokens == 1]
    going = [sum(len(row) > step for row in rows) for step in range(1, 20)]
    assert steps[0] == 45 and steps[-1] < 10
    assert len(steps) == 19 and all(
        0.5 < left / step <= 1 for left, step in zip(going, steps, strict=True)
    )


def test_decoding_stops_with_the_last_row(lm, prompts, plain):
    with Parts(lm) as parts:
        greedy_ids(lm, prompts[:10], None, 20)
    assert (
        sum(tokens == 1 for _, tokens in parts.shapes)
        == max(len(row) for row in plain["text"][:10]) - 1
        < 19
    )


# ---------------------------------------------------------------- other models


def test_models_that_positions_are_told_and_that_attend_to_everything_are_served(lm, tokenizer):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=4_096, n_embd=32, n_layer=2, n_head=2, eos_token_id=2)
    ).eval()
    served = FrozenLM(gpt2, tokenizer, "gpt2")
    asked = about(0, 4) + about(1, 4)
    assert reads_in_parts(lm) and reads_in_parts(served)
    assert greedy_ids(served, asked, None, 4) == generate_ids(served, asked, None, 4)


def test_a_model_with_a_sliding_window_takes_the_plain_path(tokenizer, monkeypatch):
    """Its window counts slots, and padding between the parts of a prompt would take some."""
    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = MistralConfig(
        vocab_size=4_096, num_key_value_heads=1, sliding_window=8, eos_token_id=2, **small
    )
    sliding = FrozenLM(MistralForCausalLM(config).eval(), tokenizer, "mistral")
    assert not reads_in_parts(sliding)
    monkeypatch.setattr(greedy.Rows, "read", None)
    asked = about(0, 4)
    plain_rows = generate_ids(sliding, asked, None, 4)
    assert generate(sliding, asked, None, 4) == [read_answer(sliding, row) for row in plain_rows]
