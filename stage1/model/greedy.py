"""Greedy decoding of one batch: shared prefixes are read once, and finished rows leave the batch.

Prompts on one passage start with it. Attention is causal and an input embedding depends on its
token alone, so all of them have the same keys and values there. Answers are those of
`generation.generate_ids`, up to the rounding of sums taken in another order.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from stage1.model import engine
from stage1.model.language_model import FrozenLM

Prompts = Sequence[list[int]]
Embed = Callable[[Int[Tensor, "B T"]], Float[Tensor, "B T D"]]

MAX_SHARE_READ = 0.9
"""Prefixes are read apart if the model then reads at most this share of the tokens and padding."""
MAX_SHARE_ACTIVE = 0.5
"""Finished rows leave the batch once at most this share of its rows is unfinished."""


def left_pad(prompts: Prompts, pad: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return the prompts padded on the left, and the mask of real tokens, made from lengths."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) >= (longest - lengths)[:, None]


def first_end(lm: FrozenLM, row: list[int]) -> int:
    """Return the index of the first end token, or the row's length if there is none."""
    ends = lm.end_tokens
    return next((index for index, token in enumerate(row) if token in ends), len(row))


def common_prefix_length(one: list[int], other: list[int]) -> int:
    """Return the number of tokens that both sequences start with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def group_by_prefix(prompts: Prompts) -> list[list[int]]:
    """Group prompt indices: each prompt shares at least half its tokens with its group's first.

    Groups are sorted by prompt, so the prefix that the first and the last share is common to all.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        first = prompts[groups[-1][0]] if groups else []
        longer = max(len(first), len(prompts[i]))
        if groups and 2 * common_prefix_length(first, prompts[i]) >= longer:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def by_prefix(prompts: Prompts, batch_size: int) -> list[list[int]]:
    """Return prompt indices in batches of similar length, the longest (and largest) first.

    Prompts that share a prefix stay in one batch, unless they are more than `batch_size`.
    """
    batches: list[list[int]] = []
    groups = group_by_prefix(prompts)
    for group in sorted(groups, key=lambda group: -max(len(prompts[i]) for i in group)):
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            if not batches or len(batches[-1]) + len(part) > batch_size:
                batches.append([])
            batches[-1] += part
    return batches


class Split(NamedTuple):
    """Prompt i is `prefixes[owners[i]] + suffixes[i]`, and no suffix is empty."""

    prefixes: list[list[int]]
    owners: list[int]
    suffixes: list[list[int]]

    def widths(self) -> list[int]:
        """Return the padded lengths of prefixes and suffixes."""
        return [max(map(len, rows), default=0) for rows in (self.prefixes, self.suffixes)]

    def tokens(self) -> int:
        """Return the number of tokens that the model reads, padding included."""
        prefix, suffix = self.widths()
        return len(self.prefixes) * prefix + len(self.suffixes) * suffix


def split_at(prompts: Prompts, lengths: Sequence[int]) -> Split:
    """Split each prompt after a prefix of the given length; equal prefixes are stored once."""
    rows: dict[tuple[int, ...], int] = {}
    owners, suffixes = [], []
    for prompt, length in zip(prompts, lengths, strict=True):
        owners.append(rows.setdefault(tuple(prompt[:length]), len(rows)))
        suffixes.append(prompt[length:])
    return Split([list(prefix) for prefix in rows], owners, suffixes)


def shared_prefix_lengths(prompts: Prompts) -> list[int]:
    """Return each prompt's prefix length common to its group: 0 if alone, and never all of one."""
    lengths = [0] * len(prompts)
    for group in group_by_prefix(prompts):
        if len(group) > 1:
            shared = common_prefix_length(prompts[group[0]], prompts[group[-1]])
            shared = min(shared, min(len(prompts[i]) for i in group) - 1)
            for i in group:
                lengths[i] = shared
    return lengths


