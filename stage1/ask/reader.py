"""A language model that answers one question under every condition at once."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding

from stage1 import adapter as adapters
from stage1 import store
from stage1.adapter import Film, fingerprint
from stage1.ask.folders import Names, committed_folders, find
from stage1.ask.reading import Answered, Reading, answer_table
from stage1.compress import Compression, fit_pca
from stage1.config import StudyConfig, load_preset
from stage1.corpus import data
from stage1.corpus.prompts import encode, shorten, token_counts
from stage1.evaluation.conditions import forced_tokens, untrained_conditions
from stage1.fields import require
from stage1.model import loading
from stage1.model.generation import generate_rows, read_answer
from stage1.model.greedy import Embed
from stage1.model.language_model import FrozenLM

Ratio = int | float | None


@dataclass(frozen=True)
class Reader:
    """A frozen language model and its PCA, ready for questions; `load` makes it."""

    config: StudyConfig
    lm: FrozenLM
    pca: Compression
    """As many components as the training prompts allow."""

    @property
    def D(self) -> int:
        return self.lm.embedding_table.shape[1]

    def ask(
        self, context: str, question: str, adapter: Names = None, ratio: Ratio = None
    ) -> Reading:
        """Answer the question from the passage, greedily, under every condition.

        `adapter` is one or several folders of trained adapters or names of committed ones; None
        takes all committed adapters of this model. `ratio` is D/K of PCA inverse and lookup; None
        takes the compression of the first adapter given, or else the config's.

        Raises ValueError for an empty question or one over the prompt budget, an unknown adapter or
        one of another model, and a ratio that no K has.
        """
        for name, text in (("context", context), ("question", question)):
            require(isinstance(text, str), name, text, "text")
        require(bool(question.strip()), "question", question, "a question, not empty")
        folders = find(adapter, self.own_folders)
        given = {label: self.load_adapter(folder) for label, folder in folders.items()}
        trained = self.committed if adapter is None else given
        compression = self.compression(ratio, next(iter(given.values()), None))
        prompt, kept = shorten(self.lm.tokenizer, self.config, context, question)
        answers = self.answers(prompt, compression, trained)
        alone, _ = shorten(self.lm.tokenizer, self.config, "", question)
        answers["question_only"] = self.answer(alone, None)
        widths = dict.fromkeys(("pca_inverse", "codebook"), compression.width)
        widths |= {label: len(own.components) for label, own in trained.items()}
        main = next(iter(given), "embeddings" if ratio is None else "pca_inverse")
        table, cut = answer_table(answers, widths, self.D), len(context) - kept
        return Reading(question, context[:kept], cut, main, answers, table)

    def answers(
        self, prompt: list[int], compression: Compression, trained: Mapping[str, Film]
    ) -> dict[str, Answered]:
        """Return the answers under every untrained condition and from every adapter.

        Embeddings are rebuilt for the prompt's own tokens alone, not for the whole vocabulary.
        """
        ids = torch.tensor(prompt, device=self.lm.device).unique()
        rows = untrained_conditions(self.lm, compression, ids=ids)
        rows |= {label: self.rebuilt(own, ids) for label, own in trained.items()}
        return {
            name: self.answer(prompt, None if table is None else look_up(ids, table))
            for name, table in rows.items()
        }

    def answer(self, prompt: list[int], embed: Embed | None) -> Answered:
        """Decode greedily; a second, teacher-forced pass reads the tokens' probabilities.

        `embed` maps the prompt's token ids to embeddings; None passes the ids themselves.
        """
        lm = self.lm
        (row,) = generate_rows(lm, [prompt], embed, self.config.max_new_tokens)
        (losses,), _ = forced_tokens(lm, [prompt], [row], embed or lm.embed)
        texts = [str(lm.tokenizer.decode([token])) for token in row]
        tokens = [(text, math.exp(-loss)) for text, loss in zip(texts, losses, strict=True)]
        text, _, ended = read_answer(lm, row)
        return Answered(text, tokens, ended, sum(losses))

    @cached_property
    def own_folders(self) -> dict[str, Path]:
        """The folders of the committed adapters of this language model, by name."""
        own, found = None, {}
        for label, folder in committed_folders().items():
            about = store.read_json(folder / "adapter.json")["results"]
            if about["D"] == self.D:  # before the digest, which takes seconds for a large table
                own = own or fingerprint(self.lm.embedding_table)
                if about["table"] == own:
                    found[label] = folder
        return found

    @cached_property
    def committed(self) -> dict[str, Film]:
        """The committed adapters of this language model, by name."""
        return {label: self.load_adapter(folder) for label, folder in self.own_folders.items()}

    def load_adapter(self, folder: Path) -> Film:
        """Return a trained adapter.

        Raises ValueError for one of another language model, architecture or projection.
        """
        width = store.read_json(folder / "adapter.json")["results"]["K"]
        usual = {"compressed_width": width, "architecture": "film", "projection": "pca"}
        adapter = adapters.load(folder, self.config.replace(**usual), self.lm)
        assert isinstance(adapter, Film)  # it brings the PCA it was trained with
        return adapter

    def compression(self, ratio: Ratio, adapter: Film | None) -> Compression:
        """Return the compression by `ratio`, or else the adapter's own, or else the config's."""
        if ratio is None:
            return (
                own(self.pca, adapter) if adapter else self.pca.narrowed(self.config.width(self.D))
            )
        lowest = self.D / self.pca.width
        allowed = f"a number from {lowest:.3g} to {self.D} (D={self.D}; the training prompts span "
        allowed += f"{self.pca.width} dimensions)"
        is_number = isinstance(ratio, Real) and not isinstance(ratio, bool)
        require(is_number and lowest <= ratio <= self.D, "ratio", ratio, allowed)
        return self.pca.narrowed(round(self.D / ratio))

    def rebuilt(self, adapter: Film, ids: Int64[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Return the adapter's embeddings of these vocabulary entries."""
        compressed = own(self.pca, adapter).compress(self.lm.embedding_table[ids])
        return adapters.decode(adapter, compressed)


