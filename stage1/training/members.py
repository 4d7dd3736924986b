"""The members of a group of adapters that train together: each one's terms, curve and error."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from stage1 import names
from stage1.config import StudyConfig
from stage1.loss_parts import Reconstruction, Terms
from stage1.training.layouts import Layout
from stage1.training.loop import Progress, check_values, curve_row
from stage1.training.microbatches import TrainingError


@dataclass
class Member:
    """One adapter of a group: its config, what its objective is made of, its progress."""

    config: StudyConfig
    reconstructions: dict[str, Reconstruction]
    layouts: dict[str, Layout]
    """Rows of the whole training set, for the terms that pass through the language model."""
    weights: dict[str, float]
    """The weight of every such term."""
    divergences: set[str]
    """Which of them are KL divergences; the others are cross-entropies."""
    progress: Progress = field(default_factory=lambda: Progress(0, [], [], []))
    error: TrainingError | None = None

    @property
    def objective(self) -> names.Objective:
        return names.OBJECTIVES[self.config.objective]


def read_values(terms: Sequence[Terms], norms: Float[Tensor, " S"]) -> list[dict[str, float]]:
    """Return every member's terms and gradient norm as numbers, in one transfer."""
    flat = [term.value.detach() for each in terms for term in each.values()]
    numbers = iter(torch.cat([torch.stack(flat), norms]).tolist())
    values = [{name: next(numbers) for name in each} for each in terms]
    return [each | {"gradient_norm": next(numbers)} for each in values]


def record_step(member: Member, terms: Terms, values: dict[str, float], about: dict) -> None:
    """Write a member's row of the curve, or the error where it diverged."""
    try:
        check_values(values, member.progress.curve, about["step"])
    except TrainingError as error:
        member.error = error
        return
    member.progress.curve.append(curve_row(terms, values) | about)
    member.progress.step = about["step"] + 1
