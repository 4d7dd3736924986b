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
from torch.nn.functional import embedding

from stage1 import fused_loss
from stage1.config import StudyConfig, nearest, require
from stage1.generation import generate_ids
from stage1.language_model import FrozenLM
from stage1.rows import Rows, check_prompts, join, pack


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
    keeps_gold: Sequence[bool] | None = None
    """Which examples keep their gold answer in on-policy training; None stands for the first `gold_fraction`."""

    def __len__(self) -> int:
        return len(self.prompts)

    def chosen(self, places: Sequence[int]) -> "Examples":
        """Some of the examples."""
        kept = None if self.keeps_gold is None else [self.keeps_gold[i] for i in places]
        return Examples([self.prompts[i] for i in places], [self.answers[i] for i in places], kept)


@dataclass(frozen=True)
class Tokens:
    """A batch of prompt tokens without their order: distinct token ids and how often each occurs."""

    ids: Int[Tensor, " N"]
    counts: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.ids)


def lay_out(prompts: Sequence[list[int]], answers: Sequence[list[int]], setting: Setting) -> Rows:
    """Prompts and answers in one padded row each, or packed into one row where the config asks for that.

    Raises ValueError for an empty batch or an empty prompt.
    """
    make = pack if setting.config.packed else join
    return make(prompts, answers, setting.lm.pad_token, setting.lm.device)


def embeddings(adapter: nn.Module, rows: Rows, setting: Setting) -> Float[Tensor, "B T D"]:
    """Input embeddings of the rows: the adapter's for the prompt, original ones elsewhere. The adapter works token by
    token, so it decodes each distinct token once."""
    original = setting.lm.embed(rows.ids)
    distinct, place = rows.ids[rows.prompt].unique(return_inverse=True)
    decoded = adapter(setting.codebook[distinct]).to(original.dtype)
    return original.masked_scatter(rows.prompt[..., None], embedding(place, decoded))


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
    predicts, targets = rows.before(supervised, name), rows.ids[rows.predicted(supervised)]
    hidden = setting.lm.hidden(embeddings(adapter, rows, setting), predicts, mask, rows.begins)
    ce = fused_loss.mean_cross_entropy(hidden, setting.lm.head, targets, setting.config.compiled)
    return Term(ce, len(targets))


def token_kl(adapter: nn.Module, rows: Rows, setting: Setting, name: str) -> Term:
    """Mean KL divergence in nats per answer token, from the frozen model reading the original prompt to the same model
    reading the adapter's: sum of p log(p / q) over the vocabulary."""
    lm, predicts = setting.lm, rows.before(rows.answer, name)
    with torch.no_grad():
        teacher = lm.hidden(lm.embed(rows.ids), predicts, begins=rows.begins)
    student = lm.hidden(embeddings(adapter, rows, setting), predicts, begins=rows.begins)
    return Term(fused_loss.mean_kl(student, lm.head, teacher, setting.config.compiled), len(student))


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
    rows = lay_out(batch.prompts, [[]] * len(batch.prompts), setting)
    return {"cross_entropy": token_ce(adapter, rows, rows.prompt, setting, "option2_prompt_ce")}


def option2_on_policy(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Fix option 2 as meant: on answers generated now from the adapter's prompt, KL to the frozen model reading the
    original prompt. The first `gold_fraction` of the (shuffled) batch keeps its gold answers.

    On-policy distillation with forward KL (Agarwal et al., 2024, GKD).
    """
    check_prompts(batch.prompts)
    config, count = setting.config, len(batch.prompts)
    gold = batch.keeps_gold or [place < round(config.gold_fraction * count) for place in range(count)]
    asked = [prompt for prompt, kept in zip(batch.prompts, gold, strict=True) if not kept]
    own = iter(generate_own(adapter, asked, setting))
    answers = [answer if kept else next(own) for answer, kept in zip(batch.answers, gold, strict=True)]
    return {"kl": token_kl(adapter, lay_out(batch.prompts, answers, setting), setting, "option2_on_policy")}


def generate_own(adapter: nn.Module, prompts: Sequence[list[int]], setting: Setting) -> list[list[int]]:
    """Answers that the frozen model gives to the adapter's prompts, with their end tokens."""
    if not prompts:
        return []
    config = setting.config
    return generate_ids(
        setting.lm, prompts, lambda ids: adapter(setting.codebook[ids]), config.max_new_tokens, config.temperature
    )


def option3_teacher_forced(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Fix option 3: reconstruction of the prompt tokens + cross-entropy of the answer tokens and the end token."""
    config, lm, name = setting.config, setting.lm, "option3_teacher_forced"
    rows = lay_out(batch.prompts, batch.answers, setting)
    error = reconstruction(adapter, prompt_tokens(batch.prompts, lm.device), setting, name)
    ce = token_ce(adapter, rows, rows.answer, setting, name)
    return {
        "reconstruction": error._replace(weight=config.reconstruction_weight),
        "cross_entropy": ce._replace(weight=config.ce_weight),
    }


def answer_ce(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Control: cross-entropy of the answer tokens and the end token alone."""
    rows = lay_out(batch.prompts, batch.answers, setting)
    return {"cross_entropy": token_ce(adapter, rows, rows.answer, setting, "answer_ce")}


def distill(adapter: nn.Module, batch: Examples, setting: Setting) -> Terms:
    """Control: on the gold answer, KL to the frozen model reading the original prompt."""
    rows = lay_out(batch.prompts, batch.answers, setting)
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
