"""How much faster are answers from our own greedy decoding than from `transformers`' generate, and are they the same?

    python benchmarks/generate.py --shape-only                        # an 8B shape on a GPU: SQuAD-like random prompts
    python benchmarks/generate.py --data dev-v1.1.json                # the same on real questions
    python benchmarks/generate.py --preset quick --data almanac --questions 300 --plain 64 --fast-batch 64 --out FILE

In one run: generate one prompt at a time and in plain batches of 32, each on some of the questions; then our decoding
on all of them, without and with beginnings that prompts share read once. All read embeddings and write at most 20
tokens. Writes `benchmarks/results/generate.csv`, after every path, and a JSON beside it that says where it comes from.

`peak_GB` is the GPU's memory, model included. `same_answers_as_plain` is the share of rows that equal those of the
plain batches of 32, token for token, on the `compared` questions that both answered. `largest_gap` tells near ties from
errors: where rows part, the nats by which a plain pass over the prompt alone tells the two tokens apart, at most.
"""

import argparse
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from stage1 import store
from stage1.config import StudyConfig, load_preset
from stage1.corpus import data
from stage1.corpus.prompts import encode
from stage1.model import language_model
from stage1.model.generation import by_length, generate_ids
from stage1.model.greedy import by_prefix, greedy_ids
from stage1.model.language_model import FrozenLM
from stage1.pretrain.model_card import markdown_table

RESULTS = Path(__file__).parent / "results" / "generate.csv"
PLAIN, ONE, UNSHARED = (
    "generate, plain batches",
    "generate, one at a time",
    "greedy, nothing shared",
)
NEW_TOKENS = 20
Rows = dict[int, list[int]]


class Way(NamedTuple):
    """A way to answer: its name, its batch size, what answers a batch, and what arranges prompts in batches."""

    path: str
    batch: int
    decode: Callable
    arrange: Callable


def ways(sizes: list[int]) -> list[Way]:
    """The plain ones, the one that others are compared with first, and our own at each batch size."""
    plain = [Way(PLAIN, 32, generate_ids, by_length), Way(ONE, 1, generate_ids, by_length)]
    unshared = partial(greedy_ids, share=False)
    own = [
        (
            Way(UNSHARED, size, unshared, by_length),
            Way("greedy, sharing", size, greedy_ids, by_prefix),
        )
        for size in sizes
    ]
    return [*plain, *chain.from_iterable(own)]


