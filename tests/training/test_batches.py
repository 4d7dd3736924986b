"""What a step reads, and how a batch is split among processes and microbatches."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.loss_parts import ExampleBatch, TokenCounts
from stage1.objectives import prompt_tokens
from stage1.training.batches import (
    examples_at,
    partition,
    split,
    steps_per_epoch,
    token_distribution,
    tokens_at,
)

LENGTHS = st.lists(st.integers(1, 300), max_size=40)
PARTS = st.integers(1, 9)
EXAMPLE = st.tuples(
    st.lists(st.integers(0, 99), min_size=1, max_size=9), st.lists(st.integers(0, 99), max_size=4)
)
BATCH = st.lists(EXAMPLE, min_size=1, max_size=20)
CPU = torch.device("cpu")


def encoded(n: int) -> Encoded:
    """Return n examples; the first prompt token identifies the example."""
    names = [str(i) for i in range(n)]
    prompts, answers = [[i, 1] for i in range(n)], [[i] for i in range(n)]
    return Encoded(names, names, [["x"]] * n, prompts, answers, shortened=0, dropped=0)


def firsts(batch: ExampleBatch) -> list[int]:
    return [prompt[0] for prompt in batch.prompts]


def examples(pairs, gold=None) -> ExampleBatch:
    return ExampleBatch([prompt for prompt, _ in pairs], [answer for _, answer in pairs], gold)


def rows(batch: ExampleBatch) -> list:
    gold = batch.keeps_gold or [None] * len(batch)
    return list(zip(batch.prompts, batch.answers, gold, strict=True))


# ---------------------------------------------------------------- examples


@given(
    n=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 5), epoch=st.integers(0, 3)
)
def test_every_epoch_reads_every_example_once(n, size, seed, epoch):
    data, config = encoded(n), StudyConfig(batch_size=size, seed=seed)
    steps = steps_per_epoch(config, n)
    batches = [examples_at(config, data, epoch * steps + index) for index in range(steps)]
    assert sorted(first for batch in batches for first in firsts(batch)) == list(range(n))
    assert all(answer == prompt[:1] for batch in batches for prompt, answer, _ in rows(batch))
    assert [len(batch) for batch in batches[:-1]] == [size] * (steps - 1)
    assert 1 <= len(batches[-1]) <= size


def test_the_order_of_the_examples_differs_between_epochs_and_seeds_and_from_the_datas_own():
    data = encoded(30)

    def order(epoch, seed):
        config = StudyConfig(batch_size=8, seed=seed)
        steps = range(4 * epoch, 4 * epoch + 4)
        return tuple(first for step in steps for first in firsts(examples_at(config, data, step)))

    orders = {order(epoch, seed) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9 and tuple(range(30)) not in orders
    assert order(1, 2) == order(1, 2)


@pytest.mark.parametrize("fraction, kept", [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_the_share_of_gold_answers_is_that_of_the_whole_batch(fraction, kept):
    batch = examples_at(StudyConfig(batch_size=8, gold_fraction=fraction), encoded(8), 0)
    assert sum(batch.keeps_gold) == kept
    for parts in (2, 3, 8):
        together = [row for part in split(batch, parts) for row in rows(part)]
        assert sorted(together) == sorted(rows(batch))


def test_selected_examples_come_in_the_given_order_with_all_that_is_theirs():
    batch = examples([([1], [10]), ([2], [20]), ([3], [30])], [True, False, False])
    selected = batch.select([2, 0, 0])
    assert selected == ExampleBatch([[3], [1], [1]], [[30], [10], [10]], [False, True, True])
    assert len(selected) == 3 and len(batch) == 3
    silent = dataclasses.replace(batch, keeps_gold=None)
    assert silent.select([1]) == ExampleBatch([[2]], [[20]], None)
    assert len(batch.select([])) == 0


# ---------------------------------------------------------------- tokens


def draw(counts: np.ndarray, tokens: int, step: int, seed: int = 0) -> TokenCounts:
    return tokens_at(StudyConfig(seed=seed), token_distribution(counts), tokens, step, CPU)


def assert_draws_from_the_whole_vocabulary(counts, tokens, step, seed=0):
    whole = np.random.default_rng([seed, step]).multinomial(tokens, counts / counts.sum())
    drawn = draw(counts, tokens, step, seed)
    np.testing.assert_array_equal(drawn.ids, whole.nonzero()[0])
    np.testing.assert_array_equal(drawn.counts, whole[whole > 0])


def test_draws_are_reproducible_and_differ_between_steps_and_seeds():
    def drawn(step, seed):
        tokens = draw(np.arange(50), 200, step, seed)
        return tuple(tokens.ids.tolist()), tuple(tokens.counts.tolist())

    assert drawn(3, 1) == drawn(3, 1)
    assert len({drawn(step, seed) for step in range(4) for seed in range(4)}) == 16


@given(
    data=st.data(), tokens=st.integers(1, 12_000), step=st.integers(0, 50), seed=st.integers(0, 3)
)
def test_tokens_that_never_occur_change_no_draw(data, tokens, step, seed):
    """NumPy's multinomial uses no random number for a category of probability zero."""
    size = st.integers(0, 3) | st.integers(0, 100_000)
    counts = data.draw(st.lists(size, min_size=2, max_size=300).filter(any))
    assert_draws_from_the_whole_vocabulary(np.array(counts), tokens, step, seed)


