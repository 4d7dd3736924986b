"""Rows of tokens: padded or packed, what each token is in them, what predicts it, and what it reads."""

import inspect
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from stage1.model.token_batch import BLOCK, block_mask, dense_mask, packed_batch, padded_batch

CPU = torch.device("cpu")
PAD = 0
TOKEN = st.integers(0, 9)  # the pad token among them: it may stand in an example like any other
PROMPT, ANSWER = st.lists(TOKEN, min_size=1, max_size=7), st.lists(TOKEN, max_size=5)
EXAMPLES = st.lists(st.tuples(PROMPT, ANSWER), min_size=1, max_size=6)
LENGTHS = st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=8)
"""Of whole examples: some fill several tiles, some share one."""


def sides(examples):
    return [list(prompt) for prompt, _ in examples], [list(answer) for _, answer in examples]


def starts_of(lengths):
    """`starts` of a packed row whose examples have these lengths."""
    return packed_batch([[1] * length for length in lengths], [[]] * len(lengths), PAD, CPU).starts


# ---------------------------------------------------------------- rows


@given(examples=EXAMPLES)
def test_joined_each_example_has_a_row_of_its_own_and_padding_comes_last(examples):
    rows = padded_batch(*sides(examples), PAD, CPU)
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    assert (
        rows.ids.shape == rows.is_prompt.shape == rows.is_answer.shape == (len(examples), longest)
    )
    assert rows.starts is None
    for i, (prompt, answer) in enumerate(examples):
        padding = longest - len(prompt) - len(answer)
        assert rows.ids[i].tolist() == [*prompt, *answer] + [PAD] * padding
        assert rows.is_prompt[i].tolist() == [True] * len(prompt) + [False] * (
            longest - len(prompt)
        )
        assert (
            rows.is_answer[i].tolist()
            == [False] * len(prompt) + [True] * len(answer) + [False] * padding
        )
    assert rows.positions.tolist() == list(range(longest))


@given(examples=EXAMPLES)
def test_packed_the_examples_follow_one_another_in_a_single_row_and_count_from_zero(examples):
    rows = packed_batch(*sides(examples), PAD, CPU)
    begin = 0
    for prompt, answer in examples:
        middle, end = begin + len(prompt), begin + len(prompt) + len(answer)
        assert rows.ids[0, begin:end].tolist() == [*prompt, *answer]
        assert rows.is_prompt[0, begin:end].tolist() == [True] * len(prompt) + [False] * len(answer)
        assert torch.equal(rows.is_answer[0, begin:end], ~rows.is_prompt[0, begin:end])
        assert rows.starts[0, begin:end].tolist() == [begin] * (end - begin)
        assert rows.positions[0, begin:end].tolist() == list(range(end - begin))
        assert middle == begin + int(rows.is_prompt[0, begin:end].sum())
        begin = end
    padding = slice(begin, None)
    assert (rows.ids[0, padding] == PAD).all() and (rows.starts[0, padding] == begin).all()
    assert not rows.is_prompt[0, padding].any() and not rows.is_answer[0, padding].any()


@pytest.mark.parametrize(
    "lengths, whole",
    [([1], BLOCK), ([BLOCK - 1], BLOCK), ([BLOCK], BLOCK), ([BLOCK, 1], 2 * BLOCK)],
)
def test_a_packed_row_is_padded_to_whole_tiles_and_no_further(lengths, whole):
    assert starts_of(lengths).shape == (1, whole)


def test_a_packed_row_without_padding_has_no_example_but_the_given():
    assert starts_of([100, 28]).unique().tolist() == [0, 100]
    assert starts_of([100, 27]).unique().tolist() == [0, 100, 127]


@pytest.mark.parametrize("make", [join, pack])
@pytest.mark.parametrize("prompts, answers", [([], []), ([[]], [[1]]), ([[1], []], [[1], [1]])])
def test_an_empty_batch_and_an_empty_prompt_are_refused(make, prompts, answers):
    with pytest.raises(
        ValueError, match="batch: expected at least one prompt, and at least one token in each"
    ):
        make(prompts, answers, PAD, CPU)


@pytest.mark.parametrize("make", [join, pack])
def test_an_answer_for_every_prompt_is_wanted(make):
    with pytest.raises(ValueError):
        make([[1], [2]], [[1]], PAD, CPU)


# ---------------------------------------------------------------- what predicts what


@pytest.mark.parametrize("make", [join, pack])
@given(examples=EXAMPLES, data=st.data())
def test_a_supervised_token_is_predicted_from_the_one_before_it_in_its_own_example(
    make, examples, data
):
    """Examples hold tokens that are all different, so that a token tells its place."""
    names = iter(range(1, 1_000))
    prompts, answers = ([[next(names) for _ in side] for side in both] for both in sides(examples))
    rows = make(prompts, answers, PAD, CPU)
    wholes = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    chosen = data.draw(st.sets(st.sampled_from([token for whole in wholes for token in whole])))
    supervised = torch.isin(rows.ids, torch.tensor(sorted(chosen), dtype=torch.int64))
    pairs = [(a, b) for whole in wholes for a, b in pairwise(whole) if b in chosen]
    if not pairs:
        with pytest.raises(ValueError, match="objective='some': the batch has no supervised token"):
            rows.predictors(supervised, "some")
        return
    before, predicted = (
        rows.ids[rows.predictors(supervised, "some")],
        rows.ids[rows.predicted(supervised)],
    )
    assert list(zip(before.tolist(), predicted.tolist(), strict=True)) == pairs


def test_padding_that_is_supervised_is_predicted_too():
    rows = padded_batch([[1, 2], [3]], [[4], []], PAD, CPU)
    everything = torch.ones_like(rows.is_prompt)
    assert rows.predictors(everything, "some").tolist() == [[True, True, False]] * 2
    assert rows.predicted(everything).tolist() == [[False, True, True]] * 2


def test_the_last_token_of_an_example_predicts_nothing_of_the_next():
    rows = packed_batch([[1, 2], [3, 4]], [[5], [6]], PAD, CPU)
    assert rows.predictors(rows.is_prompt, "some")[0].nonzero().flatten().tolist() == [0, 3]
    assert rows.predictors(rows.is_answer, "some")[0].nonzero().flatten().tolist() == [1, 4]


# ---------------------------------------------------------------- what attention reads


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_token_reads_its_own_example_up_to_itself(lengths):
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
def test_flex_attention_visits_every_tile_in_which_something_is_read_and_no_other(lengths):
    """Tiles are named once, the mask is applied within each of them, and the backward pass visits the same ones."""
    starts = starts_of(lengths)
    mask, tiles = block_mask(starts), starts.shape[1] // BLOCK
    needed = dense_mask(starts)[0, 0].view(tiles, BLOCK, tiles, BLOCK).any(3).any(1)
    for counts, indices, wanted in (
        (mask.kv_num_blocks, mask.kv_indices, needed),
        (mask.q_num_blocks, mask.q_indices, needed.T),
    ):
        for count, row, tile in zip(
            counts[0, 0].tolist(), indices[0, 0].tolist(), wanted, strict=True
        ):
            assert sorted(row[:count]) == tile.nonzero().flatten().tolist()
    assert mask.full_kv_num_blocks is None