def own(pca: Compression, adapter: Film) -> Compression:
    """Return the compression an adapter was trained with, which its file holds.

    It differs from the reader's own `pca` by the training prompts, and what it keeps is unknown.
    """
    return replace(pca, mean=adapter.mean, components=adapter.components, kept=math.nan)


def look_up(ids: Int64[Tensor, " N"], rows: Float[Tensor, "N D"]) -> Embed:
    """Return the map from token ids to their rows; `ids` are sorted."""

    def embed(tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        # Padding and answer tokens may have no row; whatever they get is not read.
        return embedding(torch.searchsorted(ids, tokens).clamp(max=len(ids) - 1), rows)

    return embed


def first_question(config: StudyConfig) -> tuple[str, str, list[str]]:
    """Return passage, question and gold answers of the first test question."""
    row = data.rows(config.replace(test_examples=1), "test")[0]
    return row["context"], row["question"], row["answers"]["text"]


def load(preset: str = "quick", **changes) -> Reader:
    """Load a preset's language model, with any fields of StudyConfig changed, ready for questions.

    PCA is fitted to the training prompts. Where the hub does not provide them, vocabulary entries
    weigh the same instead, as with `weighting="vocabulary"`, and a warning says so. Raises what
    `StudyConfig`, `loading.load` and `load_split` raise.
    """
    return make(load_preset(preset).replace(**changes))


def make(config: StudyConfig) -> Reader:
    """Return the reader of a config; see `load`."""
    lm = loading.load(config)
    counts = prompt_counts(config, lm) if config.weighting == "token" else None
    if counts is None:
        config = config.replace(weighting="vocabulary")
    table = lm.embedding_table[: lm.token_rows]
    return Reader(config, lm, fit_pca(table, counts, None, config.weighting))


def prompt_counts(config: StudyConfig, lm: FrozenLM) -> Int64[Tensor, " V"] | None:
    """Return how often each token occurs in the training prompts; None without the hub's data."""
    try:
        examples = data.rows(config, "train")
    except data.HubError:
        warnings.warn(
            f"the PCA weighs all vocabulary entries the same, because the training prompts of "
            f"data={config.data!r} cannot be loaded from the hub",
            stacklevel=2,
        )
        return None
    encoded = encode(examples, lm.tokenizer, config, training=True)
    return torch.from_numpy(token_counts(encoded.prompts, lm.token_rows))