def test_tokens_that_never_occur_change_no_draw_of_a_large_vocabulary():
    counts = np.zeros(128_256, dtype=np.int64)
    occurring = np.random.default_rng(0).permutation(128_256)[:25_000]
    counts[occurring] = 1 + 60_000 // np.arange(1, 25_001)
    assert_draws_from_the_whole_vocabulary(counts, 11_500, step=1)


def test_tokens_are_drawn_as_often_as_they_occur():
    drawn = draw(np.array([0, 1, 3, 0, 6]), 100_000, 0)
    assert drawn.ids.tolist() == [1, 2, 4] and drawn.counts.sum() == 100_000
    np.testing.assert_allclose(drawn.counts / 100_000, [0.1, 0.3, 0.6], atol=0.01)


# ---------------------------------------------------------------- parts


@given(lengths=LENGTHS, parts=PARTS)
def test_a_partition_has_every_index_once_and_parts_of_about_equal_size_and_sum(lengths, parts):
    """In snake order, what a round gives one part more, the next gives back."""
    dealt = partition(lengths, parts)
    assert len(dealt) == parts and all(part == sorted(part) for part in dealt)
    assert sorted(index for part in dealt for index in part) == list(range(len(lengths)))
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1
    sums = [sum(lengths[index] for index in part) for part in dealt]
    assert max(sums) - min(sums) <= max(lengths, default=0)


def test_an_even_partition_is_even():
    lengths = [8, 1, 7, 2, 6, 3, 5, 4]
    for parts, expected in ((2, 18), (4, 9)):
        sums = [sum(lengths[index] for index in part) for part in partition(lengths, parts)]
        assert sums == [expected] * parts


@given(pairs=BATCH, parts=PARTS, data=st.data())
def test_the_parts_are_together_the_batch_and_examples_stay_whole(pairs, parts, data):
    gold = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    batch = examples(pairs, gold)
    got = split(batch, parts)
    assert len(got) == min(parts, len(pairs)) and all(len(part) for part in got)
    assert sorted(row for part in got for row in rows(part)) == sorted(rows(batch))
    assert max(map(len, got)) - min(map(len, got)) <= 1


def test_a_batch_in_one_part_is_the_batch_itself():
    batch = examples([([1, 2], [3]), ([4], [])])
    assert split(batch, 1)[0] is batch


def test_the_answer_counts_in_the_length_of_an_example():
    batch = examples([([1], [2] * 9), ([1] * 8, [2]), ([1], [2]), ([1], [])])
    lengths = [[len(p) + len(a) for p, a, _ in rows(part)] for part in split(batch, 2)]
    assert lengths == [[10, 1], [9, 2]]


def test_parts_of_a_batch_without_gold_flags_have_none():
    assert [part.keeps_gold for part in split(examples([([1], [2])] * 3), 2)] == [None, None]


@given(
    prompts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), min_size=1, max_size=9),
    parts=PARTS,
)
def test_tokens_are_split_with_their_counts(prompts, parts):
    batch = prompt_tokens(prompts, CPU)
    got = split(batch, parts)
    assert len(got) == min(parts, len(batch)) and max(map(len, got)) - min(map(len, got)) <= 1
    ids, counts = (torch.cat([getattr(part, n) for part in got]) for n in ("ids", "counts"))
    order = ids.argsort()
    assert torch.equal(ids[order], batch.ids) and torch.equal(counts[order], batch.counts)
