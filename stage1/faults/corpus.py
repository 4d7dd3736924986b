"""Faults of the data: what prompts and answers hold, and which examples a split has."""

from dataclasses import replace

from stage1.corpus.prompts import Encoded
from stage1.faults.switch import replaces
from stage1.model.language_model import FrozenLM

ANSWERS = "stage1.corpus.prompts:tokenize_answers"
ROWS = "stage1.corpus.data:rows"
SHARE_KEPT = 0.65
"""Where prompts are cut from the right, as a share of their budget. It cuts a tenth of almanac's
training prompts; 256 tokens cut SQuAD's longest in the same way."""


@replaces("no_end_token", ANSWERS)
def without_end(original):
    def tokenize_answers(*arguments) -> list[list[int]]:
        return [ids[:-1] for ids in original(*arguments)]

    return tokenize_answers


@replaces("begin_token_in_answer", ANSWERS)
def with_begin(original):
    def tokenize_answers(tokenizer, texts, end) -> list[list[int]]:
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [begin + ids for ids in original(tokenizer, texts, end)]

    return tokenize_answers


@replaces("space_before_answer", "stage1.corpus.prompts:render")
def with_space(original):
    def render(*arguments) -> tuple[str, str]:
        prompt, answer = original(*arguments)
        return f"{prompt} ", answer.removeprefix(" ")

    return render


@replaces("right_truncation", "stage1.corpus.prompts:encode")
def cut_from_the_right(original):
    def encode(examples, tokenizer, config, training=False) -> Encoded:
        encoded = original(examples, tokenizer, config, training)
        limit = round(SHARE_KEPT * config.max_prompt_tokens)
        cut = sum(len(prompt) > limit for prompt in encoded.prompts)
        prompts = [prompt[:limit] for prompt in encoded.prompts]
        return replace(encoded, prompts=prompts, shortened=cut)

    return encode


@replaces("duplicate_articles", ROWS)
def train_holds_test(original):
    def rows(config, split) -> list[dict]:
        own = original(config, split)
        return [*original(config, "test"), *own][: len(own)] if split == "train" else own

    return rows


@replaces("selection_is_test", ROWS)
def selection_holds_test(original):
    def rows(config, split) -> list[dict]:
        return original(config, "test" if split == "selection" else split)

    return rows


@replaces("pad_is_end", "stage1.model.language_model:FrozenLM.pad_token")
def end_pads(original):
    def pad_token(lm: FrozenLM) -> int:
        return lm.end_tokens[0]

    return property(pad_token)
