"""From examples to tokens: prompt templates, length budgets, gold answers, and token counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Int

from stage1.config import StudyConfig

if TYPE_CHECKING:
    import transformers  # takes a second to import

Tokenizer: TypeAlias = "transformers.PreTrainedTokenizerBase"

CHAT_OPTIONS: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Variables that some chat templates read. Qwen3's would let the model think before it answers, and
Llama-3.2's writes the day of the run; the date is the one that Llama-3.1's has."""


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples: item i of every list belongs to example i."""

    ids: list[str]
    titles: list[str]
    golds: list[list[str]]
    prompts: list[list[int]]
    """Begin token, if the tokenizer writes one, context, question and answer cue; at most
    `max_prompt_tokens` each."""
    answers: list[list[int]]
    """First gold answer and the token that ends it, without a begin token."""
    shortened: int
    """Prompts that lost the end of their context."""
    dropped: int
    """Training examples left out because their answer was cut."""

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, n: int) -> "Encoded":
        return self.chosen(range(min(n, len(self))))

    def chosen(self, indices: Sequence[int]) -> "Encoded":
        """Return the examples at these indices."""
        lists: dict[str, Any] = {
            name: [value[i] for i in indices]
            for name, value in vars(self).items()
            if isinstance(value, list)
        }
        return replace(self, **lists)


def render(
    tokenizer: Tokenizer, template: str, context: str, question: str, answer: str = ""
) -> tuple[str, str]:
    """Return prompt and answer as text, by the `plain` or the tokenizer's `chat` template.

    A chat answer is all that the template writes after the prompt, to the end of the assistant's
    turn. Raises ValueError if the tokenizer has no chat template, or one that rewrites the prompt
    once it is answered.
    """
    text = f"Context: {context}\nQuestion: {question}"
    if template == "plain":
        return f"{text}\nAnswer:", f" {answer}{tokenizer.eos_token}"
    if not tokenizer.chat_template:
        raise ValueError(
            "prompt_template='chat': this tokenizer has no chat template; expected 'plain'"
        )
    turns = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS
    )
    turns.append({"role": "assistant", "content": answer})
    whole = tokenizer.apply_chat_template(turns, tokenize=False, **CHAT_OPTIONS)
    assert isinstance(prompt, str) and isinstance(whole, str)
    if not whole.startswith(prompt):
        raise ValueError(
            "prompt_template='chat': the template rewrites the prompt once it is answered; "
            "use 'plain'"
        )
    return prompt, whole[len(prompt) :]


def tokenize_prompts(tokenizer: Tokenizer, template: str, texts: list[str]) -> list[list[int]]:
    special = template == "plain"  # a chat template writes its own begin token
    return tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []


def tokenize_answers(tokenizer: Tokenizer, texts: list[str], end: int) -> list[list[int]]:
    """Tokenize answers up to the first end token; a chat template may write more after it."""
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [(ids[: ids.index(end)] if end in ids else ids) + [end] for ids in answers]


def answer_end(tokenizer: Tokenizer, template: str) -> int:
    """Return the token that ends an answer: the first special one after it in the template.

    It may differ from the tokenizer's end token, which stands in where the template writes none.
    Raises what `render` raises.
    """
    _, text = render(tokenizer, template, "", "", "answer")
    after = tokenizer(text.rpartition("answer")[2], add_special_tokens=False)["input_ids"]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((token for token in after if token in special), tokenizer.eos_token_id)


def shorten(
    tokenizer: Tokenizer, config: StudyConfig, context: str, question: str
) -> tuple[list[int], int]:
    """Return prompt tokens with as much of the context's beginning as fits, and its length.

    The length counts characters. Raises ValueError if question and answer cue alone exceed the
    budget.
    """
    budget, kept = config.max_prompt_tokens, context
    while True:
        text, _ = render(tokenizer, config.prompt_template, kept, question)
        (ids,) = tokenize_prompts(tokenizer, config.prompt_template, [text])
        if len(ids) <= budget:
            return ids, len(kept)
        if not kept:
            raise ValueError(
                f"max_prompt_tokens={budget}: expected at least {len(ids)}, what the question "
                f"{question!r} needs without any context"
            )
        encoding = tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True)
        spans = encoding["offset_mapping"]
        keep = max(0, len(spans) - (len(ids) - budget))
        # Bytes of one character share a span, so a cut between them could keep it whole.
        # Dropping at least one character makes the loop end.
        kept = kept[: min(spans[keep - 1][1], len(kept) - 1)] if keep else ""


def encode(
    examples: Iterable[Mapping], tokenizer: Tokenizer, config: StudyConfig, training: bool = False
) -> Encoded:
    """Tokenize SQuAD rows within the budgets of the config.

    A prompt over its budget loses the end of its context, never its question or answer cue. With
    `training`, examples are dropped if their first gold answer exceeds its own budget or ended in
    the lost part of the context. Raises ValueError if a question alone exceeds the prompt budget.
    """
    rows, template = list(examples), config.prompt_template
    golds = [row["answers"]["text"] for row in rows]
    texts = [
        render(tokenizer, template, row["context"], row["question"], gold[0])
        for row, gold in zip(rows, golds, strict=True)
    ]
    prompts = tokenize_prompts(tokenizer, template, [prompt for prompt, _ in texts])
    end = answer_end(tokenizer, template)
    answers = tokenize_answers(tokenizer, [answer for _, answer in texts], end)
    shortened, chosen = 0, []
    for i, row in enumerate(rows):
        kept = len(row["context"])
        if len(prompts[i]) > config.max_prompt_tokens:
            prompts[i], kept = shorten(tokenizer, config, row["context"], row["question"])
            shortened += 1
        end = row["answers"]["answer_start"][0] + len(golds[i][0])
        cut = end > kept or len(answers[i]) > config.max_answer_tokens
        if not (training and cut):
            chosen.append(i)
    ids, titles = [row["id"] for row in rows], [row["title"] for row in rows]
    dropped = len(rows) - len(chosen)
    return Encoded(ids, titles, golds, prompts, answers, shortened, dropped).chosen(chosen)


def token_counts(prompts: Iterable[Sequence[int]], vocabulary_size: int) -> Int[np.ndarray, " V"]:
    """Count every token in the prompts, in one pass whose memory does not grow with them."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for prompt in prompts:
        np.add.at(counts, prompt, 1)
    return counts
