"""What a preflight checks: each function returns or yields its lines."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout

import psutil
import torch

from stage1.check.findings import Level, Line, StoppedError
from stage1.config import StudyConfig
from stage1.corpus import data
from stage1.corpus.prompts import encode
from stage1.evaluation.conditions import evaluate, without_context
from stage1.model.language_model import FrozenLM
from stage1.names import CONDITIONS, OBJECTIVES
from stage1.scoring.criteria import LEAST_GAIN
from stage1.scoring.intervals import mean_interval
from stage1.scoring.squad import f1
from stage1.study import cost
from stage1.study.preparation import Study
from stage1.study.rates import trials
from stage1.training.memory import SAFE

QUESTIONS = 50
"""Questions that ceiling and floor are measured on."""
CLEAR_GAIN = 20.0
"""F1 points that the passage must be worth, or objectives will be hard to tell apart."""
FEW = 0.05
"""Share of prompts, answers or tokens that may be cut or lost without a warning."""


def level(is_fine: bool, otherwise: Level = Level.WARNING) -> Level:
    return Level.OK if is_fine else otherwise


def model(lm: FrozenLM, config: StudyConfig) -> Line:
    V, D = lm.embedding_table.shape
    millions = sum(parameter.numel() for parameter in lm.model.parameters()) / 1e6
    found = f"{lm.name}: {millions:,.1f}M parameters, V={V:,}, D={D:,}, {config.dtype}, {lm.device}"
    found += "; random weights (shape_only): no score means anything" if config.shape_only else ""
    return Line(level(not config.shape_only), "language model", found)


def tokenizer(lm: FrozenLM) -> Line:
    """Check that every token has an embedding, and show the end tokens."""
    size, V = len(lm.tokenizer), len(lm.embedding_table)
    if size > V:
        found = (
            f"{size:,} tokens, but the embedding table has {V:,} rows: they do not belong together"
        )
        raise StoppedError(Line(Level.STOP, "tokenizer", found))
    ends = ", ".join(map(str, lm.tokenizer.convert_ids_to_tokens(lm.end_tokens)))
    return Line(Level.OK, "tokenizer", f"{size:,} tokens; answers end at {ends}")


def text(study: Study) -> Line:
    """Check that the tokenizer can write the text of prompts and answers."""
    decode, train = study.lm.tokenizer.decode, study.encoded["train"]
    tokens, unknown = int(study.counts.sum()), study.lm.tokenizer.unk_token_id
    lost = 0 if unknown is None else int(study.counts[unknown])
    kept = [
        f1(str(decode(answer, skip_special_tokens=True)), golds) == 100
        for answer, golds in zip(train.answers, train.golds, strict=True)
    ]
    changed = 1 - sum(kept) / len(kept)
    found = f"{lost / tokens:.1%} of the prompts' tokens are unknown; "
    found += f"{changed:.1%} of the answers differ after tokenizing"
    return Line(level(max(lost / tokens, changed) <= FEW), "text", found)


def questions(study: Study) -> Line:
    """Show the sizes of the splits."""
    parts = study.encoded
    sizes = [f"{len(p):,} {n} (of {len(set(p.titles)):,} articles)" for n, p in parts.items()]
    note = "" if len(parts["selection"]) else "; none to choose settings by"
    note += "" if len(set(parts["test"].titles)) > 1 else "; one test article gives no interval"
    return Line(level(not note), "questions", ", ".join(sizes) + note)


def prompts(study: Study) -> Line:
    """Check how many prompts are shortened, and whether they fit the model's positions."""
    parts, config = study.encoded, study.config
    asked = sum(len(part) for part in parts.values()) + parts["train"].dropped
    cut = sum(part.shortened for part in parts.values()) / asked
    found = (
        f"{cut:.1%} lose the end of their passage (max_prompt_tokens={config.max_prompt_tokens})"
    )
    most = getattr(study.lm.model.config, "max_position_embeddings", None)
    needed = config.max_prompt_tokens + max(config.max_answer_tokens, config.max_new_tokens)
    fits = most is None or needed <= most
    found += "" if fits else f"; with an answer they may exceed the model's {most:,} positions"
    return Line(level(cut <= FEW and fits), "prompts", found)


