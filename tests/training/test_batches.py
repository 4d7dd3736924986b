"""Batches dealt out: to processes, and to passes through the language model."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.objectives import ExampleBatch, prompt_tokens
from stage1.training.batches import deal, examples_at, split

LENGTHS = st.lists(st.integers(1, 300), max_size=40)
HANDS = st.integers(1, 9)
EXAMPLE = st.tuples(
    st.lists(st.integers(0, 99), min_size=1, max_size=9), st.lists(st.integers(0, 99), max_size=4)
)
BATCH = st.lists(EXAMPLE, min_size=1, max_size=20)


def examples(pairs, gold=None) -> ExampleBatch:
    return ExampleBatch([prompt for prompt, _ in pairs], [answer for _, answer in pairs], gold)


def listed(batch: ExampleBatch) -> list:
    return list(
        zip(batch.prompts, batch.answers, batch.keeps_gold or [None] * len(batch), strict=True)
    )


# ---------------------------------------------------------------- hands


@given(lengths=LENGTHS, hands=HANDS)
def test_every_place_is_dealt_once_and_each_hand_is_in_order(lengths, hands):
    dealt = deal(lengths, hands)
    assert len(dealt) == hands
    assert sorted(place for hand in dealt for place in hand) == list(range(len(lengths)))
    assert all(hand == sorted(hand) for hand in dealt)


@given(lengths=LENGTHS, hands=HANDS)
def test_hands_differ_by_at_most_one_in_number(lengths, hands):
    sizes = [len(hand) for hand in deal(lengths, hands)]
    assert max(sizes) - min(sizes) <= 1


@given(lengths=LENGTHS.filter(bool), hands=HANDS)
def test_hands_differ_by_at_most_one_length_in_sum(lengths, hands):
    """There and back again, what a round gives to one hand another takes back: together no more than the longest."""
    sums = [sum(lengths[place] for place in hand) for hand in deal(lengths, hands)]
    assert max(sums) - min(sums) <= max(lengths)


def test_an_even_deal_is_even():
    lengths = [8, 1, 7, 2, 6, 3, 5, 4]
    assert [sum(lengths[place] for place in hand) for hand in deal(lengths, 2)] == [18, 18]
    assert [sum(lengths[place] for place in hand) for hand in deal(lengths, 4)] == [9, 9, 9, 9]


# ---------------------------------------------------------------- parts


@given(pairs=BATCH, parts=HANDS, data=st.data())
def test_the_parts_are_together_the_batch_and_each_example_keeps_what_is_its_own(
    pairs, parts, data
):
    gold = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    batch = examples(pairs, gold)
    got = split(batch, parts)
    assert len(got) == min(parts, len(pairs)) and all(len(part) for part in got)
    assert sorted(row for part in got for row in listed(part)) == sorted(listed(batch))
    assert max(map(len, got)) - min(map(len, got)) <= 1


def test_a_batch_in_one_part_is_the_batch_itself():
    batch = examples([([1, 2], [3]), ([4], [])])
    assert split(batch, 1)[0] is batch


def test_the_answer_counts_in_the_length_of_an_example():
    batch = examples([([1], [2] * 9), ([1] * 8, [2]), ([1], [2]), ([1], [])])
    assert [
        [len(p) + len(a) for p, a in zip(part.prompts, part.answers, strict=True)]
        for part in split(batch, 2)
    ] == [
        [10, 1],
        [9, 2],
    ]


def test_parts_of_a_batch_without_word_of_gold_answers_say_nothing_of_them_either():
    assert [part.keeps_gold for part in split(examples([([1], [2])] * 3), 2)] == [None, None]


@given(
    prompts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), min_size=1, max_size=9),
    parts=HANDS,
)
def test_tokens_are_split_with_their_counts(prompts, parts):
    batch = prompt_tokens(prompts, torch.device("cpu"))
    got = split(batch, parts)
    assert len(got) == min(parts, len(batch)) and max(map(len, got)) - min(map(len, got)) <= 1

    def pairs(of):
        return sorted(
            pair
            for tokens in of
            for pair in zip(tokens.ids.tolist(), tokens.counts.tolist(), strict=True)
        )

    assert pairs(got) == pairs([batch])


# ---------------------------------------------------------------- gold answers


@pytest.mark.parametrize("fraction, kept", [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_step_keeps_the_share_of_gold_answers_that_the_config_asks_for_in_all_its_parts_together(
    fraction, kept
):
    names = [str(i) for i in range(8)]
    encoded = Encoded(
        names, names, [["x"]] * 8, [[i, 1] for i in range(8)], [[i] for i in range(8)], 0, 0
    )
    config = StudyConfig(batch_size=8, gold_fraction=fraction)
    batch = examples_at(config, encoded, 0)
    assert sum(batch.keeps_gold) == kept
    for parts in (2, 3, 8):
        together = [row for part in split(batch, parts) for row in listed(part)]
        assert {prompt[0] for prompt, _, gold in together if gold} == {
            row[0][0] for row in listed(batch) if row[2]
        }


def test_chosen_examples_come_in_the_order_asked_for_with_all_that_is_theirs():
    batch = examples([([1], [10]), ([2], [20]), ([3], [30])], [True, False, False])
    chosen = batch.chosen([2, 0, 0])
    assert chosen == ExampleBatch([[3], [1], [1]], [[30], [10], [10]], [False, True, True])
    assert len(chosen) == 3 and len(batch) == 3
    assert dataclasses.replace(batch, keeps_gold=None).chosen([1]) == ExampleBatch(
        [[2]], [[20]], None
    )
    assert len(batch.chosen([])) == 0
