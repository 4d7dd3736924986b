"""A language model and a corpus that the project does not know: colours of things, in SQuAD's form.

The model is a Llama of two layers, trained in seconds to name the one colour of a passage.
"""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COLOURS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "violet"]
THINGS = ["kite", "boat", "scarf", "tent", "drum", "sledge", "ball", "coat", "cup", "bell"]
OWNERS = ["Nora", "Ilse", "Omar", "Petra", "Ruben", "Sven", "Tilda", "Wanda"]
PLACES = ["shed", "hall", "yard", "tower", "market", "harbour"]
STEPS, BATCH, WIDTH = 120, 32, 32


def question(rng: random.Random) -> tuple[str, str, str]:
    """Return a passage that names one colour, a question about it, and the colour."""
    owner, thing, place = rng.choice(OWNERS), rng.choice(THINGS), rng.choice(PLACES)
    colour, days = rng.choice(COLOURS), rng.randrange(2, 9)
    text = f"{owner} keeps a {thing} in the {place}. It is {colour}. It stayed there {days} days."
    return text, f"Which colour has the {thing} of {owner}?", colour


def write_questions(path: Path, articles: int = 80, each: int = 5) -> Path:
    """Write questions in SQuAD's nested form."""
    rng, data = random.Random("own"), []
    for a in range(articles):
        paragraphs = []
        for q in range(each):
            context, asked, colour = question(rng)
            answers = [{"text": colour, "answer_start": context.index(colour)}]
            qas = [{"id": f"{a}-{q}", "question": asked, "answers": answers}]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"Things {a}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": data}))
    return path


def prompt(context: str, asked: str) -> str:
    return f"Context: {context}\nQuestion: {asked}\nAnswer:"


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_model(folder: Path) -> Path:
    """Train the model on answers and end tokens, and save it with its tokenizer."""
    torch.manual_seed(0)
    rng = random.Random("training")
    drawn = [question(rng) for _ in range(STEPS * BATCH)]
    texts = [(prompt(context, asked), f" {colour}") for context, asked, colour in drawn]
    tokenizer = make_tokenizer([p + answer for p, answer in texts[:500]])
    model = LlamaForCausalLM(architecture(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(STEPS):
        batch, labels = rows(tokenizer, texts[step * BATCH : (step + 1) * BATCH])
        optimizer.zero_grad()
        model(input_ids=batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def architecture(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,  # 0.02 would leave so narrow a model on a plateau
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def rows(
    tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids, padded on the right, and labels on answer and end token alone."""
    encoded = [(tokenizer.encode(p), tokenizer.encode(a)) for p, a in texts]
    tokens = [[*p, *a, tokenizer.eos_token_id] for p, a in encoded]
    batch = torch.full((len(tokens), max(map(len, tokens))), tokenizer.pad_token_id)
    labels = torch.full_like(batch, -100)
    for row, ids in enumerate(tokens):
        batch[row, : len(ids)] = torch.tensor(ids)
        start = len(encoded[row][0])
        labels[row, start : len(ids)] = batch[row, start : len(ids)]
    return batch, labels
