"""The gallery of faults by name: what each does, where it was found, what gives it away.

Needs no torch. Their code is in `stage1/faults/`; the config's field `faults` switches them on.
The places named are in the public code that the analysis describes; see `docs/original.md`.
"""

from dataclasses import dataclass
from typing import Literal

from stage1.fields import nearest, require

NONE = "none"
"""What the config's field `faults` says of a sound run."""
JOIN = "+"
"""Stands between the names of several faults in one field."""
LABELLED = ("answer_ce", "option3_teacher_forced")
"""Objectives whose cross-entropy reads padded rows of a prompt and its gold answer."""


@dataclass(frozen=True)
class Fault:
    """A fault that a run may carry."""

    stage: Literal["data", "compression", "adapter", "training", "generation", "scoring"]
    sentence: str
    found: str
    """Where it was found, or how it comes about."""
    symptom: str
    """What in the records gives it away."""
    shares: bool = True
    """Whether adapters that carry it may share passes of the language model: what it does depends
    neither on the batch nor on the adapter's own modules."""
    needs_rows: bool = False
    """Whether it needs padded rows and an objective in `LABELLED`."""

    @property
    def needs_film(self) -> bool:
        """Whether it changes modules that only the adapter under study has, behind the PCA."""
        return self.stage == "adapter"


SCRIPT = "train_adapter_only.py"
FAULTS = {
    "no_end_token": Fault(
        "data",
        "Gold answers end without the end token.",
        f"{SCRIPT}: the answers are tokenized as they are",
        "`cross_entropy_tokens` lacks one per question; `ended` falls if the model learnt it here",
    ),
    "begin_token_in_answer": Fault(
        "data",
        "A begin token stands between prompt and answer.",
        f"{SCRIPT}: the tokenizer adds one to every text, answers included",
        "`right_first` and EM disagree: the first label is the same for every question",
    ),
    "space_before_answer": Fault(
        "data",
        "The prompt ends with a space, and the answer begins without its own.",
        f'{SCRIPT}: prompts end with "Answer: "',
        "`text`, read without any adapter, scores lower than with the model's own spacing",
    ),
    "right_truncation": Fault(
        "data",
        "Prompts are cut from the right, at 0.65 of their budget: long ones lose question and cue.",
        f"{SCRIPT}: truncation at 256 tokens from the right",
        "long prompts score near the floor; they end in the middle of the context",
    ),
    "duplicate_articles": Fault(
        "data",
        "Articles of the test split stand in the training split as well.",
        "splits drawn by question and not by article",
        "test F1 above selection F1, on names that no training passage should contain",
    ),
    "selection_is_test": Fault(
        "data",
        "The split that rates and checkpoints are chosen on is the one reported.",
        f"{SCRIPT}: the best of all epochs on the validation questions is kept and reported",
        "`selection_f1` equals `f1` to the last digit",
    ),
    "pad_is_end": Fault(
        "data",
        "The end token pads, although the model has a pad token.",
        f"{SCRIPT}: the pad token is set to the end token",
        "nothing alone, where masks are made from lengths; with labels on padding, empty answers",
    ),
    "pca_on_few_tokens": Fault(
        "compression",
        "PCA is fitted on about 2.4 tokens per dimension (10,000 of 4,096).",
        f"{SCRIPT}: PCA on the first 10,000 tokens of 100 prompts",
        "the variance kept on the fitted tokens exceeds 1 - fvu of `pca_inverse` on the test's",
    ),
    "no_mean_subtracted": Fault(
        "compression",
        "The components are those of the second moment: no mean is subtracted.",
        "a textbook slip; scikit-learn's TruncatedSVD in place of PCA",
        "the first component is the mean's direction, and its mean compressed value is not 0",
    ),
    "pca_on_test": Fault(
        "compression",
        "PCA is fitted on the test prompts.",
        "a compression fitted on all data before the split",
        "`pca_inverse` reconstructs test prompts better than training prompts",
    ),
    "explained_over_kept": Fault(
        "compression",
        "The explained variance is divided by that of the kept components alone.",
        "a randomized SVD that returns only the leading values",
        "100 percent of the variance kept at any width, while fvu of `pca_inverse` is not 0",
    ),
    "unit_rms_output": Fault(
        "adapter",
        "The output starts at unit RMS, whatever the scale of the embeddings.",
        "the adapter ends in a LayerNorm with gains of 1",
        "reconstruction error near 1 at the first step; `norm_ratio` far above 1",
    ),
    "xavier_start": Fault(
        "adapter",
        "Linear layers start with Xavier's uniform weights and zero biases.",
        "latentwire/models.py: Xavier in the adapter's linear layers",
        "none: a different random start, no worse by itself",
    ),
    "dropout_in_training": Fault(
        "adapter",
        "Dropout of 0.1 on the adapter's hidden layer in training.",
        f"{SCRIPT}: adapter_dropout 0.1",
        "training loss above the loss of the same batches at evaluation",
        shares=False,
    ),
    "dropout_at_evaluation": Fault(
        "adapter",
        "The same dropout, and left on at evaluation.",
        "a missing call of eval()",
        "two evaluations of one adapter differ",
        shares=False,
    ),
    "bfloat16_weights": Fault(
        "training",
        "AdamW moves weights that are held in bfloat16.",
        f"{SCRIPT}: the adapter is cast to the language model's bfloat16",
        "small learning rates train nothing; saved weights have 8 significant bits",
    ),
    "frozen_gains": Fault(
        "adapter",
        "The gains of the norms are held in bfloat16, so steps below 0.002 leave a 1 where it is.",
        "what the cast to bfloat16 does to parameters that start at 1",
        "the gain and the norms' weights are still exactly 1 after training",
    ),
    "labels_on_prompt": Fault(
        "training",
        "Cross-entropy supervises the prompt's tokens as well as the answer's.",
        f"{SCRIPT}: the labels are all ids, prompt included",
        "`cross_entropy_tokens` per step many times the answers' tokens",
        needs_rows=True,
    ),
    "labels_on_padding": Fault(
        "training",
        "Cross-entropy supervises padding, too.",
        f"{SCRIPT}: the labels are all ids, padding included",
        "`cross_entropy_tokens` grows with the longest prompt of the batch",
        needs_rows=True,
        shares=False,
    ),
    "gap_before_answer": Fault(
        "training",
        "Prompts are padded on the right, so that a gap stands before the answer.",
        f"{SCRIPT}: prompts and answers are padded apart, then joined",
        "teacher-forced accuracy without the gap is lower than in training",
        needs_rows=True,
        shares=False,
    ),
    "mask_of_ones": Fault(
        "generation",
        "Attention reads the padding, in training and in generation.",
        "train_adapter_only_phase1.py: batches are generated without an attention mask",
        "answers change with the batch size",
        shares=False,
    ),
    "right_padded_generation": Fault(
        "generation",
        "Prompts are padded on the right in generation: answers follow the padding.",
        "the default padding side of Llama's tokenizer",
        "answers change with the batch size; the longest prompt of a batch is answered well",
        shares=False,
    ),
    "slice_of_generated_ids": Fault(
        "generation",
        "Generated ids are cut by the prompt's length, which embeddings do not return.",
        f"{SCRIPT}: the output is sliced from the prompt's length on",
        "every answer is empty (`empty` 1, `tokens` 0) and F1 exactly 0, whatever was trained",
    ),
    "oracle_norm": Fault(
        "generation",
        "The output is rescaled to the norm of the original embedding, an oracle.",
        "train_adapter_only_phase1.py: the output is matched to the original RMS of each token",
        "`norm_ratio` is not 1 although answers are good; no original embedding, no answer",
        shares=False,
    ),
    "f1_on_sets": Fault(
        "scoring",
        "F1 counts distinct words, so repetitions cost nothing.",
        "latentwire/core_utils.py: words are compared as sets",
        "F1 is 100 where EM is 0 and the answer repeats itself",
    ),
    "first_gold_only": Fault(
        "scoring",
        "Only the first gold answer counts.",
        "latentwire/data.py: one answer is kept of each question",
        "the ceiling falls with the adapter: `text` scores lower as well",
    ),
    "no_normalisation": Fault(
        "scoring",
        "Answers are compared with their case, articles and punctuation.",
        "a comparison of strings as they are",
        "the ceiling falls with the adapter: `text` scores lower as well",
    ),
    "other_baseline": Fault(
        "scoring",
        "Retention divides by a ceiling measured elsewhere, 82, and subtracts no floor.",
        "the analysis's baseline: 82 % F1 from another pipeline",
        "retention of `embeddings` itself is not 100",
    ),
}


