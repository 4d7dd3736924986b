"""Examples in SQuAD's schema from three kinds of source, in splits that share no article."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.fields import require

if TYPE_CHECKING:
    import datasets  # not installed where language models are trained

SPLITS = ("train", "selection", "test")
TITLE = 60
"""Characters of a passage that stand for its missing title; passages that share them are one
article."""
HELD_OUT = 0.1
"""Share of a source's articles that goes to selection, and to test if it has no test split."""


def load_split(config: StudyConfig, split: str) -> "datasets.Dataset":
    """Return the config's examples of one split (`train`, `selection` or `test`), seeded.

    Splits share no article (title). Raises ValueError for an unknown split, a source with too few
    examples, a malformed file or an answer that is not in its context, and FileNotFoundError for a
    missing file.
    """
    require(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")
    if config.data == "almanac":
        import datasets

        return datasets.Dataset(almanac_table(config, split))
    examples = split_by_article(read_source(config.data), config.data_seed)[split]
    field, total = f"{split}_examples", len(examples)
    size = getattr(config, field)
    require(size <= total, field, size, f"at most {total}, all that the source has")
    order = random.Random(f"examples {config.data_seed}").sample(range(total), total)
    examples = examples.select(order[:size])
    for example in examples:
        check_answers(example, config.data)
    return examples


def rows(config: StudyConfig, split: str) -> list[dict]:
    """Return the examples of `load_split` as dictionaries; the almanac needs no `datasets`."""
    if config.data == "almanac" and split in SPLITS:
        return almanac_table(config, split).to_pylist()
    return load_split(config, split).to_list()


def almanac_table(config: StudyConfig, split: str) -> pa.Table:
    names = {"selection": config.selection_names, "test": config.test_names}.get(split, "seen")
    size = getattr(config, f"{split}_examples")
    return almanac.table(size, config.data_seed, split, names, config.answers)


def read_source(data: str) -> "datasets.DatasetDict":
    """Read a .json or .jsonl file, a folder written by `save_to_disk`, or a hub dataset."""
    import datasets

    path = Path(data).expanduser()
    if path.suffix in (".json", ".jsonl"):
        return datasets.DatasetDict(all=datasets.Dataset(read_squad_json(path)))
    source = datasets.load_from_disk(str(path)) if path.is_dir() else load_from_hub(data)
    splits = source if isinstance(source, dict) else datasets.DatasetDict(all=source)
    for name, split in splits.items():
        missing = ", ".join(sorted(set(almanac.SQUAD_SCHEMA.names) - set(split.column_names)))
        if missing:
            raise ValueError(
                f"data={data!r}: split {name!r} has no {missing}; expected SQuAD v1.1 columns"
            )
    return splits


def load_from_hub(data: str) -> "datasets.DatasetDict":
    """Load a hub dataset.

    Raises FileNotFoundError if `data` cannot be a hub id, OSError if the hub does not provide it.
    """
    import datasets

    if Path(data).exists() or data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"data={data!r}: expected 'almanac', a hub id 'owner/name', an existing SQuAD .json "
            "or .jsonl file, or a folder written by datasets.save_to_disk"
        )
    try:
        return datasets.load_dataset(data)
    except OSError as error:  # unreachable, unknown and gated datasets alike
        raise OSError(
            f"data={data!r} cannot be loaded from the hub: expected 'almanac', a dataset id you "
            "have access to (hf auth login), a local SQuAD .json file, or a folder written by "
            f"datasets.save_to_disk where there is a network. {error}"
        ) from error


