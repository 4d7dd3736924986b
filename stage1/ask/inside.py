"""Look inside one prompt: what the frozen model reads under a condition, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stage1.adapter import Film
from stage1.ask.reader import Ratio, Reader, look_up, own
from stage1.ask.reading import Answered
from stage1.compress import nearest_codebook
from stage1.corpus.prompts import Tokenizer, shorten
from stage1.evaluation.conditions import untrained_conditions
from stage1.fields import require
from stage1.model import engine
from stage1.model.greedy import Embed

UNTRAINED = ("embeddings", "pca_inverse", "codebook")
"""Conditions that need no adapter. `embeddings` answers as token ids do."""
RATIOS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Stops of the slider, as far as the model and its training prompts allow them."""


@dataclass(frozen=True)
class Inside:
    """One prompt as the frozen model reads it under one condition, and its answer."""

    condition: str
    K: int | None
    """None where nothing was compressed."""
    answer: Answered
    first: Float[Tensor, " V"]
    """The distribution of the answer's first token, on the CPU."""
    tokens: pd.DataFrame
    """One row per prompt token: its text `token`, the text of the `nearest` vocabulary entry to its
    rebuilt embedding, whether that entry is `right`, and the `cosine` to its original embedding.
    An adapter's has the last three again for the PCA inverse it could have been: `pca_nearest`,
    `pca_right` and `pca_cosine`."""

    @property
    def wrong(self) -> int:
        """How many prompt tokens have a wrong nearest entry."""
        return int((~self.tokens["right"]).sum())


