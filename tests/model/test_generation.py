"""Generation: both input forms agree, padding and batching change nothing, stopping, sampling."""

import json
import random
import shutil
from itertools import pairwise

import pytest
import torch

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import Encoded, encode
from stage1.model import loading
from stage1.model.generation import (
    Answer,
    by_length,
    first_end,
    generate,
    generate_ids,
    left_pad,
    read_answer,
)
from stage1.scoring.squad import f1

CONFIG = StudyConfig(device="cpu")


@pytest.fixture(scope="module")
def encoded(tokenizer) -> Encoded:
    """100 test questions on passages with seen names."""
    return encode(almanac.table(100, split="test", names="seen").to_pylist(), tokenizer, CONFIG)


@pytest.fixture(scope="module")
def answers(lm, encoded) -> list[Answer]:
    return generate(lm, encoded.prompts)


@pytest.fixture(params=["text", "embeddings"])
def embed(request, lm):
    """The shipped model's input: token ids themselves, or their embeddings."""
    return lm.embed if request.param == "embeddings" else None


def random_prompts(n: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[1, *(rng.randrange(3, 4_096) for _ in range(rng.randrange(3, 30)))] for _ in range(n)]


# ---------------------------------------------------------------- batches


def test_masks_are_made_from_lengths_and_not_from_ids():
    ids, mask = left_pad([[7, 0, 0], [0], [0, 0, 0, 5, 0]], pad=0)
    assert ids.tolist() == [[0, 0, 7, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 5, 0]]
    assert mask.tolist() == [[False] * 2 + [True] * 3, [False] * 4 + [True], [True] * 5]


def test_padding_is_the_pad_token_and_ends_where_the_prompt_begins():
    ids, mask = left_pad([[4, 5], [6, 7, 8]], pad=9)
    assert ids.tolist() == [[9, 4, 5], [6, 7, 8]]
    assert ids[~mask].tolist() == [9]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_hold_every_prompt_once_and_are_of_similar_length(size):
    prompts = random_prompts(20)
    batches = by_length(prompts, size)
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    assert all(0 < len(batch) <= size for batch in batches)
    lengths = [[len(prompts[i]) for i in batch] for batch in batches]
    assert all(min(before) >= max(after) for before, after in pairwise(lengths))


# ---------------------------------------------------------------- the shipped model


def test_the_shipped_model_answers_almost_every_question(encoded, answers):
    scores = [f1(answer.text, golds) for answer, golds in zip(answers, encoded.golds, strict=True)]
    assert sum(scores) / len(scores) >= 97
    assert all(answer.ended for answer in answers)


def test_text_and_embeddings_give_the_same_answers(lm, encoded, answers):
    assert generate(lm, encoded.prompts, lm.embed) == answers


def test_the_batch_size_changes_no_answer(lm, encoded, answers, embed):
    assert generate(lm, encoded.prompts[:20], embed, batch_size=1) == answers[:20]


def test_answers_come_in_the_order_of_their_prompts(lm, encoded, answers):
    order = random.Random(0).sample(range(100), 100)
    shuffled = generate(lm, [encoded.prompts[i] for i in order], batch_size=16)
    assert shuffled == [answers[i] for i in order]
    assert len({answer.text for answer in answers}) > 50


def test_huge_values_in_padding_slots_change_no_answer(lm, encoded, answers):
    prompts = encoded.prompts[:40]
    assert len({len(prompt) for prompt in prompts}) > 5

    def poisoned(ids):
        return lm.embed(ids).masked_fill((ids == lm.pad_token)[..., None], 1e4)

    assert generate(lm, prompts, poisoned) == answers[:40]


def test_the_model_reads_what_embed_returns(lm, encoded, answers):
    blank = generate(lm, encoded.prompts[:10], lambda ids: torch.zeros_like(lm.embed(ids)))
    assert blank != answers[:10]


