"""Faults of the adapter and its training: its start, its precision, what is labelled."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from stage1.adapter import Adapter
from stage1.faults.switch import replaces
from stage1.model.token_batch import TokenBatch, check_prompts, padded_batch

MAKE = "stage1.adapter:make"
LABELS = "stage1.loss_parts:CrossEntropy"
DROPOUT = 0.1
Chosen = Callable[[str], bool]

# ---------------------------------------------------------------- start and dropout


@replaces("unit_rms_output", MAKE)
def of_unit_rms(original):
    def make(compression, table, counts, config) -> Adapter:
        return original(compression, table, counts, config.replace(output_scaling="unit_rms"))

    return make


@replaces("xavier_start", MAKE)
def from_xavier(original):
    def make(*arguments) -> Adapter:
        adapter = original(*arguments)
        for module in adapter.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        return adapter

    return make


def drop_in_training(mlp: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return dropout(output, DROPOUT, training=torch.is_grad_enabled())


def drop_always(mlp: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return dropout(output, DROPOUT, training=True)


def dropping(hook: Callable) -> Callable:
    """Return a maker of `make` whose adapters run this hook, and no other, after their MLP."""

    def maker(original):
        def make(*arguments) -> Adapter:
            adapter = original(*arguments)
            adapter.mlp._forward_hooks.clear()
            adapter.mlp.register_forward_hook(hook)
            return adapter

        return make

    return maker


replaces("dropout_in_training", MAKE)(dropping(drop_in_training))
replaces("dropout_at_evaluation", MAKE)(dropping(drop_always))


# ---------------------------------------------------------------- precision


def every(name: str) -> bool:
    return True


def is_gain(name: str) -> bool:
    """Tell the parameters that start at 1: the gains of the norms and of the output."""
    return name == "gain" or name.endswith("norm.weight")


@torch.no_grad()
def round_to_bfloat16(named: Iterable[tuple[str, Tensor]], chosen: Chosen) -> None:
    """Round the chosen parameters in place to what bfloat16 can hold."""
    for name, parameter in named:
        if chosen(name):
            parameter.copy_(parameter.bfloat16())


def rounded_start(chosen: Chosen) -> Callable:
    def maker(original):
        def make(*arguments) -> Adapter:
            adapter = original(*arguments)
            round_to_bfloat16(adapter.named_parameters(), chosen)
            return adapter

        return make

    return maker


def rounded_step(chosen: Chosen) -> Callable:
    def maker(original):
        def take_step(loop, batch) -> dict:
            row = original(loop, batch)
            round_to_bfloat16(loop.adapter.named_parameters(), chosen)
            return row

        return take_step

    return maker


def rounded_stack(chosen: Chosen) -> Callable:
    def maker(original):
        def step(stack) -> Tensor:
            norms = original(stack)
            for block in stack.blocks:
                round_to_bfloat16(block.items(), chosen)
            return norms

        return step

    return maker


for name, chosen in (("bfloat16_weights", every), ("frozen_gains", is_gain)):
    replaces(name, MAKE)(rounded_start(chosen))
    replaces(name, "stage1.training.loop:take_step")(rounded_step(chosen))
    replaces(name, "stage1.training.stacked:StackedAdapters.step")(rounded_stack(chosen))


# ---------------------------------------------------------------- labels


@replaces("labels_on_prompt", LABELS)
def of_the_prompt(original):
    def cross_entropy(tokens, supervised, attention_mask=None, weight=1.0):
        return original(tokens, supervised | tokens.is_prompt, attention_mask, weight)

    return cross_entropy


@replaces("labels_on_padding", LABELS)
def of_padding(original):
    def cross_entropy(tokens, supervised, attention_mask=None, weight=1.0):
        real = tokens.is_prompt | tokens.is_answer
        return original(tokens, supervised | ~real, real, weight)

    return cross_entropy


@replaces("gap_before_answer", LABELS)
def without_the_gap(original):
    def cross_entropy(tokens, supervised, attention_mask=None, weight=1.0):
        return original(tokens, supervised, tokens.is_prompt | tokens.is_answer, weight)

    return cross_entropy


@replaces("gap_before_answer", "stage1.objectives:token_batch")
def with_a_gap(original):
    def token_batch(batch, answers, context) -> TokenBatch:
        check_prompts(batch.prompts)
        pad, device = context.lm.pad_token, context.lm.device
        lengths = [len(prompt) for prompt in batch.prompts]
        padded = [prompt + [pad] * (max(lengths) - len(prompt)) for prompt in batch.prompts]
        tokens = padded_batch(padded, answers, pad, device)
        index = torch.arange(tokens.ids.shape[1], device=device)
        is_prompt = index < torch.tensor(lengths, device=device)[:, None]
        return TokenBatch(tokens.ids, is_prompt, tokens.is_answer)

    return token_batch