def cheapest_split(prompts: Prompts) -> Split:
    """Return the split with the fewest tokens to read, or no prefixes if they save too little.

    A prompt can be split anywhere, so suffixes can be limited to a width: where a prompt shares
    nothing, or its own part is wider, the rest of it becomes part of its prefix.
    """
    whole = Split([], [], list(prompts))
    sizes = list(zip(map(len, prompts), shared_prefix_lengths(prompts), strict=True))
    widths = sorted(size - shared for size, shared in sizes if shared)
    tried = widths[:: -max(1, len(widths) // 8)]  # the widest, and some narrower ones
    splits = [split_at(prompts, [max(n, size - width) for size, n in sizes]) for width in tried]
    best = min(splits, key=Split.tokens, default=whole)
    return best if best.tokens() <= MAX_SHARE_READ * whole.tokens() else whole


class PreallocatedLayer(DynamicLayer):
    """A layer's KV cache in buffers allocated once; a DynamicLayer copies everything per token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        states = key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(*states)
            self.buffers = [x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in states]
        seen = self.get_seq_length()
        stop = seen + key_states.shape[2]
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[:, :, seen:stop] = new
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        assert self.keys is not None and self.values is not None
        self.is_initialized = False
        own = indices.to(self.keys.device)  # layers may be spread over devices
        self.update(self.keys[own], self.values[own])


class DecodeState:
    """A batch of rows that the model reads part by part: its KV cache and padding mask."""

    def __init__(self, lm: FrozenLM, batch_size: int, capacity: int):
        self.lm = lm
        layers = DynamicCache(config=lm.model.config).layers
        self.cache = Cache(layers=[PreallocatedLayer(capacity) for _ in layers])
        self.mask = torch.ones(batch_size, capacity, dtype=torch.bool, device=lm.device)

    def forward(self, inputs: Tensor) -> Float[Tensor, "B V"]:
        """Read token ids [B, T] or embeddings [B, T, D]; return the next token's logits."""
        seen = self.cache.get_seq_length()
        mask = self.mask[:, : seen + inputs.shape[1]]
        positions = (mask.cumsum(1)[:, seen:] - 1).clamp(min=0)  # padding has no position
        return self.lm.model(
            **{"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs},
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def prefill(self, prompts: Prompts, embed: Embed | None) -> Float[Tensor, "B V"]:
        """Read prompts, padded on the left; return the next token's logits."""
        ids, real = (tensor.to(self.lm.device) for tensor in left_pad(prompts, self.lm.pad_token))
        seen = self.cache.get_seq_length()
        self.mask[:, seen : seen + ids.shape[1]] = real
        return self.forward(ids if embed is None else embed(ids).to(self.lm.model.dtype))

    def select(self, indices: Int[Tensor, " N"]) -> None:
        """Keep these rows, in this order; a row may occur several times."""
        self.cache.batch_select_indices(indices)
        self.mask = self.mask[indices]


def can_share_prefixes(lm: FrozenLM) -> bool:
    """Return whether `greedy_ids` supports the model: full attention and explicit position ids."""
    layers = DynamicCache(config=lm.model.config).layers
    parameters = set(signature(lm.model.forward).parameters)
    full_attention = all(type(layer) is DynamicLayer for layer in layers)
    return full_attention and {"position_ids", "logits_to_keep"} <= parameters


def decode_greedily(
    state: DecodeState, logits: Float[Tensor, "B V"], max_new_tokens: int
) -> Int[Tensor, "B T"]:
    """Return the likeliest next tokens until every row has ended; ignore all after an end token."""
    lm, active = state.lm, torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    ends = torch.tensor(lm.end_tokens, dtype=torch.long, device=logits.device)
    new = torch.full((len(logits), max_new_tokens), lm.pad_token, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    token = logits.argmax(-1)
    for step in range(max_new_tokens):
        if step:
            token = state.forward(token[:, None]).argmax(-1)
        new[rows, step] = token
        active = active & ~torch.isin(token, ends)
        count = int(active.sum())  # the only synchronisation with the device in a step
        if not count:
            break
        if count <= MAX_SHARE_ACTIVE * len(active):
            kept = active.nonzero()[:, 0]
            state.select(kept)
            rows, token, active = rows[kept], token[kept], active[kept]
    return new


@engine.uncompiled
@torch.inference_mode()
def greedy_ids(
    lm: FrozenLM,
    prompts: Prompts,
    embed: Embed | None,
    max_new_tokens: int,
    share: bool = True,
) -> list[list[int]]:
    """Return one batch's new token ids: up to its first end token, included, or `max_new_tokens`.

    `embed` maps token ids to input embeddings, token by token; None passes the ids themselves.
    Without `share`, every prompt is read in full.
    """
    parts = cheapest_split(prompts) if share else Split([], [], list(prompts))
    capacity = sum(parts.widths()) + max_new_tokens
    state = DecodeState(lm, len(parts.prefixes) or len(prompts), capacity)
    if parts.prefixes:
        state.prefill(parts.prefixes, embed)
        state.select(torch.tensor(parts.owners, device=lm.device))
    new = decode_greedily(state, state.prefill(parts.suffixes, embed), max_new_tokens)
    return [row[: first_end(lm, row) + 1] for row in new.tolist()]
