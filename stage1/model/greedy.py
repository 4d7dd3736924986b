"""Greedy decoding of one batch that reads a beginning once for all prompts that share it, and lets finished rows go.

Questions on one passage come after it, so their prompts begin alike. Attention is causal and an input embedding depends
on its token alone: keys and values of the shared tokens are the same for all of them. Answers are those of
`generation.generate_ids`, up to the rounding of sums taken in another order.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from itertools import takewhile
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from stage1.model import engine
from stage1.model.language_model import FrozenLM

Embed = Callable[[Int[Tensor, "B T"]], Float[Tensor, "B T D"]]

WORTH = 0.9
"""Beginnings are read apart where the model then reads at most this share of the tokens, padding included."""
STILL_GOING = 0.5
"""Finished rows leave the batch once at most this share of its rows is still going."""


# ---------------------------------------------------------------- prompts


def left_pad(
    prompts: Sequence[list[int]], pad: int
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Prompts as one batch that ends flush right, and the mask of real tokens, made from lengths and never from ids."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) >= (longest - lengths)[:, None]


def first_end(lm: FrozenLM, row: list[int]) -> int:
    """Place of the first end token; the row's length where there is none."""
    ends = lm.end_tokens
    return next((place for place, token in enumerate(row) if token in ends), len(row))