def names(faults: str) -> list[str]:
    """Return the names in a config's field `faults`."""
    return [] if faults in (NONE, "") else faults.split(JOIN)


def canonical(faults: object) -> str:
    """Return the field for a name, several names joined by `+`, or a list of names.

    In the order of the gallery, each once, so that equal sets are equal fields. Raises ValueError
    with the nearest name for an unknown one, and TypeError for anything but names.
    """
    given = names(faults) if isinstance(faults, str) else faults or ()
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"faults={faults!r}: expected names of the gallery")
    for name in given:
        allowed = f"{NONE!r}, or names in stage1/gallery.py joined by {JOIN!r}"
        require(name in FAULTS, "faults", name, allowed + nearest(name, FAULTS))
    return JOIN.join(name for name in FAULTS if name in given) or NONE


def check(faults: str, objective: str, packed: bool, architecture: str, projection: str) -> None:
    """Raise ValueError for faults that the objective, packed rows or adapter cannot carry."""
    rows = [name for name in names(faults) if FAULTS[name].needs_rows]
    if rows:
        allowed = f"one of {', '.join(LABELLED)} with faults={rows[0]!r}"
        require(objective in LABELLED, "objective", objective, allowed)
        require(not packed, "packed", packed, f"False with faults={rows[0]!r}")
    modules = [name for name in names(faults) if FAULTS[name].needs_film]
    if modules:
        carried = f"with faults={modules[0]!r}"
        require(architecture == "film", "architecture", architecture, f"'film' {carried}")
        require(projection == "pca", "projection", projection, f"'pca' {carried}")


def can_share(faults: str) -> bool:
    """Return whether adapters with these faults may share passes of the language model."""
    return all(FAULTS[name].shares for name in names(faults))


def sentences(faults: str) -> str:
    """Return the names of the faults with a sentence for each, or "" for a sound run."""
    return " ".join(f"{name}: {FAULTS[name].sentence}" for name in names(faults))
