"""Training data of the shipped language model: a BPE tokenizer, and rows of token ids.

A row is a passage and as many of its questions with answers as fit, so the model learns the prompts
as text and answering above all. A row begins exactly as a prompt of the study, first question
included; further questions follow without the passage.

Answers are short, long, or mixed: then both kinds take turns, in a row and at the head of rows.
"""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stage1.corpus import almanac
from stage1.corpus.prompts import render

SPLIT = "pretrain"
"""Shares no article with the study's own train, selection and test splits."""
TOKENIZER_ARTICLES = 5_000
KINDS = {"short": ("short",), "long": ("long",), "mixed": ("short", "long")}
"""Kinds of answers that a model is trained on, by the option's value."""
LENGTHS = {"short": 160, "long": 320, "mixed": 256}
"""Lengths of a row (tokens): with long answers, whole passages with all their questions fit."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'assistant' %}"
    "{{ '\\nAnswer: ' + turn['content'] }}{{ eos_token }}{% else %}{{ turn['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\nAnswer:' }}{% endif %}"
)
"""Spells out the plain prompt, so both of the study's templates mean the same to this model."""


def examples(index: int, seed: int, answers: str) -> list[dict]:
    """Return the questions of an article as SQuAD rows; of each passage, as many as usual."""
    kinds = [almanac.article(index, seed, SPLIT, answers=kind) for kind in KINDS[answers]]
    # A passage has an odd number of questions, so that first questions take turns as well.
    return [rows[i % len(rows)] for i, rows in enumerate(zip(*kinds, strict=True))]


def train_tokenizer(
    vocabulary: int, articles: int, seed: int, answers: str = "short"
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on at most 5,000 articles of the almanac."""
    texts = prompt_texts(range(min(TOKENIZER_ARTICLES, articles)), seed, answers)
    return byte_level_bpe(texts, vocabulary)


def byte_level_bpe(
    texts: Iterable[str], vocabulary: int, length: int = 512
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on texts; begin, end and pad token are distinct.

    `length` is the longest row that the model will read (tokens).
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=CHAT_TEMPLATE, model_max_length=length, **names
    )


def prompt_texts(articles: range, seed: int, answers: str) -> Iterator[str]:
    for index in articles:
        for row in examples(index, seed, answers):
            prompt = f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer:"
            yield f"{prompt} {row['answers']['text'][0]}"


def training_rows(
    articles: range, folder: str, length: int, seed: int, answers: str = "short"
) -> tuple[Int16[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """Return one row per passage: token ids, padded right, and which of them belong to an answer.

    `folder` holds the tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []  # question, answer, question, answer, ...
    for index in articles:
        for i, row in enumerate(examples(index, seed, answers)):
            gold = row["answers"]["text"][0]
            prompt, answer = render(tokenizer, "plain", row["context"], row["question"], gold)
            if i % almanac.QUESTIONS_PER_PASSAGE == 0:
                question = tokenizer.bos_token + prompt
            else:
                question = prompt[prompt.index("\nQuestion:") :]
            texts += [question, answer]
    encoding = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    parts = encoding["input_ids"]
    shape = len(articles) * almanac.PASSAGES_PER_ARTICLE, length
    ids = np.full(shape, tokenizer.pad_token_id, dtype=np.int16)
    is_answer = np.zeros(shape, dtype=bool)
    per_row = 2 * almanac.QUESTIONS_PER_PASSAGE
    for i in range(len(ids)):
        fill_row(ids[i], is_answer[i], parts[per_row * i : per_row * (i + 1)])
    return ids, is_answer


def fill_row(ids: np.ndarray, is_answer: np.ndarray, parts: list[list[int]]) -> None:
    """Write as many whole pairs as fit into one row; `parts` alternates questions and answers."""
    end = 0
    for question, answer in zip(parts[::2], parts[1::2], strict=True):
        start, stop = end + len(question), end + len(question) + len(answer)
        if stop > len(ids):
            break
        ids[end:start], ids[start:stop], is_answer[start:stop] = question, answer, True
        end = stop


def corpus(
    articles: int, folder: Path, length: int, seed: int, processes: int, answers: str = "short"
) -> tuple[Int16[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """Return the training rows of all articles; the number of processes changes nothing."""
    make = partial(training_rows, folder=str(folder), length=length, seed=seed, answers=answers)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    ranges = almanac.chunks(articles, processes)
    parts = almanac.map_chunks(make, ranges, processes)
    progress = tqdm(parts, total=len(ranges), desc="write and tokenize")
    ids, is_answer = (np.concatenate(column) for column in zip(*progress, strict=True))
    has_answer = is_answer.any(axis=1)  # some passages leave no room for a question
    return ids[has_answer], is_answer[has_answer]
