"""What the frozen model answers: batched greedy generation under each condition, scored per example."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from stage1.config import StudyConfig
from stage1.language_model import FrozenLM
from stage1.prompts import Encoded
from stage1.scoring import exact_match, f1

Embed = Callable[[Int[Tensor, "B T"]], Float[Tensor, "B T D"]]


class Answer(NamedTuple):
    """One generated answer: its text, its token ids without the end token, and whether the end token came."""

    text: str
    ids: list[int]
    ended: bool


def left_pad(prompts: Sequence[list[int]], pad: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Prompts as one batch that ends flush right, and the mask of real tokens, made from lengths and never from ids."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) >= (longest - lengths)[:, None]


def by_length(prompts: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, longest first, so that the largest batch is met first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.inference_mode()
def generate_batch(
    lm: FrozenLM, prompts: Sequence[list[int]], embed: Embed | None, max_new_tokens: int
) -> list[Answer]:
    """Greedy answers to one batch. `embed` maps token ids to input embeddings; None passes the token ids themselves."""
    ids, mask = (tensor.to(lm.device) for tensor in left_pad(prompts, lm.pad_token))
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=lm.end_tokens, pad_token_id=lm.pad_token
    )
    inputs = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids).to(lm.model.dtype)}
    output = lm.model.generate(**inputs, attention_mask=mask.long(), generation_config=settings)
    new = output[:, ids.shape[1] :] if embed is None else output  # from embeddings, only new tokens come back
    return [read_answer(lm, row) for row in new.tolist()]


def read_answer(lm: FrozenLM, row: list[int]) -> Answer:
    """The tokens up to the first end token, as text."""
    stop = next((place for place, token in enumerate(row) if token in lm.end_tokens), None)
    ids = row[:stop]
    return Answer(lm.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids, stop is not None)


def generate(
    lm: FrozenLM,
    prompts: Sequence[list[int]],
    embed: Embed | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    description: str = "generate",
) -> list[Answer]:
    """Greedy answers to all prompts, in the order given. Batches are of similar length; padding moves no position."""
    answers: dict[int, Answer] = {}
    batches = by_length(prompts, batch_size)
    for batch in tqdm(batches, desc=description, file=sys.stdout):
        answers |= zip(batch, generate_batch(lm, [prompts[i] for i in batch], embed, max_new_tokens), strict=True)
    return [answers[i] for i in range(len(prompts))]


def score_answers(encoded: Encoded, answers: Sequence[Answer], condition: str) -> pd.DataFrame:
    """One row per example: id, title, condition, prediction, golds, f1 and em in percent, ended, tokens."""
    return pd.DataFrame(
        {
            "id": encoded.ids,
            "title": encoded.titles,
            "condition": condition,
            "prediction": [answer.text for answer in answers],
            "golds": encoded.golds,
            "f1": [f1(answer.text, golds) for answer, golds in zip(answers, encoded.golds, strict=True)],
            "em": [exact_match(answer.text, golds) for answer, golds in zip(answers, encoded.golds, strict=True)],
            "ended": [answer.ended for answer in answers],
            "tokens": [len(answer.ids) for answer in answers],
        }
    )


def evaluate(lm: FrozenLM, encoded: Encoded, condition: str, config: StudyConfig) -> pd.DataFrame:
    """Generate and score under `text` (token ids) or `embeddings` (the same ids through the embedding table)."""
    conditions = {"text": None, "embeddings": lm.embed}
    if condition not in conditions:
        raise ValueError(f"condition={condition!r}: expected one of {', '.join(conditions)}")
    answers = generate(
        lm, encoded.prompts, conditions[condition], config.max_new_tokens, config.eval_batch_size, condition
    )
    return score_answers(encoded, answers, condition)