def answers(study: Study) -> Line:
    """Check how many answers are cut."""
    train, test, most = study.encoded["train"], study.encoded["test"], study.config.max_new_tokens
    dropped = train.dropped / (len(train) + train.dropped)
    long = sum(len(answer) > most for answer in test.answers) / len(test)
    found = f"{dropped:.1%} of the training questions are dropped because their answer is cut; "
    found += f"{long:.1%} of the test answers are longer than max_new_tokens={most}"
    return Line(level(max(dropped, long) <= FEW), "answers", found)


def compression(study: Study) -> Line:
    """State K, D and their ratio; the default K belongs to the shipped model."""
    K, D, config = study.compression.width, study.lm.embedding_table.shape[1], study.config
    default = StudyConfig.compressed_width
    fits = config.compressed_width != default or round(D / K, 2) == 8
    found = (
        f"{D / K:.3g}x: K={K} of D={D:,}; PCA keeps {study.compression.kept:.1%} of the variance"
    )
    found += "" if fits else f"; {default} is the shipped model's K, write compressed_width: D/8"
    return Line(level(fits), "compression", found)


def learning_rate(study: Study) -> Line:
    """Say whether learning rates were tried for this model, objective, adapter and width."""
    config = study.config.replace(compressed_width=study.compression.width)
    if config.learning_rate is not None:
        return Line(Level.OK, "learning rate", f"{config.learning_rate:g}, as given")
    untried = [name for name in OBJECTIVES if trials(config.replace(objective=name)).empty]
    tried, rate = trials(config), study.resolved.learning_rate
    found = f"{rate:g} for {config.objective}, the best of {tried['learning_rate'].nunique()} tried"
    if tried.empty:
        found = f"{rate:g} for {config.objective}: none was ever tried for this model and adapter; "
        found += "search with python -m stage1.study.sweep trials, or set learning_rate"
    found += f"; untried for {len(untried)} of {len(OBJECTIVES)} objectives" if untried else ""
    return Line(level(not untried), "learning rate", found)


def task(study: Study) -> Line:
    """Compare F1 from the original embeddings with F1 without the passage, on a few questions."""
    split = "selection" if len(study.encoded["selection"]) else "test"
    rows, whole = data.rows(study.config, split), study.encoded[split]
    chosen = range(0, len(rows), max(1, len(rows) // QUESTIONS))[:QUESTIONS]
    alone = without_context([rows[i] for i in chosen], "question_only")
    parts = whole.chosen(chosen), encode(alone, study.lm.tokenizer, study.config)
    table = study.lm.embedding_table
    ceiling, floor = (
        evaluate(study.lm, part, split, table, study.config, "")["f1"].to_numpy() for part in parts
    )
    gain = mean_interval((ceiling - floor).tolist(), parts[0].titles)
    found = f"F1 {ceiling.mean():.1f} with the passage, {floor.mean():.1f} without it, on "
    found += f"{len(chosen)} {split} questions"
    if gain.mean < LEAST_GAIN or gain.low <= 0:
        otherwise = Level.WARNING if study.config.shape_only else Level.STOP
        return Line(otherwise, "task", f"this model cannot do this task: {found}")
    if gain.mean < CLEAR_GAIN:
        return Line(Level.WARNING, "task", f"{found}: a gap that orders few objectives")
    return Line(Level.OK, "task", found)


def time_and_memory(study: Study) -> Iterator[Line]:
    """Measure a few training steps and a batch of answers; see `study.cost`."""
    with redirect_stdout(io.StringIO()):  # the progress bar of a few steps
        training = " ".join(cost.training(study).split()).rstrip(".")
    count = len(OBJECTIVES) * study.config.seeds
    yield Line(Level.OK, "training", f"{training}. This is one adapter; a report trains {count}")
    yield memory(study.lm)
    yield Line(Level.OK, "answering", cost.evaluation(study, len(CONDITIONS)))


def memory(lm: FrozenLM) -> Line:
    """State the peak of the GPU's memory, or the process's memory on a CPU."""
    if lm.device.type == "cuda":
        used = torch.cuda.max_memory_allocated(lm.device)
        total = torch.cuda.get_device_properties(lm.device).total_memory
    else:
        used, total = psutil.Process().memory_info().rss, psutil.virtual_memory().total
    found = f"{used / 1e9:.1f} of {total / 1e9:.1f} GB on {lm.device.type}"
    return Line(level(used <= SAFE * total), "memory", found)
