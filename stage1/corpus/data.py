"""Examples: three sources behind one function, in SQuAD's schema, in splits that share no article."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.fields import require

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "selection", "test")
HELD_OUT = 0.1  # share of a source's articles that go to selection, and to test where the source has no test split


def load_split(config: StudyConfig, split: str) -> "datasets.Dataset":
    """The config's examples of one split (`train`, `selection` or `test`) in SQuAD's schema, seeded.

    Splits share no article (title). Raises ValueError for an unknown split, a source with too few examples or an answer
    that is not in its context, and FileNotFoundError or ValueError for a file that is missing or malformed.
    """
    require(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")
    wanted = getattr(config, f"{split}_examples")
    if config.data == "almanac":
        return almanac.dataset(wanted, **almanac_kind(config, split))
    examples = split_by_article(read_source(config.data), config.data_seed)[split]
    order = random.Random(f"examples {config.data_seed}").sample(
        range(len(examples)), len(examples)
    )
    require(
        wanted <= len(examples),
        f"{split}_examples",
        wanted,
        f"at most {len(examples)}, all that the source has",
    )
    examples = examples.select(order[:wanted])
    for example in examples:
        check_answers(example, config.data)
    return examples


def rows(config: StudyConfig, split: str) -> list[dict]:
    """The examples of `load_split` as plain dictionaries; the almanac's without the library `datasets`."""
    if config.data == "almanac" and split in SPLITS:
        return almanac.table(
            getattr(config, f"{split}_examples"), **almanac_kind(config, split)
        ).to_pylist()
    return load_split(config, split).to_list()


def almanac_kind(config: StudyConfig, split: str) -> dict:
    names = config.test_names if split == "test" else "seen"
    return {"seed": config.data_seed, "split": split, "names": names}


def read_source(data: str) -> "datasets.DatasetDict":
    """A SQuAD v1.1 JSON file, a folder written by `save_to_disk`, or a hub dataset, as splits of SQuAD rows."""
    import datasets

    path = Path(data).expanduser()
    if path.suffix == ".json":
        return datasets.DatasetDict(all=datasets.Dataset(read_squad_json(path)))
    loaded = datasets.load_from_disk(str(path)) if path.is_dir() else load_from_hub(data)
    splits = (
        loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(all=loaded)
    )
    for name, split in splits.items():
        missing = ", ".join(sorted(set(almanac.SQUAD_SCHEMA.names) - set(split.column_names)))
        if missing:
            raise ValueError(
                f"data={data!r}: split {name!r} has no {missing}; expected SQuAD v1.1 columns"
            )
    return splits


def load_from_hub(data: str) -> "datasets.DatasetDict":
    """The hub dataset. Raises FileNotFoundError for what can be no hub id, OSError for what the hub does not give."""
    import datasets

    if Path(data).exists() or data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"data={data!r}: expected 'almanac', a hub id 'owner/name', an existing SQuAD .json file, "
            "or a folder written by datasets.save_to_disk"
        )
    try:
        return datasets.load_dataset(data)
    except OSError as error:  # unreachable, unknown and gated datasets alike
        raise OSError(
            f"data={data!r} cannot be loaded from the hub: expected 'almanac', a dataset id you have access to "
            f"(hf auth login), or a local SQuAD .json file. {error}"
        ) from error


def read_squad_json(path: Path) -> pa.Table:
    """SQuAD's nested v1.1 JSON as flat rows. Raises FileNotFoundError, or ValueError naming the file and the place."""
    if not path.is_file():
        raise FileNotFoundError(
            f"data={str(path)!r}: no such file; expected a SQuAD v1.1 JSON file"
        )
    try:
        articles = json.loads(path.read_text("utf-8"))["data"]
        rows = [
            {
                "id": qa["id"],
                "title": article["title"],
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {
                    key: [answer[key] for answer in qa["answers"]]
                    for key in ("text", "answer_start")
                },
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except ValueError as error:  # malformed JSON, or bytes that are no text
        raise ValueError(f"{path}: not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not in SQuAD v1.1 form: {type(error).__name__} {error}"
        ) from error
    for row in rows:
        check_answers(row, str(path))
    return pa.Table.from_pylist(rows, schema=almanac.SQUAD_SCHEMA)


def check_answers(row: Mapping, source: str) -> None:
    """Raise ValueError unless the example has an answer and each stands in the context where its offset says."""
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    if not texts:
        raise ValueError(
            f"{source}: question {row['id']!r} has no answer; SQuAD v1.1 questions have at least one"
        )
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int):
            raise ValueError(
                f"{source}: question {row['id']!r} has answer {text!r} at {start!r}; expected text and offset"
            )
        if row["context"][start : start + len(text)] != text:
            raise ValueError(
                f"{source}: answer {text!r} of question {row['id']!r} is not in its context at {start}"
            )


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
    picked = {
        split: pool.select([i for title in group for i in rows[title]])
        for split, group in groups.items()
    }
    return picked | ({"test": reserved} if own_test else {})
