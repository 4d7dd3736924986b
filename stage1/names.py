"""The objectives, loss terms and conditions of the study by name. Needs no torch.

A new objective touches two places: its entry in `OBJECTIVES` and its function in `objectives.py`.
Tables, figures, sweeps and the report take order, labels and colours from here.
"""

from dataclasses import dataclass
from typing import Literal

# Okabe & Ito's palette, distinct under the common colour deficiencies.
VERMILION, BLUE, ORANGE, GREEN = "#D55E00", "#0072B2", "#E69F00", "#009E73"
PURPLE, SKY, BROWN = "#CC79A7", "#56B4E9", "#8C6D31"
BLACK, DARK, GREY, LIGHT = "#000000", "#444444", "#7F7F7F", "#A6A6A6"


@dataclass(frozen=True)
class Objective:
    """A training objective."""

    label: str
    """Its name in prose."""
    colour: str
    sentence: str
    """Its glossary entry."""
    reads: Literal["examples", "tokens"] = "examples"
    """`tokens`: needs only the counts of prompt tokens, and no pass through the language model."""
    generates: bool = False
    """Whether training generates answers with the adapter."""
    is_fix: bool = False
    """Whether it is one of the analysis's fixes, among which the report recommends."""


@dataclass(frozen=True)
class LossTerm:
    """A term of a loss."""

    unit: str
    colour: str
    sentence: str
    uncertainty_factor: float = 1.0
    """Factor of 1 / variance in the loss (Kendall et al., 2018): 0.5 for a squared error, 1 for a
    cross-entropy."""


@dataclass(frozen=True)
class Condition:
    """What the frozen model reads at evaluation, besides the adapters' embeddings."""

    colour: str
    sentence: str
    is_floor: bool = False
    """Whether the question comes without its own context."""


OBJECTIVES = {
    "as_found": Objective(
        "the objective as found",
        VERMILION,
        "The analysed code: reconstruction and cross-entropy of prompt, padding and answer.",
    ),
    "option1_reconstruction": Objective(
        "option 1 (reconstruction alone)",
        BLUE,
        "Fix option 1: squared error of the prompt's embeddings, without the language model.",
        reads="tokens",
        is_fix=True,
    ),
    "option2_prompt_ce": Objective(
        "option 2 as written (cross-entropy of the prompt)",
        ORANGE,
        "Fix option 2 as the analysis writes it: cross-entropy of the reconstructed prompt's own "
        "tokens.",
        is_fix=True,
    ),
    "option2_on_policy": Objective(
        "option 2 as meant (generated answers)",
        GREEN,
        "Fix option 2 as its text means it: on answers generated during training, KL divergence "
        "from the frozen model reading the original prompt.",
        generates=True,
        is_fix=True,
    ),
    "option3_teacher_forced": Objective(
        "option 3 (reconstruction and teacher-forced cross-entropy)",
        PURPLE,
        "Fix option 3: reconstruction, and cross-entropy of the answer and its end token.",
        is_fix=True,
    ),
    "answer_ce": Objective(
        "answer cross-entropy alone", SKY, "Control: option 3 without its reconstruction term."
    ),
    "distill": Objective(
        "distillation on gold answers",
        BROWN,
        "Control: on gold answers, KL divergence from the frozen model reading the original "
        "prompt.",
    ),
}
FIXES = [name for name, objective in OBJECTIVES.items() if objective.is_fix]

TERMS = {
    "reconstruction": LossTerm(
        "squared error per dimension", BLUE, "Squared error of the prompt's embeddings.", 0.5
    ),
    "cross_entropy": LossTerm("nats per token", VERMILION, "Cross-entropy of supervised tokens."),
    "kl": LossTerm(
        "nats per token",
        GREEN,
        "KL divergence from the frozen model reading the original prompt.",
    ),
}

CONDITIONS = {
    "text": Condition(BLACK, "Token ids, as the language model is normally used."),
    "embeddings": Condition(
        BLACK, "The original embeddings of the same tokens: the ceiling; must equal `text`."
    ),
    "codebook": Condition(
        DARK, "Lookup: each compressed token is replaced by the nearest vocabulary entry."
    ),
    "pca_inverse": Condition(GREY, "The linear inverse of the compression, without an adapter."),
    "random_projection": Condition(
        LIGHT, "A random projection to the same width and its linear inverse."
    ),
    "question_only": Condition(LIGHT, "Floor: the question without its context.", is_floor=True),
    "shuffled_context": Condition(
        LIGHT, "Floor: the question with another article's context.", is_floor=True
    ),
}
FLOORS = [name for name, condition in CONDITIONS.items() if condition.is_floor]
