"""Token batches, padded or packed: their tokens, what predicts each, and what each attends to."""

import inspect
from itertools import count, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from stage1.model.token_batch import BLOCK, block_mask, dense_mask, packed_batch, padded_batch

CPU = torch.device("cpu")
PAD = 0
TOKEN = st.integers(0, 9)  # includes the pad token, which may occur in an example
PROMPT, ANSWER = st.lists(TOKEN, min_size=1, max_size=7), st.lists(TOKEN, max_size=5)
EXAMPLES = st.lists(st.tuples(PROMPT, ANSWER), min_size=1, max_size=6)
LENGTHS = st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=8)
"""Lengths of examples: some fill several tiles, some share one."""


def sides(examples):
    return [prompt for prompt, _ in examples], [answer for _, answer in examples]


def starts_of(lengths):
    """Return `starts` of a packed row whose examples have these lengths."""
    return packed_batch([[1] * length for length in lengths], [[]] * len(lengths), PAD, CPU).starts


# ---------------------------------------------------------------- rows


@given(examples=EXAMPLES)
def test_a_padded_batch_has_a_row_per_example_and_padding_comes_last(examples):
    tokens = padded_batch(*sides(examples), PAD, CPU)
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    assert all(tensor.shape == (len(examples), longest) for tensor in tokens[:3])
    assert tokens.starts is None
    assert tokens.positions.tolist() == list(range(longest))
    for row, (prompt, answer) in zip(zip(*tokens[:3], strict=True), examples, strict=True):
        roles = [len(prompt), len(answer), longest - len(prompt) - len(answer)]
        ids, is_prompt, is_answer = (tensor.tolist() for tensor in row)
        assert ids == [*prompt, *answer] + [PAD] * roles[2]
        assert is_prompt == [True] * roles[0] + [False] * (roles[1] + roles[2])
        assert is_answer == [False] * roles[0] + [True] * roles[1] + [False] * roles[2]


@given(examples=EXAMPLES)
def test_a_packed_batch_is_a_single_row_in_which_each_example_counts_from_zero(examples):
    tokens = packed_batch(*sides(examples), PAD, CPU)
    begin = 0
    for prompt, answer in examples:
        end = begin + len(prompt) + len(answer)
        part = slice(begin, end)
        assert tokens.ids[0, part].tolist() == [*prompt, *answer]
        is_prompt = tokens.is_prompt[0, part]
        assert is_prompt.tolist() == [True] * len(prompt) + [False] * len(answer)
        assert torch.equal(tokens.is_answer[0, part], ~is_prompt)
        assert tokens.starts[0, part].tolist() == [begin] * (end - begin)
        assert tokens.positions[0, part].tolist() == list(range(end - begin))
        begin = end
    padding = slice(begin, None)
    assert (tokens.ids[0, padding] == PAD).all() and (tokens.starts[0, padding] == begin).all()
    assert not tokens.is_prompt[0, padding].any() and not tokens.is_answer[0, padding].any()


@pytest.mark.parametrize(
    "lengths, size",
    [([1], BLOCK), ([BLOCK - 1], BLOCK), ([BLOCK], BLOCK), ([BLOCK, 1], 2 * BLOCK)],
)
def test_a_packed_row_is_padded_to_whole_tiles_and_no_further(lengths, size):
    assert starts_of(lengths).shape == (1, size)


def test_only_padding_adds_an_example_to_a_packed_row():
    assert starts_of([100, 28]).unique().tolist() == [0, 100]
    assert starts_of([100, 27]).unique().tolist() == [0, 100, 127]


@pytest.mark.parametrize("make", [padded_batch, packed_batch])
@pytest.mark.parametrize("prompts, answers", [([], []), ([[]], [[1]]), ([[1], []], [[1], [1]])])
def test_an_empty_batch_and_an_empty_prompt_are_refused(make, prompts, answers):
    with pytest.raises(
        ValueError, match="batch: expected at least one prompt, and at least one token in each"
    ):
        make(prompts, answers, PAD, CPU)