def squad_like(count: int, vocabulary: int) -> list[list[int]]:
    """Random prompts, five on each context: 80 to 230 tokens, and 10 to 26 of the question."""
    rng = random.Random(0)

    def draw(least: int, most: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(least, most))]

    contexts = [draw(80, 230) for _ in range(-(-count // 5))]
    return [contexts[i // 5] + draw(10, 26) for i in range(count)]


def read_prompts(source: str, count: int, lm: FrozenLM, config: StudyConfig) -> list[list[int]]:
    """The source's first questions: those that it holds out, where it has splits."""
    if source == "almanac":
        examples = data.rows(config.replace(data=source, test_examples=count), "test")
    else:
        splits = data.read_source(source)
        split = next(
            (splits[name] for name in ("validation", "test") if name in splits),
            splits[next(iter(splits))],
        )
        examples = split.select(range(min(count, len(split)))).to_list()
    return encode(examples, lm.tokenizer, config).prompts


def clock(lm: FrozenLM) -> float:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def answer(lm: FrozenLM, way: Way, prompts: dict[int, list[int]]) -> tuple[Rows, dict]:
    """Rows by question, and the seconds they took with the peak memory; no rows where the memory does not suffice."""
    places, asked = list(prompts), list(prompts.values())
    rows: Rows = {}
    try:
        way.decode(
            lm, [asked[i] for i in way.arrange(asked, way.batch)[0]], lm.embed, 2
        )  # to warm up
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = clock(lm)
        for indices in way.arrange(asked, way.batch):
            new = way.decode(lm, [asked[i] for i in indices], lm.embed, NEW_TOKENS)
            rows |= zip((places[i] for i in indices), new, strict=True)
        seconds = clock(lm) - begin
    except torch.OutOfMemoryError:
        return {}, {"seconds": math.nan, "peak_GB": math.nan, "note": "out of memory"}
    peak = torch.cuda.max_memory_allocated() / 1e9 if lm.device.type == "cuda" else math.nan
    return rows, {"seconds": seconds, "peak_GB": peak, "note": ""}


@torch.inference_mode()
def gap(lm: FrozenLM, prompt: list[int], plain: list[int], row: list[int]) -> float:
    """Nats between the two tokens at the first place of difference, of the prompt read alone and without a cache."""
    place = next(i for i, (one, other) in enumerate(zip(plain, row, strict=False)) if one != other)
    read = torch.tensor([prompt + plain[:place]])
    where = torch.zeros(read.shape, dtype=torch.bool, device=lm.device)
    where[:, -1] = True
    logits = lm.logits(lm.embed(read), where)[0]
    return float((logits[plain[place]] - logits[row[place]]).abs())


def compare(lm: FrozenLM, prompts: list[list[int]], plain: Rows, rows: Rows) -> dict:
    """Share of the questions that both answered whose rows are the same, and the largest gap of those that differ."""
    both = plain.keys() & rows.keys()
    differ = [i for i in both if plain[i] != rows[i]]
    share = 1 - len(differ) / len(both) if both else math.nan
    gaps = [gap(lm, prompts[i], plain[i], rows[i]) for i in differ]
    return {
        "same_answers_as_plain": share,
        "compared": len(both),
        "largest_gap": max(gaps, default=math.nan),
    }


def with_ratios(measured: list[dict]) -> pd.DataFrame:
    """One row per path and batch, and how many times the questions per second of both plain ones it answers."""
    table = pd.DataFrame(measured)
    table.insert(4, "examples_per_s", table["questions"] / table["seconds"])
    for place, (name, path) in enumerate(
        {"times_one_at_a_time": ONE, "times_batch_32": PLAIN}.items()
    ):
        plain = table.loc[table["path"] == path, "examples_per_s"]
        table.insert(
            5 + place, name, table["examples_per_s"] / (plain.iloc[0] if len(plain) else math.nan)
        )
    return table.round(4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama31_8b")
    parser.add_argument(
        "--shape-only",
        action="store_true",
        help="random weights in the shape of the preset's model",
    )
    parser.add_argument(
        "--data", help="a SQuAD JSON file, a folder, a hub id or almanac; random prompts without it"
    )
    parser.add_argument("--questions", type=int, default=10_570, help="for our own decoding")
    parser.add_argument(
        "--unshared", type=int, default=2_048, help="of these, how many where nothing is shared"
    )
    parser.add_argument(
        "--plain", type=int, default=256, help="of these, how many for plain batches of 32"
    )
    parser.add_argument(
        "--alone", type=int, default=12, help="of those, how many for one prompt at a time"
    )
    parser.add_argument("--fast-batch", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def measure(lm: FrozenLM, prompts: list[list[int]], given: argparse.Namespace) -> Iterator[dict]:
    """One row per way to answer, as soon as it is measured."""
    every = dict(enumerate(prompts))
    some = dict(islice(every.items(), given.plain))
    few = dict(islice(islice(some.items(), 0, None, max(1, len(some) // given.alone)), given.alone))
    asked = {PLAIN: some, ONE: few}
    plain: Rows = {}
    for way in ways(given.fast_batch):
        questions = asked.get(way.path, every)
        if way.path == UNSHARED:
            questions = dict(islice(every.items(), given.unshared))
        rows, measured = answer(lm, way, questions)
        plain = rows if way.path == PLAIN else plain
        row = {"path": way.path, "batch": way.batch, "questions": len(questions)} | measured
        yield row | compare(lm, prompts, plain, rows)
        if lm.device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    given = arguments()
    config = load_preset(given.preset).replace(shape_only=given.shape_only)
    lm = language_model.load(config)
    prompts = squad_like(given.questions, len(lm.embedding_table))
    if given.data:
        prompts = read_prompts(given.data, given.questions, lm, config)
    origin = {
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    store.write_json(given.out.with_suffix(".json"), origin | {"provenance": store.provenance()})
    measured = []
    for row in measure(lm, prompts, given):
        measured.append(row)
        with_ratios(measured).to_csv(given.out, index=False)
        print(f"{row['path']}, {row['batch']}: {row['seconds']:.1f} s {row['note']}", flush=True)
    print(markdown_table(with_ratios(measured)))


if __name__ == "__main__":
    main()
