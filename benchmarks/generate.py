"""How much faster is our greedy decoding than `transformers`' generate, with the same answers?

    python benchmarks/generate.py --shape-only             # an 8B shape on a GPU, random prompts
    python benchmarks/generate.py --data dev-v1.1.json     # SQuAD JSON, folder, hub id, or almanac
    python benchmarks/generate.py --preset quick --questions 300 --plain 64 --out FILE    # a CPU

In one run: generate in plain batches of 32 (on `--plain` questions) and one prompt at a time (on
`--alone` of these); then our decoding without shared prefixes (on `--unshared` questions) and with
them (on all). All read embeddings and write at most 20 tokens. Writes the CSV after every path, and
a JSON with its provenance beside it.

`peak_GB` is the GPU's memory, model included (on a CPU that of the process).
`same_answers_as_plain` is the share of the `compared` questions whose tokens equal those of the
plain batches. `largest_gap` tells near ties from errors: where two answers part, the largest
difference in nats between their tokens in a plain pass over the prompt alone.
"""

import math
import random
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import common
import pandas as pd
import torch

from stage1.config import StudyConfig, load_preset
from stage1.corpus import data
from stage1.corpus.prompts import encode
from stage1.model import loading
from stage1.model.generation import by_length, generate_ids
from stage1.model.greedy import by_prefix, greedy_ids
from stage1.model.language_model import FrozenLM
from stage1.scoring.tables import markdown_table

PLAIN, ONE = "generate, plain batches", "generate, one at a time"
UNSHARED, SHARED = "greedy, nothing shared", "greedy, sharing"
NEW_TOKENS = 20
Prompts = dict[int, list[int]]


class Decoder(NamedTuple):
    """A way to answer: its name, batch size, decoding function and batching function."""

    path: str
    batch: int
    decode: Callable
    arrange: Callable


def decoders(sizes: list[int]) -> list[Decoder]:
    """Return plain batches, which the others are compared with, and then the others."""
    made = [Decoder(PLAIN, 32, generate_ids, by_length), Decoder(ONE, 1, generate_ids, by_length)]
    for size in sizes:
        made.append(Decoder(UNSHARED, size, partial(greedy_ids, share=False), by_length))
        made.append(Decoder(SHARED, size, greedy_ids, by_prefix))
    return made


def squad_like(count: int, vocabulary: int) -> list[list[int]]:
    """Draw random prompts, five to a context of 80 to 230 tokens, with 10 to 26 of the question."""
    rng = random.Random(0)

    def draw(least: int, most: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(least, most))]

    contexts = [draw(80, 230) for _ in range(-(-count // 5))]
    return [contexts[i // 5] + draw(10, 26) for i in range(count)]


def read_prompts(source: str, count: int, lm: FrozenLM, config: StudyConfig) -> list[list[int]]:
    """Return the source's first questions: the held-out ones, where it has splits."""
    if source == "almanac":
        examples = data.rows(config.replace(data=source, test_examples=count), "test")
    else:
        splits = data.read_source(source)
        held_out = [splits[name] for name in ("validation", "test") if name in splits]
        split = [*held_out, *splits.values()][0]
        examples = split.select(range(min(count, len(split)))).to_list()
    return encode(examples, lm.tokenizer, config).prompts


def answer(lm: FrozenLM, decoder: Decoder, prompts: Prompts) -> tuple[Prompts, dict]:
    """Return the answers with their seconds and peak memory; none where memory runs out."""
    questions, texts = list(prompts), list(prompts.values())
    batches = decoder.arrange(texts, decoder.batch)
    answers: Prompts = {}

    def decode_all() -> None:
        for indices in batches:
            new = decoder.decode(lm, [texts[i] for i in indices], lm.embed, NEW_TOKENS)
            answers.update(zip((questions[i] for i in indices), new, strict=True))

    try:
        decoder.decode(lm, [texts[i] for i in batches[0]], lm.embed, 2)  # warm-up
        _, measured = common.timed(lm.device, decode_all)
    except torch.OutOfMemoryError:
        return {}, {"seconds": math.nan, "peak_GB": math.nan, "note": "out of memory"}
    return answers, measured | {"note": ""}


@torch.inference_mode()
def gap(lm: FrozenLM, prompt: list[int], plain: list[int], other: list[int]) -> float:
    """Return the nats between the first two tokens that differ, from the prompt read alone."""
    pairs = enumerate(zip(plain, other, strict=False))
    index = next(i for i, (one, two) in pairs if one != two)
    ids = torch.tensor([prompt + plain[:index]])
    last = torch.zeros(ids.shape, dtype=torch.bool, device=lm.device)
    last[:, -1] = True
    logits = lm.logits(lm.embed(ids), last)[0]
    return float((logits[plain[index]] - logits[other[index]]).abs())


def compare(lm: FrozenLM, prompts: list[list[int]], plain: Prompts, other: Prompts) -> dict:
    """Return the share of equal answers to common questions, and the largest gap of the others."""
    both = plain.keys() & other.keys()
    differ = [i for i in both if plain[i] != other[i]]
    gaps = [gap(lm, prompts[i], plain[i], other[i]) for i in differ]
    return {
        "same_answers_as_plain": 1 - len(differ) / len(both) if both else math.nan,
        "compared": len(both),
        "largest_gap": max(gaps, default=math.nan),
    }


def with_ratios(measured: list[dict]) -> pd.DataFrame:
    """Return one row per path and batch, with its speed over both plain ones."""
    table = pd.DataFrame(measured)
    rate = table["questions"] / table["seconds"]
    table.insert(4, "examples_per_s", rate)
    for column, path in (("times_batch_32", PLAIN), ("times_one_at_a_time", ONE)):
        table.insert(5, column, rate / rate[table["path"] == path].max())
    return table.round(4)


def measure(lm: FrozenLM, prompts: list[list[int]], given: Namespace) -> Iterator[dict]:
    """Yield one row per decoder, as soon as it is measured."""
    every = dict(enumerate(prompts))
    some = list(every)[: given.plain]
    few = some[:: max(1, len(some) // given.alone)][: given.alone]
    asked = {PLAIN: some, ONE: few, UNSHARED: list(every)[: given.unshared], SHARED: every}
    plain: Prompts = {}
    for decoder in decoders(given.fast_batch):
        questions = {i: every[i] for i in asked[decoder.path]}
        answers, measured = answer(lm, decoder, questions)
        plain = answers if decoder.path == PLAIN else plain
        row = {"path": decoder.path, "batch": decoder.batch, "questions": len(questions)}
        yield row | measured | compare(lm, prompts, plain, answers)
        torch.cuda.empty_cache()


def main() -> None:
    sizes = {"questions": 10_570, "unshared": 2_048, "plain": 256, "alone": 12}
    model = {"preset": "llama31_8b", "shape_only": False, "data": ""}
    batches = {"fast_batch": [256, 512, 1024]}
    given = common.parser(__doc__, "generate.csv", **model, **sizes, **batches).parse_args()
    config = load_preset(given.preset).replace(shape_only=given.shape_only)
    lm = loading.load(config)
    if given.data:
        prompts = read_prompts(given.data, given.questions, lm, config)
    else:
        prompts = squad_like(given.questions, len(lm.embedding_table))
    common.write_provenance(given.out)
    measured = []
    for row in measure(lm, prompts, given):
        measured.append(row)
        with_ratios(measured).to_csv(given.out, index=False)
        print(f"{row['path']}, {row['batch']}: {row['seconds']:.1f} s {row['note']}", flush=True)
    print(markdown_table(with_ratios(measured)))


if __name__ == "__main__":
    main()
