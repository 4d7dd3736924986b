"""The training objectives: one pure function each, from adapter and batch to named loss terms.

Every function says which tokens it supervises. Masks come from lengths, never from token ids, and only supervised
positions reach the output head. The frozen model reads the adapter's embeddings for the prompt; gold or generated
answers follow as original embeddings, as they do when the model generates.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from stage1.config import StudyConfig, nearest, require
from stage1.generation import generate_ids
from stage1.language_model import FrozenLM


class Term(NamedTuple):
    """One term of a loss: its mean over the supervised tokens, how many tokens those are, and its weight in the sum."""

    value: Float[Tensor, ""]
    tokens: int
    weight: float = 1.0


Terms = dict[str, Term]


@dataclass(frozen=True)
class Setting:
    """What every objective is given besides adapter and batch."""

    lm: FrozenLM
    codebook: Float[Tensor, "V K"]
    """The compressed vocabulary: row i is the compressed embedding of token i, all that an adapter sees of it."""
    config: StudyConfig
    variance: float
    """Variance per dimension of the training prompts' embeddings, which turns a squared error into fvu."""


@dataclass(frozen=True)
class Examples:
    """A batch of prompts and gold answers (with their end tokens), as token ids."""

    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]


@dataclass(frozen=True)
class Tokens:
    """A batch of prompt tokens without their order: distinct token ids and how often each occurs."""

    ids: Int[Tensor, " N"]
    counts: Int[Tensor, " N"]


class Rows(NamedTuple):
    """Prompt and answer of each example in one row, padding last."""

    ids: Int[Tensor, "B T"]
    prompt: Bool[Tensor, "B T"]
    answer: Bool[Tensor, "B T"]


def check_prompts(prompts: Sequence[list[int]]) -> None:
    if not prompts or not all(prompts):
        raise ValueError("batch: expected at least one prompt, and at least one token in each")


def join(prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, device: torch.device) -> Rows:
    """Rows with their masks, made from lengths. Raises ValueError for an empty batch or an empty prompt."""
    check_prompts(prompts)
    begin = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    end = begin + torch.tensor([len(answer) for answer in answers], device=device)[:, None]
    longest = int(end.max())
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in whole], device=device)
    place = torch.arange(longest, device=device)
    return Rows(ids, place < begin, (place >= begin) & (place < end))


def embeddings(adapter: nn.Module, rows: Rows, setting: Setting) -> Float[Tensor, "B T D"]:
    """Input embeddings of the rows: the adapter's for the prompt, original ones elsewhere."""
    original = setting.lm.embed(rows.ids)
    return torch.where(rows.prompt[..., None], adapter(setting.codebook[rows.ids]).to(original.dtype), original)


def before(supervised: Bool[Tensor, "B T"], name: str) -> Bool[Tensor, "B T"]:
    """The positions that predict the supervised tokens. Raises ValueError where there are none."""
    if not supervised[:, 1:].any():
        raise ValueError(f"objective={name!r}: the batch has no supervised token; expected at least one")
    return torch.cat([supervised[:, 1:], torch.zeros_like(supervised[:, :1])], dim=1)


def token_ce(
    adapter: nn.Module,
    rows: Rows,
    supervised: Bool[Tensor, "B T"],
    setting: Setting,
    name: str,
    mask: Bool[Tensor, "B T"] | None = None,
) -> Term:
    """Mean cross-entropy in nats per supervised token, of the frozen model reading the adapter's prompt. `mask` tells
    what attention may read, where padding stands among the tokens."""
    logits = setting.lm.logits(embeddings(adapter, rows, setting), before(supervised, name), mask)
    targets = rows.ids[:, 1:][supervised[:, 1:]]
    return Term(cross_entropy(logits, targets), len(targets))


def token_kl(adapter: nn.Module, rows: Rows, setting: Setting, name: str) -> Term:
    """Mean KL divergence in nats per answer token, from the frozen model reading the original prompt to the same model
    reading the adapter's: sum of p log(p / q) over the vocabulary."""
    predicts = before(rows.answer, name)
    with torch.no_grad():
        p = setting.lm.logits(setting.lm.embed(rows.ids), predicts).log_softmax(-1)
    q = setting.lm.logits(embeddings(adapter, rows, setting), predicts).log_softmax(-1)
    return Term(kl_div(q, p, reduction="batchmean", log_target=True), len(q))


def mse(adapter: nn.Module, tokens: Tokens, setting: Setting, name: str) -> Term:
    """Mean squared error per dimension and prompt token."""
    total = int(tokens.counts.sum())
    require(total > 0, "objective", name, "a batch with at least one supervised token")
    error = adapter(setting.codebook[tokens.ids]) - setting.lm.embedding_table[tokens.ids].float()
    return Term((tokens.counts.float() / total) @ error.square().mean(1), total)


def reconstruction(adapter: nn.Module, tokens: Tokens, setting: Setting, name: str) -> Term:
    """The reconstruction term that the config asks for: mse, or fvu, which is mse over the embeddings' variance."""
    term = mse(adapter, tokens, setting, name)
    return term if setting.config.reconstruction_term == "mse" else term._replace(value=term.value / setting.variance)