def test_generation_does_not_change_the_model(lm, encoded):
    with lm.unchanged():
        generate(lm, encoded.prompts[:2], lm.embed)


# ---------------------------------------------------------------- stopping


def test_an_answer_has_no_end_token_and_no_padding(lm, answers):
    for answer in answers:
        assert 0 < len(answer.ids) < 20
        assert not {lm.tokenizer.eos_token_id, lm.pad_token} & set(answer.ids)
        assert answer.text and answer.text == answer.text.strip()


def test_an_answer_cut_by_the_limit_has_not_ended(lm, encoded, answers, embed):
    cut = generate(lm, encoded.prompts[:20], embed, max_new_tokens=1)
    assert [answer.ids for answer in cut] == [answer.ids[:1] for answer in answers[:20]]
    assert not any(answer.ended for answer in cut)


def test_generation_stops_at_any_end_token(lm, encoded, answers, monkeypatch):
    ends = [lm.tokenizer.eos_token_id, answers[0].ids[1]]
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", ends)
    steps = []
    hook = lm.model.register_forward_hook(lambda *_: steps.append(1))
    (stopped,) = generate(lm, encoded.prompts[:1])
    hook.remove()
    assert (stopped.ids, stopped.ended) == (answers[0].ids[:1], True)
    assert len(steps) == 2


# ---------------------------------------------------------------- any model


@pytest.mark.parametrize("condition", ["text", "embeddings"])
def test_prompts_that_contain_the_pad_token_are_read_in_full(tiny_lm, condition):
    embed = tiny_lm.embed if condition == "embeddings" else None
    prompts = [[*prompt[:2], tiny_lm.pad_token, *prompt[2:]] for prompt in random_prompts(8)]
    prompts += [[tiny_lm.pad_token, *prompt] for prompt in random_prompts(4)]
    alone = [generate(tiny_lm, [prompt], embed, max_new_tokens=5)[0] for prompt in prompts]
    assert generate(tiny_lm, prompts, embed, max_new_tokens=5) == alone


def test_no_prompts_give_no_answers(tiny_lm):
    assert generate(tiny_lm, []) == []


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.8}, {"do_sample": True, "temperature": 5.0}, {"min_new_tokens": 8}],
)
def test_decoding_is_greedy_whatever_the_models_generation_config_says(
    tiny_folder, tiny_lm, tmp_path, settings
):
    prompts = random_prompts(20)
    fourth = generate(tiny_lm, prompts)[0].ids[3]
    ends = {"eos_token_id": [tiny_lm.tokenizer.eos_token_id, fourth]}
    folder = shutil.copytree(tiny_folder, tmp_path / "lm")
    path = folder / "generation_config.json"
    answers = []
    for changes in (ends, ends | settings):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        lm = loading.load(CONFIG.replace(language_model=str(folder)))
        answers.append(generate(lm, prompts))
    assert len(answers[0][0].ids) <= 3
    assert answers[1] == answers[0]


# ---------------------------------------------------------------- token ids of one batch


def test_new_ids_end_with_the_first_end_token(lm, encoded, answers, embed):
    rows = generate_ids(lm, encoded.prompts[:12], embed, 20)
    assert rows == [[*answer.ids, lm.tokenizer.eos_token_id] for answer in answers[:12]]
    assert len({len(row) for row in rows}) > 1


def test_new_ids_cut_by_the_limit_have_no_end_token(lm, tiny_lm, encoded, answers):
    rows = generate_ids(lm, encoded.prompts[:12], None, 1)
    assert rows == [answer.ids[:1] for answer in answers[:12]]
    lengths = {len(row) for row in generate_ids(tiny_lm, random_prompts(6), None, 3)}
    assert lengths == {3}  # a random model hardly ever ends


def test_new_ids_are_the_likeliest_next_tokens_by_the_models_own_logits(tiny_lm):
    prompts = random_prompts(3)
    for prompt, row in zip(prompts, generate_ids(tiny_lm, prompts, None, 5), strict=True):
        sequence = list(prompt)
        for token in row:
            logits = tiny_lm.model(input_ids=torch.tensor([sequence])).logits[0, -1]
            assert logits[token] >= logits.max() - 1e-5  # a near tie may go either way
            sequence.append(token)