@pytest.mark.parametrize("make", [padded_batch, packed_batch])
def test_every_prompt_needs_an_answer(make):
    with pytest.raises(ValueError):
        make([[1], [2]], [[1]], PAD, CPU)


# ---------------------------------------------------------------- what predicts what


@pytest.mark.parametrize("make", [padded_batch, packed_batch])
@given(examples=EXAMPLES, data=st.data())
def test_a_supervised_token_is_predicted_from_the_token_before_it_in_its_example(
    make, examples, data
):
    """All tokens differ, so each identifies its position."""
    unique = count(1)
    prompts, answers = ([[next(unique) for _ in side] for side in both] for both in sides(examples))
    tokens = make(prompts, answers, PAD, CPU)
    wholes = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    chosen = data.draw(st.sets(st.sampled_from([token for whole in wholes for token in whole])))
    supervised = torch.isin(tokens.ids, torch.tensor(sorted(chosen), dtype=torch.int64))
    pairs = [(a, b) for whole in wholes for a, b in pairwise(whole) if b in chosen]
    if not pairs:
        with pytest.raises(ValueError, match="objective='some': the batch has no supervised token"):
            tokens.predictors(supervised, "some")
        return
    before = tokens.ids[tokens.predictors(supervised, "some")].tolist()
    predicted = tokens.ids[tokens.predicted(supervised)].tolist()
    assert list(zip(before, predicted, strict=True)) == pairs


def test_supervised_padding_is_predicted_too():
    tokens = padded_batch([[1, 2], [3]], [[4], []], PAD, CPU)
    everything = torch.ones_like(tokens.is_prompt)
    assert tokens.predictors(everything, "some").tolist() == [[True, True, False]] * 2
    assert tokens.predicted(everything).tolist() == [[False, True, True]] * 2


def test_the_last_token_of_an_example_predicts_nothing_of_the_next():
    tokens = packed_batch([[1, 2], [3, 4]], [[5], [6]], PAD, CPU)
    assert tokens.predictors(tokens.is_prompt, "some")[0].nonzero().flatten().tolist() == [0, 3]
    assert tokens.predictors(tokens.is_answer, "some")[0].nonzero().flatten().tolist() == [1, 4]


# ---------------------------------------------------------------- attention masks


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_token_attends_to_its_own_example_up_to_itself(lengths):
    starts = starts_of(lengths)
    owner = [i for i, length in enumerate(lengths) for _ in range(length)]
    owner += [len(lengths)] * (starts.shape[1] - len(owner))
    expected = torch.tensor(
        [[key <= query and a == b for key, b in enumerate(owner)] for query, a in enumerate(owner)]
    )
    assert torch.equal(dense_mask(starts), expected[None, None])


@given(lengths=LENGTHS)
def test_the_mask_of_flex_attention_is_the_dense_one(lengths):
    starts = starts_of(lengths)
    mask, length = block_mask(starts), starts.shape[1]
    assert mask.seq_lengths == (length, length) and mask.BLOCK_SIZE == (BLOCK, BLOCK)
    reads = inspect.unwrap(mask.mask_mod)  # the tests' run-time type checker hides its arguments
    assert torch.equal(create_mask(reads, None, None, length, length, "cpu"), dense_mask(starts))


@given(lengths=LENGTHS)
def test_flex_attention_visits_exactly_the_tiles_in_which_something_is_read(lengths):
    """Each is visited once and masked within, and the backward pass visits the same ones."""
    starts = starts_of(lengths)
    mask, tiles = block_mask(starts), starts.shape[1] // BLOCK
    needed = dense_mask(starts)[0, 0].view(tiles, BLOCK, tiles, BLOCK).any(3).any(1)
    for visits, indices, expected in (
        (mask.kv_num_blocks, mask.kv_indices, needed),
        (mask.q_num_blocks, mask.q_indices, needed.T),
    ):
        for number, row, tile in zip(visits[0, 0], indices[0, 0].tolist(), expected, strict=True):
            assert sorted(row[:number]) == tile.nonzero().flatten().tolist()
    assert mask.full_kv_num_blocks is None
