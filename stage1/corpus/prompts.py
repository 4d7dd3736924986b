"""From examples to tokens: prompt templates, length budgets, gold answers, and token counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from stage1.config import StudyConfig


@dataclass(frozen=True)
class Encoded:
    """Token ids of some examples. Item i of every list belongs to example i."""

    ids: list[str]
    titles: list[str]
    golds: list[list[str]]
    prompts: list[list[int]]
    """Begin token, context, question and answer cue; at most `max_prompt_tokens` each."""
    answers: list[list[int]]
    """First gold answer and the end token, without a begin token."""
    shortened: int
    """Prompts that lost the end of their context."""
    dropped: int
    """Training examples left out because their answer was cut."""

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, n: int) -> "Encoded":
        """The first n examples."""
        return self.chosen(range(min(n, len(self))))

    def chosen(self, places: Sequence[int]) -> "Encoded":
        """Some of the examples."""
        lists = {
            name: [value[i] for i in places]
            for name, value in vars(self).items()
            if isinstance(value, list)
        }
        return replace(self, **lists)


def render(
    tokenizer: PreTrainedTokenizerBase, template: str, context: str, question: str, answer: str = ""
) -> tuple[str, str]:
    """The prompt and its answer as text, under the `plain` template or the tokenizer's `chat` template.

    The chat answer is what the template writes after the prompt, up to where the assistant's turn ends. Raises
    ValueError where the tokenizer has no chat template, or one that rewrites the prompt once it is answered.
    """
    if template == "plain":
        return (
            f"Context: {context}\nQuestion: {question}\nAnswer:",
            f" {answer}{tokenizer.eos_token}",
        )
    if not tokenizer.chat_template:
        raise ValueError(
            "prompt_template='chat': this tokenizer has no chat template; expected 'plain'"
        )
    turns = [{"role": "user", "content": f"Context: {context}\nQuestion: {question}"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": answer})
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(
            "prompt_template='chat': the template rewrites the prompt once it is answered; use 'plain'"
        )
    return prompt, whole[len(prompt) :]


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, template: str, texts: list[str]
) -> list[list[int]]:
    special = template == "plain"  # a chat template writes its own begin token
    return tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []


def tokenize_answers(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Answers as they follow the prompt, cut after the end token: chat templates may write more after the turn."""
    end = tokenizer.eos_token_id
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [(ids[: ids.index(end)] if end in ids else ids) + [end] for ids in answers]


def shorten(
    tokenizer: PreTrainedTokenizerBase, config: StudyConfig, context: str, question: str
) -> tuple[list[int], int]:
    """Token ids of the prompt with as much of the context's beginning as fits, and the characters of it kept.

    Raises ValueError where question and answer cue alone exceed the budget.
    """
    budget, kept = config.max_prompt_tokens, context
    while True:
        text, _ = render(tokenizer, config.prompt_template, kept, question)
        (ids,) = tokenize_prompts(tokenizer, config.prompt_template, [text])
        if len(ids) <= budget:
            return ids, len(kept)
        if not kept:
            allowed = (
                f"at least {len(ids)}, what the question {question!r} needs without any context"
            )
            raise ValueError(f"max_prompt_tokens={budget}: expected {allowed}")
        spans = tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        keep = max(0, len(spans) - (len(ids) - budget))
        # Bytes of one character share a span, so a cut between them could keep it whole: always lose a character.
        kept = kept[: min(spans[keep - 1][1], len(kept) - 1)] if keep else ""


def encode(
    examples: Iterable[Mapping],
    tokenizer: PreTrainedTokenizerBase,
    config: StudyConfig,
    training: bool = False,
) -> Encoded:
    """Tokenize SQuAD rows within the budgets of the config.

    A prompt over its budget loses the end of its context, never its question or answer cue. With `training`, examples
    are left out whose first gold answer is cut: by its own budget, or because it stood in the part of the context that
    was lost. Raises ValueError where a question alone exceeds the prompt budget.
    """
    rows = list(examples)
    golds = [row["answers"]["text"] for row in rows]
    texts = [
        render(tokenizer, config.prompt_template, row["context"], row["question"], gold[0])
        for row, gold in zip(rows, golds, strict=True)
    ]
    prompts = tokenize_prompts(tokenizer, config.prompt_template, [prompt for prompt, _ in texts])
    answers = tokenize_answers(tokenizer, [answer for _, answer in texts])
    kept = [len(row["context"]) for row in rows]
    long = [i for i, prompt in enumerate(prompts) if len(prompt) > config.max_prompt_tokens]
    for i in long:
        prompts[i], kept[i] = shorten(tokenizer, config, rows[i]["context"], rows[i]["question"])
    ends = [
        row["answers"]["answer_start"][0] + len(gold[0])
        for row, gold in zip(rows, golds, strict=True)
    ]
    cut = [
        ends[i] > kept[i] or len(answers[i]) > config.max_answer_tokens for i in range(len(rows))
    ]
    chosen = [i for i in range(len(rows)) if not (training and cut[i])]
    return Encoded(
        ids=[rows[i]["id"] for i in chosen],
        titles=[rows[i]["title"] for i in chosen],
        golds=[golds[i] for i in chosen],
        prompts=[prompts[i] for i in chosen],
        answers=[answers[i] for i in chosen],
        shortened=len(long),
        dropped=len(rows) - len(chosen),
    )


def token_counts(prompts: Iterable[Sequence[int]], vocabulary_size: int) -> Int[np.ndarray, " V"]:
    """How often each token occurs in the prompts (tokens), from one pass in memory that does not grow with them."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for prompt in prompts:
        np.add.at(counts, prompt, 1)
    return counts
