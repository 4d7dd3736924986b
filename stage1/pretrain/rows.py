"""What the shipped language model is trained on: a BPE tokenizer for the almanac, and rows of token ids.

A training row is a passage and as many of its questions with their answers as fit, so the model learns the prompts as
text and answering above all. Every row begins as the prompts of the study do, and its first question looks just like
theirs; the later ones follow without repeating the passage.
"""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stage1.corpus import almanac
from stage1.corpus.prompts import render

SPLIT = "pretrain"  # its articles are not those of the study's own train, selection and test splits
TOKENIZER_ARTICLES = 5_000
# A chat template that spells out the plain prompt, so that both of the study's templates mean the same to this model.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'assistant' %}"
    "{{ '\\nAnswer: ' + turn['content'] }}{{ eos_token }}{% else %}{{ turn['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAnswer:' }}{% endif %}"
)


def train_tokenizer(vocabulary: int, articles: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the prompts of at most 5,000 articles; begin, end and pad token are distinct."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(prompt_texts(range(min(TOKENIZER_ARTICLES, articles)), seed), trainer)
    core.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=CHAT_TEMPLATE, model_max_length=512, **names
    )


def prompt_texts(articles: range, seed: int) -> Iterator[str]:
    for index in articles:
        for row in almanac.article(index, seed, SPLIT):
            yield f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer: {row['answers']['text'][0]}"


def training_rows(
    articles: range, folder: str, length: int, seed: int
) -> tuple[Int16[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """One row per passage, with the tokenizer in `folder`: ids, padded right, and which of them belong to an answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = [row for index in articles for row in almanac.article(index, seed, SPLIT)]
    parts = []  # question, answer, question, answer, ...
    for i, e in enumerate(examples):
        prompt, answer = render(
            tokenizer, "plain", e["context"], e["question"], e["answers"]["text"][0]
        )
        first = i % almanac.QUESTIONS_PER_PASSAGE == 0
        parts += [
            tokenizer.bos_token + prompt if first else prompt[prompt.index("\nQuestion:") :],
            answer,
        ]
    pieces = iter(
        tokenizer(parts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    )
    ids = np.full(
        (len(examples) // almanac.QUESTIONS_PER_PASSAGE, length),
        tokenizer.pad_token_id,
        dtype=np.int16,
    )
    is_answer = np.zeros(ids.shape, dtype=bool)
    for row, row_is_answer in zip(ids, is_answer, strict=True):
        fill_row(
            row, row_is_answer, [next(pieces) for _ in range(2 * almanac.QUESTIONS_PER_PASSAGE)]
        )
    return ids, is_answer


def fill_row(ids: np.ndarray, is_answer: np.ndarray, parts: list[list[int]]) -> None:
    """Write questions and answers (alternating in `parts`) into one row, as many whole pairs as fit."""
    end = 0
    for question, answer in zip(parts[::2], parts[1::2], strict=True):
        start, stop = end + len(question), end + len(question) + len(answer)
        if stop > len(ids):
            break
        ids[end:start], ids[start:stop], is_answer[start:stop] = question, answer, True
        end = stop


def corpus(
    articles: int, folder: Path, length: int, seed: int, processes: int
) -> tuple[Int16[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """All training rows, written and tokenized by several processes; their number changes nothing."""
    chunks = [range(start, min(start + 2_000, articles)) for start in range(0, articles, 2_000)]
    make = partial(training_rows, folder=str(folder), length=length, seed=seed)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(tqdm(pool.map(make, chunks), total=len(chunks), desc="write and tokenize"))
    ids, is_answer = (np.concatenate(column) for column in zip(*parts, strict=True))
    filled = is_answer.any(axis=1)  # a passage that fills the row by itself teaches no answer
    return ids[filled], is_answer[filled]