def in_common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def alike(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Indices of the prompts in groups that begin alike: with the group's first, each shares at least half its tokens.

    Within a group they are sorted, so what its first and last share is shared by all.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        first = prompts[groups[-1][0]] if groups else []
        if groups and 2 * in_common(first, prompts[i]) >= max(len(first), len(prompts[i])):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def by_prefix(prompts: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, longest first, so that the largest batch is met first.

    Prompts that begin alike share a batch, which may leave it short of `batch_size`; only more of them are cut apart.
    """
    batches: list[list[int]] = []
    for group in sorted(alike(prompts), key=lambda group: -max(len(prompts[i]) for i in group)):
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            if not batches or len(batches[-1]) + len(part) > batch_size:
                batches.append([])
            batches[-1] += part
    return batches


class Split(NamedTuple):
    """Prompts cut in two: prompt i is `prefixes[owners[i]] + suffixes[i]`, and no suffix is empty."""

    prefixes: list[list[int]]
    owners: list[int]
    suffixes: list[list[int]]

    def tokens(self) -> int:
        """What the model reads, padding included."""
        return sum(
            len(rows) * max(map(len, rows)) for rows in (self.prefixes, self.suffixes) if rows
        )


def cut(prompts: Sequence[list[int]], places: Sequence[int]) -> Split:
    """Each prompt cut at its place; equal prefixes are one."""
    rows: dict[tuple[int, ...], int] = {}
    both = list(zip(prompts, places, strict=True))
    owners = [rows.setdefault(tuple(prompt[:place]), len(rows)) for prompt, place in both]
    return Split(
        [list(prefix) for prefix in rows], owners, [prompt[place:] for prompt, place in both]
    )


def shared_lengths(prompts: Sequence[list[int]]) -> list[int]:
    """Tokens that each prompt has in common with those that begin alike: never all of one, and 0 where it is alone."""
    lengths = [0] * len(prompts)
    for group in alike(prompts):
        if len(group) > 1:
            shared = in_common(prompts[group[0]], prompts[group[-1]])
            shared = min(shared, min(len(prompts[i]) for i in group) - 1)
            for i in group:
                lengths[i] = shared
    return lengths


def split(prompts: Sequence[list[int]]) -> Split:
    """The split that leaves the fewest tokens to read, or no prefixes where sharing them is not worth another pass.

    Any place serves to cut a prompt, so suffixes may be held to a width: a prompt that shares nothing, or whose own
    part is wider, has the rest of it read among the prefixes.
    """
    whole = Split([], [], list(prompts))
    lengths = [
        (len(prompt), shared)
        for prompt, shared in zip(prompts, shared_lengths(prompts), strict=True)
    ]
    widths = sorted(length - shared for length, shared in lengths if shared)
    tried = widths[:: -max(1, len(widths) // 8)]  # the widest, and some narrower ones
    splits = [
        cut(prompts, [max(shared, length - width) for length, shared in lengths]) for width in tried
    ]
    best = min(splits, key=Split.tokens, default=whole)
    return best if best.tokens() <= WORTH * whole.tokens() else whole


# ---------------------------------------------------------------- the model


class Room(DynamicLayer):
    """Keys and values of one layer in room made once, where a DynamicLayer copies all of them at every token."""

    def __init__(self, room: int):
        super().__init__()
        self.room = room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.stores = [
            new.new_empty(*new.shape[:2], self.room, new.shape[3])
            for new in (key_states, value_states)
        ]
        self.keys, self.values = (store[:, :, :0] for store in self.stores)

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.keys.shape[2]
        stop = seen + key_states.shape[2]
        for store, new in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, seen:stop] = new
        self.keys, self.values = (store[:, :, :stop] for store in self.stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        keys, values = self.keys[indices], self.values[indices]
        self.is_initialized = False
        self.update(keys, values)


class Rows:
    """Rows of tokens that the model reads part by part, with the keys and values of what it has read."""

    def __init__(self, lm: FrozenLM, count: int, room: int):
        self.lm = lm
        self.cache = Cache(layers=[Room(room) for _ in DynamicCache(config=lm.model.config).layers])
        self.mask = torch.ones(count, room, dtype=torch.bool, device=lm.device)

    def read(self, **tokens: Tensor) -> Float[Tensor, "B V"]:
        """Logits of the token after `input_ids` [B, T] or `inputs_embeds` [B, T, D], which follow what was read."""
        seen = self.cache.get_seq_length()
        mask = self.mask[:, : seen + next(iter(tokens.values())).shape[1]]
        positions = (mask.cumsum(1)[:, seen:] - 1).clamp(min=0)  # slots of padding take none
        return self.lm.model(
            **tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def read_prompts(
        self, prompts: Sequence[list[int]], embed: Embed | None
    ) -> Float[Tensor, "B V"]:
        """The same for prompts, padded on the left."""
        ids, real = (tensor.to(self.lm.device) for tensor in left_pad(prompts, self.lm.pad_token))
        seen = self.cache.get_seq_length()
        self.mask[:, seen : seen + ids.shape[1]] = real
        if embed is None:
            return self.read(input_ids=ids)
        return self.read(inputs_embeds=embed(ids).to(self.lm.model.dtype))

    def select(self, indices: Int[Tensor, " N"]) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        self.cache.batch_select_indices(indices)
        self.mask = self.mask[indices]


def reads_in_parts(lm: FrozenLM) -> bool:
    """Whether `greedy_ids` can serve the model: every layer attends to all earlier tokens, and is told positions."""
    layers = DynamicCache(config=lm.model.config).layers
    known = signature(lm.model.forward).parameters
    return all(type(layer) is DynamicLayer for layer in layers) and {
        "position_ids",
        "logits_to_keep",
    } <= set(known)


def follow(rows: Rows, logits: Float[Tensor, "B V"], max_new_tokens: int) -> Int[Tensor, "B T"]:
    """The likeliest tokens from these logits on, until all rows ended; what stands after an end token means nothing."""
    lm, going = rows.lm, torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    ends = torch.tensor(lm.end_tokens, dtype=torch.long, device=logits.device)
    new = torch.full((len(logits), max_new_tokens), lm.pad_token, device=logits.device)
    places = torch.arange(len(logits), device=logits.device)
    for step in range(max_new_tokens):
        if step:
            logits = rows.read(input_ids=token[:, None])
        token = logits.argmax(-1)
        new[places, step] = token
        going = going & ~torch.isin(token, ends)
        left = int(going.sum())  # the one place in a step that waits for the device
        if not left:
            break
        if left <= STILL_GOING * len(going):
            kept = going.nonzero()[:, 0]
            rows.select(kept)
            places, token, going = places[kept], token[kept], going[kept]
    return new


@engine.uncompiled
@torch.inference_mode()
def greedy_ids(
    lm: FrozenLM,
    prompts: Sequence[list[int]],
    embed: Embed | None,
    max_new_tokens: int,
    share: bool = True,
) -> list[list[int]]:
    """New token ids of one batch, each up to and with its first end token, if that came within `max_new_tokens`.

    `embed` maps token ids to input embeddings, each token for itself; None passes the token ids themselves. Without
    `share` every prompt is read in full.
    """
    parts = split(prompts) if share else Split([], [], list(prompts))
    room = (
        sum(max(map(len, part), default=0) for part in (parts.prefixes, parts.suffixes))
        + max_new_tokens
    )
    rows = Rows(lm, len(parts.prefixes) or len(prompts), room)
    if parts.prefixes:
        rows.read_prompts(parts.prefixes, embed)
        rows.select(torch.tensor(parts.owners, device=lm.device))
    new = follow(rows, rows.read_prompts(parts.suffixes, embed), max_new_tokens)
    return [row[: first_end(lm, row) + 1] for row in new.tolist()]