def read_squad_json(path: Path) -> pa.Table:
    """Read questions as flat rows: SQuAD's nested v1.1 JSON, or a .jsonl file or a list of rows.

    A row has `context`, `question`, `answers` (or one `answer`) and perhaps `id` and `title`.
    Raises FileNotFoundError, or ValueError that names the file and the place in it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"data={str(path)!r}: no such file; expected a SQuAD v1.1 JSON file or .jsonl"
        )
    try:
        document = read_document(path)
    except ValueError as error:  # malformed JSON or UTF-8
        raise ValueError(f"{path}: not JSON: {error}") from error
    if isinstance(document, list):
        rows = [flat_row(row, number, path) for number, row in enumerate(document, 1)]
        require(len(rows) > 0, "data", str(path), "at least one question in the file")
    else:
        try:
            rows = list(flat_rows(document["data"]))
        except (KeyError, TypeError) as error:
            reason = f"{type(error).__name__} {error}"
            raise ValueError(f"{path}: not in SQuAD v1.1 form: {reason}") from error
    for row in rows:
        check_answers(row, str(path))
    return pa.Table.from_pylist(rows, schema=almanac.SQUAD_SCHEMA)


def read_document(path: Path) -> Any:
    """Return the parsed JSON; that of a .jsonl file as a list with an item per line."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            items += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return items


def flat_row(row: Any, number: int, path: Path) -> dict:
    """Return item `number` of a file, counted from 1, as a row in SQuAD's schema.

    Raises ValueError with what was found and what is expected.
    """
    found = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
    try:
        return {
            "id": str(row.get("id", number)),
            "title": row.get("title") or row["context"][:TITLE],
            "context": row["context"],
            "question": row["question"],
            "answers": flat_answers(row.get("answers", row.get("answer")), row["context"]),
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: item {number} of a flat list has {found}; expected context, question and "
            'answers {"text": [...], "answer_start": [...]}, or in place of the list SQuAD v1.1\'s '
            'nested form, {"data": [{"title": ..., "paragraphs": [...]}]}'
        ) from error


def flat_answers(answers: Any, context: str) -> dict[str, list]:
    """Return one or several answers with their offsets, by default where they first occur."""
    if isinstance(answers, dict):
        texts, starts = answers["text"], answers.get("answer_start")
    elif isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        texts = [answer["text"] for answer in answers]
        starts = [answer["answer_start"] for answer in answers]
    else:
        texts, starts = answers, None
    texts = [texts] if isinstance(texts, str) else list(texts)
    return {"text": texts, "answer_start": starts or [context.find(text) for text in texts]}


def flat_rows(articles: list[dict]) -> Iterator[dict]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = qa["answers"]
                yield {
                    "id": qa["id"],
                    "title": article["title"],
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }


def check_answers(row: Mapping, source: str) -> None:
    """Raise ValueError unless the example has answers, each at its offset in the context."""
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    question = f"{source}: question {row['id']!r}"
    if len(texts) != len(starts):
        raise ValueError(f"{question} has {len(texts)} answers at {len(starts)} offsets")
    if not texts:
        raise ValueError(f"{question} has no answer; SQuAD v1.1 questions have at least one")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int):
            raise ValueError(f"{question}: answer {text!r} at {start!r}; expected text and offset")
        if row["context"][start : start + len(text)] != text:
            raise ValueError(f"{question}: answer {text!r} is not in its context at {start}")


def split_by_article(source: "datasets.DatasetDict", seed: int) -> dict[str, "datasets.Dataset"]:
    """Split into train, selection and test with disjoint titles.

    The source's own `test` split, or else its `validation` split, becomes the test.
    """
    own_test = source.get("test", source.get("validation"))
    pool = source["train"] if "train" in source else next(iter(source.values()))
    if own_test is pool:
        own_test = None
    titles = sorted(set(pool["title"]) - set(own_test["title"] if own_test is not None else ()))
    random.Random(f"articles {seed}").shuffle(titles)
    share = max(1, round(HELD_OUT * len(titles)))
    start = 2 * share if own_test is None else share
    groups = {"selection": titles[:share], "test": titles[share:start], "train": titles[start:]}
    indices = defaultdict(list)
    for index, title in enumerate(pool["title"]):
        indices[title].append(index)
    splits = {
        split: pool.select([index for title in group for index in indices[title]])
        for split, group in groups.items()
    }
    return splits if own_test is None else splits | {"test": own_test}
