"""What a run is about, and what the committed records have to do with it."""

from stage1.config import StudyConfig

SUBJECT = ("language_model", "shape_only", "data", "answers", "prompt_template")
"""Fields that say which language model reads what."""
BUDGET = ("train_examples", "epochs", "batch_size", "warmup_steps")


def subject(config: StudyConfig) -> str:
    """Name the language model and the data."""
    weights = " with random weights" if config.shape_only else ""
    questions = " with long answers" if config.answers == "long" else ""
    return f"language model `{config.language_model}`{weights} on data `{config.data}`{questions}"


def budget(config: StudyConfig) -> str:
    """Name the compressed width and what adapters are trained on."""
    warmup = f"after {config.warmup_steps:,} steps of warm-up" if config.warmup_steps else ""
    parts = [
        f"K = {config.compressed_width}",
        f"{config.train_examples:,} questions x {config.epochs} in batches of {config.batch_size}",
        warmup or "without a warm-up",
        "1 seed" if config.seeds == 1 else f"{config.seeds} seeds",
    ]
    return ", ".join(parts)


def records_label(records: StudyConfig) -> str:
    """Name what committed records are of, in one line without markup; some have no warm-up."""
    *parts, _, seeds = budget(records).split(", ")
    about = ", ".join([subject(records), *parts, seeds])
    return f"Committed records: {about}".replace("`", "")


def limits(config: StudyConfig) -> str:
    """Say what holds for this corpus alone, as a list in Markdown."""
    if config.data != "almanac":
        return (
            f"- Everything here is about one corpus, `{config.data}`. Its splits share no article; "
            "how the model and the adapters do on other text is not measured."
        )
    return (
        "- The built-in corpus is generated from a grammar: its statements have a few forms each, "
        "and every question is answered by one sentence. A model that answers it has learned to "
        "find and copy, not to reason, and knows nothing of the world.\n"
        f"- Names of test passages are {config.test_names} in training, those of the selection "
        f"split {config.selection_names}. On seen names F1 is higher than on unseen ones."
    )


def is_same(one: StudyConfig, other: StudyConfig, names: tuple[str, ...]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in names)


def beside(config: StudyConfig, records: StudyConfig) -> str:
    """Say what the committed records are of, and whether they speak of this run."""
    about = f"The committed records are of {subject(records)}, {budget(records)}."
    if not is_same(config, records, SUBJECT):
        return (
            f"{about} This run is of another subject, {subject(config)}. **Nothing below was "
            "measured on it**: the orderings may carry over, the F1 points do not."
        )
    if not is_same(config, records, (*BUDGET, "compressed_width")):
        return (
            f"{about} This run has the same language model and data at another budget or width, "
            f"{budget(config)}: it repeats no result below."
        )
    return f"{about} This run has the same setting."
