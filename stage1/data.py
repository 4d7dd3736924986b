"""Examples and prompts: three sources behind one function, splits by article, templates, tokens and their counts."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stage1 import almanac
from stage1.config import StudyConfig, require

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "selection", "test")
HELD_OUT = 0.1  # share of a source's articles that go to selection, and to test where the source has no test split


# ---------------------------------------------------------------- sources


def load_split(config: StudyConfig, split: str) -> "datasets.Dataset":
    """The config's examples of one split (`train`, `selection` or `test`) in SQuAD's schema, seeded.

    Splits share no article (title). Raises ValueError for an unknown split or a source with too few examples, and
    FileNotFoundError or ValueError, with the place, for a file that is missing or malformed.
    """
    require(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")
    wanted = getattr(config, f"{split}_examples")
    if config.data == "almanac":
        names = config.test_names if split == "test" else "seen"
        return almanac.dataset(wanted, seed=config.seed, split=split, names=names)
    examples = split_by_article(read_source(config.data), config.seed)[split]
    order = random.Random(f"examples {config.seed}").sample(range(len(examples)), len(examples))
    require(wanted <= len(examples), f"{split}_examples", wanted, f"at most {len(examples)}, all that the source has")
    return examples.select(order[:wanted])


def read_source(data: str) -> "datasets.DatasetDict":
    """A SQuAD v1.1 JSON file, a folder written by `save_to_disk`, or a hub dataset, as splits of SQuAD rows."""
    import datasets

    path = Path(data).expanduser()
    if path.suffix == ".json":
        return datasets.DatasetDict(all=datasets.Dataset(read_squad_json(path)))
    if path.is_dir():
        loaded = datasets.load_from_disk(str(path))
        return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(all=loaded)
    if path.exists() or data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"data={data!r}: expected 'almanac', a hub id 'owner/name', an existing SQuAD .json file, "
            "or a folder written by datasets.save_to_disk"
        )
    return datasets.load_dataset(data)


def read_squad_json(path: Path) -> pa.Table:
    """SQuAD's nested v1.1 JSON as flat rows. Raises FileNotFoundError, or ValueError naming the file and the place."""
    if not path.is_file():
        raise FileNotFoundError(f"data={str(path)!r}: no such file; expected a SQuAD v1.1 JSON file")
    try:
        articles = json.loads(path.read_text("utf-8"))["data"]
        rows = [
            {
                "id": qa["id"],
                "title": article["title"],
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")},
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not in SQuAD v1.1 form: {type(error).__name__} {error}") from error
    for row in rows:
        check_answers(row, str(path))
    return pa.Table.from_pylist(rows, schema=almanac.SQUAD_SCHEMA)


def check_answers(row: Mapping, source: str) -> None:
    """Raise ValueError unless the example has an answer and each stands in the context where its offset says."""
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    if not texts:
        raise ValueError(f"{source}: question {row['id']!r} has no answer; SQuAD v1.1 questions have at least one")
    for text, start in zip(texts, starts, strict=True):
        if row["context"][start : start + len(text)] != text:
            raise ValueError(f"{source}: answer {text!r} of question {row['id']!r} is not in its context at {start}")


def split_by_article(source: "datasets.DatasetDict", seed: int) -> dict[str, "datasets.Dataset"]:
    """Train, selection and test with disjoint titles. A source's own `validation` or `test` split becomes the test."""
    reserved = next((source[name] for name in ("test", "validation") if name in source), None)
    pool = source["train"] if "train" in source else source[next(iter(source))]
    own_test = reserved is not None and reserved is not pool
    titles = sorted(set(pool["title"]) - (set(reserved["title"]) if own_test else set()))
    random.Random(f"articles {seed}").shuffle(titles)
    share = max(1, round(HELD_OUT * len(titles)))
    groups = {"selection": titles[:share], "test": [] if own_test else titles[share : 2 * share]}
    groups["train"] = titles[share if own_test else 2 * share :]
    rows = {title: [] for title in titles}
    for index, title in enumerate(pool["title"]):
        rows.get(title, []).append(index)
    picked = {split: pool.select([i for title in group for i in rows[title]]) for split, group in groups.items()}
    return picked | ({"test": reserved} if own_test else {})


# ---------------------------------------------------------------- prompts


def render(tokenizer: PreTrainedTokenizerBase, template: str, context: str, question: str, answer: str = "x"):
    """The prompt and the answer as text, under the `plain` template or the tokenizer's `chat` template.

    The chat answer is what the template writes after the prompt, up to where the assistant's turn ends. Raises
    ValueError where the tokenizer has no chat template, or one whose prompt is not the beginning of the whole chat.
    """
    if template == "plain":
        return f"Context: {context}\nQuestion: {question}\nAnswer:", f" {answer}{tokenizer.eos_token}"
    if not tokenizer.chat_template:
        raise ValueError("prompt_template='chat': this tokenizer has no chat template; expected 'plain'")
    turns = [{"role": "user", "content": f"Context: {context}\nQuestion: {question}"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": answer})
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError("prompt_template='chat': the template rewrites the prompt once it is answered")
    return prompt, whole[len(prompt) :]


@dataclass(frozen=True)
class Encoded:
    """Token ids of some examples. Row i of every list belongs to example i."""

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


def encode_prompt(tokenizer, config: StudyConfig, context: str, question: str) -> tuple[list[int], int]:
    """Token ids of a prompt within the budget, and how many characters of the context it keeps.

    Raises ValueError where question and answer cue alone exceed the budget.
    """
    special = config.prompt_template == "plain"  # a chat template writes its own begin token
    budget, kept = config.max_prompt_tokens, context
    while True:
        prompt, _ = render(tokenizer, config.prompt_template, kept, question)
        ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
        if len(ids) <= budget:
            return ids, len(kept)
        if not kept:
            allowed = f"at least {len(ids)}, what the question {question!r} needs without any context"
            raise ValueError(f"max_prompt_tokens={budget}: expected {allowed}")
        spans = tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        keep = max(0, len(spans) - (len(ids) - budget))
        kept = kept[: spans[keep - 1][1]] if keep else ""


def encode_answer(tokenizer, config: StudyConfig, answer: str) -> list[int]:
    """Token ids of an answer as it follows the prompt: no begin token, the end token last."""
    _, text = render(tokenizer, config.prompt_template, "", "", answer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id in ids:  # a chat template may write a line break after the end of turn
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return [*ids, tokenizer.eos_token_id]


def encode(examples: Iterable[Mapping], tokenizer, config: StudyConfig, training: bool = False) -> Encoded:
    """Tokenize SQuAD rows. With `training`, leave out examples whose first gold answer the budgets cut."""
    columns: dict[str, list] = {name: [] for name in ("ids", "titles", "golds", "prompts", "answers")}
    shortened = dropped = 0
    for row in examples:
        gold, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        prompt, kept = encode_prompt(tokenizer, config, row["context"], row["question"])
        answer = encode_answer(tokenizer, config, gold)
        shortened += kept < len(row["context"])
        if training and (start + len(gold) > kept or len(answer) > config.max_answer_tokens):
            dropped += 1
            continue
        for name, value in zip(columns, (row["id"], row["title"], row["answers"]["text"], prompt, answer), strict=True):
            columns[name].append(value)
    return Encoded(**columns, shortened=shortened, dropped=dropped)


def token_counts(prompts: Iterable[Sequence[int]], vocabulary_size: int) -> np.ndarray:
    """How often each token occurs in the prompts: int64 [V], from one pass in memory that does not grow with them."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for prompt in prompts:
        np.add.at(counts, prompt, 1)
    return counts
