"""Examples in SQuAD's schema from three kinds of source, in splits that share no article."""

import random
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from stage1 import store
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.squad_files import KINDS, check_answers, kind, read_squad_json
from stage1.fields import require

if TYPE_CHECKING:
    import datasets  # not installed where language models are trained

SPLITS = ("train", "selection", "test")
HELD_OUT = 0.1
"""Share of a source's articles that goes to selection, and to test if it has no test split."""
TITLES = store.ASSETS / "titles"
Source = dict[str, pa.Table]
"""The splits of a source by name; a file has one."""


class HubError(OSError):
    """The hub does not provide a dataset: it is out of reach, or has none that one may read."""


def load_split(config: StudyConfig, split: str) -> "datasets.Dataset":
    """Return the config's examples of one split as a dataset; see `split_table`."""
    import datasets

    return datasets.Dataset(split_table(config, split))


def rows(config: StudyConfig, split: str) -> list[dict]:
    """Return the config's examples of one split as dictionaries; see `split_table`."""
    return split_table(config, split).to_pylist()


def split_table(config: StudyConfig, split: str) -> pa.Table:
    """Return the config's examples of one split (`train`, `selection` or `test`), seeded.

    Splits share no article (title). Raises ValueError for an unknown split, a source with too few
    examples, a malformed file or an answer that is not in its context, FileNotFoundError for a
    missing file, and HubError. Only saved folders and the hub need the library `datasets`.
    """
    require(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")
    if config.data == "almanac":
        return almanac_table(config, split)
    splits = split_by_article(read_sources(config), config.data_seed)
    examples, field = splits[split], f"{split}_examples"
    size, total = getattr(config, field), len(examples)
    held = ", ".join(f"{len(splits[name])} {name}" for name in SPLITS)
    require(size <= total, field, size, f"at most {total}; by article the source has {held}")
    order = random.Random(f"examples {config.data_seed}").sample(range(total), total)
    examples = examples.take(pa.array(order[:size], pa.int64()))
    for example in examples.to_pylist():
        check_answers(example, config.data)
    return examples


def almanac_table(config: StudyConfig, split: str) -> pa.Table:
    names = {"selection": config.selection_names, "test": config.test_names}.get(split, "seen")
    size = getattr(config, f"{split}_examples")
    return almanac.table(size, config.data_seed, split, names, config.answers)


def read_sources(config: StudyConfig) -> Source:
    """Return the splits of `data`, of articles in `titles` alone, with the test of `test_data`.

    Raises ValueError if no article is in `titles`.
    """
    source = read_source(config.data)
    if config.test_data:
        other = read_source(config.test_data, "test_data")
        source = {"train": pool_of(source), "test": own_test(other) or pool_of(other)}
    if config.titles:
        wanted, pool = read_titles(config.titles), pool_of(source)
        kept = pool.filter(pa.array([title in wanted for title in titles_of(pool)], pa.bool_()))
        require(len(kept) > 0, "titles", config.titles, f"titles of articles in {config.data!r}")
        source = source | {"train": kept}
    return source


def read_titles(titles: str) -> set[str]:
    """Return the titles in a file, one per line; its name may be that of a list in the package.

    Raises FileNotFoundError for a file that is not there.
    """
    shipped = TITLES / f"{titles}.txt"
    path = shipped if shipped.is_file() else Path(titles).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in TITLES.glob("*.txt")))
        raise FileNotFoundError(
            f"titles={titles!r}: no such file; expected one of {known}, or a text file with the "
            "title of an article on every line"
        )
    return set(path.read_text("utf-8").split("\n")) - {""}


def read_source(data: str, field: str = "data") -> Source:
    """Read a .json or .jsonl file, a folder written by `save_to_disk`, or a hub dataset."""
    path = Path(data).expanduser()
    if kind(path) in KINDS:
        return {"all": read_squad_json(path, field)}
    import datasets

    source = datasets.load_from_disk(str(path)) if path.is_dir() else load_from_hub(data, field)
    splits = source if isinstance(source, dict) else {"all": source}
    for name, split in splits.items():
        missing = ", ".join(sorted(set(almanac.SQUAD_SCHEMA.names) - set(split.column_names)))
        if missing:
            raise ValueError(
                f"{field}={data!r}: split {name!r} has no {missing}; expected SQuAD v1.1 columns"
            )
    columns = almanac.SQUAD_SCHEMA.names
    return {
        name: split.select_columns(columns).with_format("arrow")[:]
        for name, split in splits.items()
    }


def load_from_hub(data: str, field: str) -> "datasets.DatasetDict":
    """Load a hub dataset.

    Raises FileNotFoundError if it cannot be a hub id, HubError if the hub does not provide it.
    """
    import datasets

    built_in = "'almanac', " if field == "data" else ""
    if Path(data).exists() or data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{field}={data!r}: expected {built_in}a hub id 'owner/name', an existing SQuAD .json "
            "or .jsonl file, or a folder written by datasets.save_to_disk"
        )
    try:
        return datasets.load_dataset(data)
    except OSError as error:  # unreachable, unknown and gated datasets alike
        raise HubError(
            f"{field}={data!r} cannot be loaded from the hub: expected {built_in}a dataset id you "
            "have access to (hf auth login), a local SQuAD .json file, or a folder written by "
            f"datasets.save_to_disk where there is a network. {error}"
        ) from error


def titles_of(table: pa.Table) -> list[str]:
    return table["title"].to_pylist()


def pool_of(source: Source) -> pa.Table:
    """Return the split that training questions come from: `train`, or the only one."""
    return source["train"] if "train" in source else next(iter(source.values()))


def own_test(source: Source) -> pa.Table | None:
    """Return the source's own `test` split, or else its `validation` split, beside another."""
    found = source.get("test", source.get("validation"))
    return None if found is pool_of(source) else found


def split_by_article(source: Source, seed: int) -> Source:
    """Split into train, selection and test with disjoint titles.

    The source's own test split becomes the test.
    """
    test, pool = own_test(source), pool_of(source)
    titles = sorted(set(titles_of(pool)) - set([] if test is None else titles_of(test)))
    random.Random(f"articles {seed}").shuffle(titles)
    share = max(1, round(HELD_OUT * len(titles)))
    start = 2 * share if test is None else share
    groups = {"selection": titles[:share], "test": titles[share:start], "train": titles[start:]}
    indices = defaultdict(list)
    for index, title in enumerate(titles_of(pool)):
        indices[title].append(index)
    splits = {}
    for split, group in groups.items():
        chosen = [index for title in group for index in indices[title]]
        splits[split] = pool.take(pa.array(chosen, pa.int64()))
    return splits if test is None else splits | {"test": test}