def test_generation_needs_no_gradient_and_its_ids_serve_in_training(tiny_lm):
    scale = torch.ones((), requires_grad=True)
    embeddings = []

    def embed(ids):
        embeddings.append(scale * tiny_lm.embed(ids))
        return embeddings[-1]

    rows = generate_ids(tiny_lm, random_prompts(2), embed, 3)
    assert len(embeddings) == 1 and not embeddings[0].requires_grad
    loss = (scale * tiny_lm.embed(torch.tensor(rows))).sum()
    loss.backward()
    assert scale.grad is not None and torch.is_grad_enabled()


def test_the_embed_function_may_work_in_another_precision(tiny_folder):
    lm = loading.load(CONFIG.replace(language_model=str(tiny_folder), dtype="bfloat16"))
    prompts = random_prompts(2)
    rows = generate_ids(lm, prompts, lambda ids: lm.embed(ids).float(), 4)
    assert rows == generate_ids(lm, prompts, None, 4)


@pytest.mark.parametrize(
    "row, ids, ended",
    [([5, 2], [5], True), ([2], [], True), ([5, 6], [5, 6], False), ([5, 2, 6, 2], [5], True)],
)
def test_an_answer_is_read_up_to_its_first_end_token(lm, row, ids, ended):
    assert lm.end_tokens == [2] and first_end(lm, row) == len(ids)
    assert read_answer(lm, row) == Answer(lm.tokenizer.decode(ids).strip(), ids, ended)


# ---------------------------------------------------------------- sampling


@pytest.fixture
def steep_lm(tiny_lm):
    """A random model whose next token is near certain at low temperatures and open at high ones."""
    head = tiny_lm.model.get_output_embeddings().weight
    with torch.no_grad():
        head.normal_(generator=torch.Generator().manual_seed(0))
    return tiny_lm


def sampled(lm, prompts, seed, temperature, length=3):
    torch.manual_seed(seed)
    return generate_ids(lm, prompts, None, length, temperature)


def test_samples_depend_on_torchs_seed_alone(steep_lm):
    prompts = random_prompts(4)
    first = sampled(steep_lm, prompts, 0, 1.0)
    assert sampled(steep_lm, prompts, 0, 1.0) == first != sampled(steep_lm, prompts, 1, 1.0)


def test_temperature_zero_draws_nothing(steep_lm):
    prompts = random_prompts(4)
    before = torch.manual_seed(0).get_state()
    greedy = generate_ids(steep_lm, prompts, None, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert greedy == generate_ids(steep_lm, prompts, None, 3, 0.0)


def test_a_low_temperature_samples_the_likeliest_tokens(steep_lm):
    prompts = random_prompts(4)
    assert sampled(steep_lm, prompts, 0, 1e-3) == generate_ids(steep_lm, prompts, None, 3)


def test_samples_follow_the_models_whole_distribution_at_the_temperature(steep_lm):
    """The mean log-probability of 2,000 tokens is minus the entropy, within 5 standard errors."""
    prompt, temperature = random_prompts(1)[0], 3.0
    logits = steep_lm.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    logp = (logits / temperature).log_softmax(-1)
    entropy = float(-(logp.exp() * logp).sum())
    error = float(((logp.exp() * logp.square()).sum() - entropy**2) ** 0.5) / 2_000**0.5
    drawn = torch.tensor(sampled(steep_lm, [prompt] * 2_000, 0, temperature, length=1)).flatten()
    assert float(-logp[drawn].mean()) == pytest.approx(entropy, abs=5 * error)
    fifty = set(logits.topk(50).indices.tolist())
    assert (torch.tensor([token not in fifty for token in drawn.tolist()])).double().mean() > 0.5