@dataclass(frozen=True)
class Explorer:
    """A reader with adapters, to look inside prompts of one's own."""

    reader: Reader
    trained: Mapping[str, Film] = field(default_factory=dict)
    """By name; see `of`."""

    @classmethod
    def of(cls, reader: Reader) -> "Explorer":
        """Return an explorer with all committed adapters of the reader's model."""
        return cls(reader, reader.committed)

    @property
    def conditions(self) -> list[str]:
        return [*UNTRAINED, *self.trained]

    def ratios(self, wanted: Sequence[int | float] = RATIOS) -> list[int | float]:
        """Return those ratios D/K that the model and its training prompts allow."""
        D, widest = self.reader.D, self.reader.pca.width
        return [ratio for ratio in wanted if D / widest <= ratio <= D]

    def look(
        self, context: str, question: str, condition: str = "pca_inverse", ratio: Ratio = None
    ) -> Inside:
        """Read and answer one prompt under a condition.

        `ratio` is D/K of PCA inverse and lookup, None the config's; an adapter keeps its own K.
        Raises ValueError for an unknown condition, an empty question or one over the prompt budget,
        and a ratio that no K has.
        """
        require(condition in self.conditions, "condition", condition, ", ".join(self.conditions))
        require(bool(question.strip()), "question", question, "a question, not empty")
        reader = self.reader
        prompt, _ = shorten(reader.lm.tokenizer, reader.config, context, question)
        ids = torch.tensor(prompt, device=reader.lm.device)
        used = ids.unique()
        rows, K = self.rows(used, condition, ratio)
        embed, places = look_up(used, rows), torch.searchsorted(used, ids)
        tokens = {"token": pieces(reader.lm.tokenizer, prompt), **self.measures(used, rows, places)}
        if condition in self.trained:
            linear = self.linear(used, self.trained[condition])
            before = self.measures(used, linear, places)
            tokens |= {f"pca_{name}": values for name, values in before.items()}
        answer, first = reader.answer(prompt, embed), self.first(ids, embed)
        return Inside(condition, K, answer, first, pd.DataFrame(tokens))

    def rows(
        self, ids: Int64[Tensor, " N"], condition: str, ratio: Ratio
    ) -> tuple[Float[Tensor, "N D"], int | None]:
        """Return the rebuilt embeddings of these vocabulary entries, and K."""
        if condition in self.trained:
            adapter = self.trained[condition]
            return self.reader.rebuilt(adapter, ids), len(adapter.components)
        compression = self.reader.compression(ratio, None)
        rows = untrained_conditions(self.reader.lm, compression, ids=ids)[condition]
        assert rows is not None
        return rows, None if condition == "embeddings" else compression.width

    def linear(self, ids: Int64[Tensor, " N"], adapter: Film) -> Float[Tensor, "N D"]:
        """Return the PCA inverse from the compressed vectors that the adapter reads."""
        compression = own(self.reader.pca, adapter)
        return compression.expand(compression.compress(self.reader.lm.embedding_table[ids]))

    def measures(
        self, ids: Int64[Tensor, " N"], rows: Float[Tensor, "N D"], places: Int64[Tensor, " T"]
    ) -> dict[str, list]:
        """Compare each prompt token's rebuilt embedding with the table; `places` are their rows."""
        table, tokenizer = self.reader.lm.embedding_table, self.reader.lm.tokenizer
        nearest = nearest_codebook(rows, table)
        cosine = cosine_similarity(rows.float(), table[ids].float(), dim=1)
        texts = [str(tokenizer.decode([entry])) for entry in nearest[places].tolist()]
        right = (nearest == ids)[places].tolist()
        return {"nearest": texts, "right": right, "cosine": cosine[places].tolist()}

    @engine.uncompiled
    @torch.inference_mode()
    def first(self, ids: Int64[Tensor, " T"], embed: Embed) -> Float[Tensor, " V"]:
        """Return the probabilities of the token that follows the prompt."""
        last = torch.zeros(1, len(ids), dtype=torch.bool, device=ids.device)
        last[0, -1] = True
        return self.reader.lm.logits(embed(ids[None]), last)[0].softmax(-1).cpu()

    def likeliest(self, *insides: Inside, count: int = 5) -> dict[str, list[float]]:
        """Return the likeliest first tokens, by text, with their probability in each of `insides`.

        They are ranked by their highest probability in any.
        """
        first = torch.stack([inside.first for inside in insides])
        best = first.max(0).values.topk(min(count, first.shape[1])).indices.tolist()
        decode = self.reader.lm.tokenizer.decode
        return {str(decode([entry])): first[:, entry].tolist() for entry in best}

    def by_ratio(
        self, context: str, question: str, ratios: Sequence[int | float] = RATIOS
    ) -> list[Inside]:
        """Return the PCA inverse at each ratio that the model allows."""
        return [self.look(context, question, ratio=ratio) for ratio in self.ratios(ratios)]

    def by_condition(self, context: str, question: str, ratio: Ratio = None) -> list[Inside]:
        """Return the untrained conditions at one ratio and every adapter at its own."""
        return [self.look(context, question, name, ratio) for name in self.conditions]

    def first_tokens(self, insides: Sequence[Inside], count: int = 5) -> pd.DataFrame:
        """Return the probabilities of the likeliest first tokens, one row per ratio D/K."""
        ratios = pd.Index(
            [self.reader.D / inside.K for inside in insides if inside.K], name="ratio"
        )
        return pd.DataFrame(self.likeliest(*insides, count=count), index=ratios)

    def summary(self, insides: Sequence[Inside], original: Inside) -> pd.DataFrame:
        """Return one row per reading.

        `ratio` D/K; `answer` and its `probability`; `agrees`, the probability of the first token
        that `original` likes best; the number of `wrong` prompt tokens and its `wrong_percent`.
        """
        best = int(original.first.argmax())
        rows = [
            {
                "condition": inside.condition,
                "ratio": self.reader.D / inside.K if inside.K else 1.0,
                "answer": inside.answer.text,
                "probability": inside.answer.probability,
                "agrees": float(inside.first[best]),
                "wrong": inside.wrong,
                "wrong_percent": 100 * inside.wrong / len(inside.tokens),
            }
            for inside in insides
        ]
        return pd.DataFrame(rows)


def moved(insides: Sequence[Inside]) -> pd.DataFrame:
    """Return the prompt tokens of several readings below each other, with their `condition`."""
    return pd.concat([inside.tokens.assign(condition=inside.condition) for inside in insides])


def wrong_tokens(inside: Inside) -> int:
    """Return how many prompt tokens have a wrong nearest entry; a key to sort by."""
    return inside.wrong


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return each token's text, with the space before it even where it decodes without."""
    before = [str(tokenizer.decode([token])) for token in ids]
    pairs = [str(tokenizer.decode(list(pair))) for pair in pairwise(ids)]
    after = [pair[len(text) :] for text, pair in zip(before, pairs, strict=False)]
    return [*before[:1], *after]