def prompt_tokens(prompts: Sequence[list[int]], device: torch.device) -> Tokens:
    """The tokens of the prompts, each distinct one once: the reconstruction error depends on nothing else."""
    flat = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64, device=device)
    return Tokens(*flat.unique(return_counts=True))


def padded(batch: Examples, setting: Setting) -> tuple[Rows, Bool[Tensor, "B T"]]:
    """Rows with prompt and answer each padded on the right to its budget, and a mask of the tokens that are real."""
    check_prompts(batch.prompts)
    pad, device = setting.lm.pad_token, setting.lm.device
    begin, room = setting.config.max_prompt_tokens, setting.config.max_answer_tokens
    prompts = [prompt + [pad] * (begin - len(prompt)) for prompt in batch.prompts]
    answers = [answer + [pad] * (room - len(answer)) for answer in batch.answers]
    lengths = torch.tensor([[len(ids) for ids in side] for side in (batch.prompts, batch.answers)], device=device)
    place = torch.arange(begin + room, device=device)
    real = torch.where(place < begin, place < lengths[0][:, None], place - begin < lengths[1][:, None])
    return join(prompts, answers, pad, device), real


def as_found(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """The analysed code: reconstruction of the prompt tokens + cross-entropy of prompt, padding and answer, each with
    weight 1. Both sides are padded on the right to their budgets; attention skips the padding, the labels do not."""
    rows, real = padded(batch, setting)
    tokens = prompt_tokens(batch.prompts, setting.lm.device)
    return {
        "reconstruction": mse(adapter, tokens, setting, "as_found"),
        "cross_entropy": token_ce(adapter, rows, torch.ones_like(real), setting, "as_found", real),
    }


def option1_reconstruction(adapter: nn.Module, batch: Tokens, setting: Setting) -> Terms:
    """Fix option 1: the squared error of prompt tokens alone, from vocabulary table and counts; no language model."""
    return {"reconstruction": reconstruction(adapter, batch, setting, "option1_reconstruction")}


def option2_prompt_ce(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Fix option 2 as written: the reconstructed prompt alone is read, and its own next tokens are the labels."""
    rows = join(batch.prompts, [[]] * len(batch.prompts), setting.lm.pad_token, setting.lm.device)
    return {"cross_entropy": token_ce(adapter, rows, rows.prompt, setting, "option2_prompt_ce")}


def option2_on_policy(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Fix option 2 as meant: on answers generated now from the adapter's prompt, KL to the frozen model reading the
    original prompt. The first `gold_fraction` of the (shuffled) batch keeps its gold answers.

    On-policy distillation with forward KL (Agarwal et al., 2024, GKD).
    """
    check_prompts(batch.prompts)
    config, lm = setting.config, setting.lm
    gold = round(config.gold_fraction * len(batch.prompts))
    answers = list(batch.answers[:gold])
    if gold < len(batch.prompts):
        answers += generate_ids(
            lm,
            batch.prompts[gold:],
            lambda ids: adapter(setting.codebook[ids]),
            config.max_new_tokens,
            config.temperature,
        )
    rows = join(batch.prompts, answers, lm.pad_token, lm.device)
    return {"kl": token_kl(adapter, rows, setting, "option2_on_policy")}


def option3_teacher_forced(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Fix option 3: reconstruction of the prompt tokens + cross-entropy of the answer tokens and the end token."""
    config, lm, name = setting.config, setting.lm, "option3_teacher_forced"
    rows = join(batch.prompts, batch.answers, lm.pad_token, lm.device)
    error = reconstruction(adapter, prompt_tokens(batch.prompts, lm.device), setting, name)
    ce = token_ce(adapter, rows, rows.answer, setting, name)
    return {
        "reconstruction": error._replace(weight=config.reconstruction_weight),
        "cross_entropy": ce._replace(weight=config.ce_weight),
    }


def answer_ce(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Control: cross-entropy of the answer tokens and the end token alone."""
    rows = join(batch.prompts, batch.answers, setting.lm.pad_token, setting.lm.device)
    return {"cross_entropy": token_ce(adapter, rows, rows.answer, setting, "answer_ce")}


def distill(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Control: on the gold answer, KL to the frozen model reading the original prompt."""
    rows = join(batch.prompts, batch.answers, setting.lm.pad_token, setting.lm.device)
    return {"kl": token_kl(adapter, rows, setting, "distill")}


Objective = Callable[[nn.Module, Examples | Tokens, Setting], Terms]
FIXES = (option1_reconstruction, option2_prompt_ce, option2_on_policy, option3_teacher_forced)
OBJECTIVES: dict[str, Objective] = {function.__name__: function for function in (as_found, *FIXES, answer_ce, distill)}


def find(name: str) -> Objective:
    """The objective of that name. Raises ValueError with the nearest one where there is none."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r}: expected one of {', '.join(OBJECTIVES)}{nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def reads_tokens(objective: Objective) -> bool:
    """Whether the objective needs the tokens of the prompts only, without their order and answers."""
    return inspect.signature(objective).parameters["batch"].annotation is Tokens


def total(terms: Terms) -> Float[Tensor, ""]:
    return sum((term.weight * term.value for term in terms.values()), start=torch.tensor(0.0))
