"""Prompts and answers as tokens: templates, length budgets, and counts."""

import copy
import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import encode, render, token_counts
from stage1.corpus.squad_files import read_squad_json

CONFIG = StudyConfig()


def row(context: str, question: str = "What?", answer: str = "", start: int | None = None) -> dict:
    start = context.index(answer) if start is None else start
    answers = {"text": [answer], "answer_start": [start]}
    return {"id": "1", "title": "t", "context": context, "question": question, "answers": answers}


def with_template(tokenizer, template: str | None):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.fixture(scope="module")
def rows():
    return almanac.table(100).to_pylist()


# ---------------------------------------------------------------- prompts and answers


def test_plain_and_chat_prompts_are_the_same_to_the_shipped_tokenizer(rows, tokenizer):
    plain, chat = (
        encode(rows, tokenizer, CONFIG.replace(prompt_template=name)) for name in ("plain", "chat")
    )
    assert plain == chat


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_prompt_begins_with_the_begin_token_and_an_answer_ends_with_the_end_token(
    rows, tokenizer, template
):
    encoded = encode(rows, tokenizer, CONFIG.replace(prompt_template=template))
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for prompt, answer in zip(encoded.prompts, encoded.answers, strict=True):
        assert prompt[0] == begin and begin not in prompt[1:] and end not in prompt
        assert answer[-1] == end and end not in answer[:-1] and begin not in answer


def test_prompt_and_answer_read_as_the_example(rows, tokenizer):
    encoded = encode(rows, tokenizer, CONFIG)
    for row, prompt, answer in zip(rows, encoded.prompts, encoded.answers, strict=True):
        text = f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer:"
        assert tokenizer.decode(prompt[1:]) == text
        assert tokenizer.decode(answer[:-1]) == f" {row['answers']['text'][0]}"


def test_items_belong_to_their_examples(rows, tokenizer):
    encoded = encode(rows, tokenizer, CONFIG)
    assert len(encoded) == len(rows)
    assert encoded.ids == [row["id"] for row in rows]
    assert encoded.titles == [row["title"] for row in rows]
    assert encoded.golds == [row["answers"]["text"] for row in rows]
    assert (encoded.shortened, encoded.dropped) == (0, 0)


def test_no_examples_give_no_prompts(tokenizer):
    assert len(encode([], tokenizer, CONFIG)) == 0


@pytest.mark.parametrize(
    "ending", ["eos_token + '\\n'", "''", "eos_token + eos_token", "eos_token + 'Bye.' + eos_token"]
)
def test_an_answer_ends_with_one_end_token_whatever_the_template_writes_after_it(
    rows, tokenizer, ending
):
    prompt = "{{ bos_token + messages[0]['content'] + '\\nAnswer:' }}"
    answer = f"{{{{ ' ' + messages[1]['content'] + {ending} }}}}"
    template = f"{prompt}{{% if not add_generation_prompt %}}{answer}{{% endif %}}"
    chatty = with_template(tokenizer, template)
    assert render(chatty, "chat", "c", "q", "a")[1] != " a<eos>"
    chat = CONFIG.replace(prompt_template="chat")
    assert encode(rows, chatty, chat) == encode(rows, tokenizer, CONFIG)


def test_the_chat_template_needs_a_tokenizer_that_has_one(tokenizer):
    with pytest.raises(ValueError, match=r"prompt_template='chat'.*no chat template"):
        render(with_template(tokenizer, None), "chat", "c", "q")


def test_a_chat_template_that_rewrites_the_prompt_is_refused(tokenizer):
    fickle = "{% if messages|length == 1 %}One turn. {% endif %}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="rewrites the prompt"):
        render(with_template(tokenizer, fickle), "chat", "c", "q", "a")


# ---------------------------------------------------------------- length budgets

LONG = {
    "almanac": " ".join(almanac.article(index)[0]["context"] for index in range(3)),
    "emoji": "🦊🏔️" * 80,
    "chinese": "长江是亚洲第一长河" * 30,
    "one word": "x" * 900,
    "spaces": " \n" * 300,
}


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("context", LONG.values(), ids=LONG.keys())
def test_a_long_prompt_loses_the_end_of_its_context_and_nothing_else(tokenizer, context, template):
    head, tail = "Context: ", "\nQuestion: Where is the fox?\nAnswer:"
    for budget in (40, 41, 42, 43, 160):
        config = CONFIG.replace(max_prompt_tokens=budget, prompt_template=template)
        encoded = encode([row(context, "Where is the fox?")], tokenizer, config)
        (prompt,) = encoded.prompts
        text = tokenizer.decode(prompt[1:])
        assert encoded.shortened == 1
        assert budget - 10 < len(prompt) <= budget
        assert text.startswith(head) and text.endswith(tail)
        kept = text.removeprefix(head).removesuffix(tail)
        assert context.startswith(kept) and kept != context


def test_a_prompt_of_exactly_the_budget_keeps_all_its_context(rows, tokenizer):
    (whole,) = encode(rows[:1], tokenizer, CONFIG).prompts
    for spare, shortened in [(0, 0), (-1, 1)]:
        encoded = encode(rows[:1], tokenizer, CONFIG.replace(max_prompt_tokens=len(whole) + spare))
        assert encoded.shortened == shortened and (encoded.prompts == [whole]) == (not shortened)


@given(context=st.text(max_size=200), budget=st.integers(13, 60))
@example(context="🦊" * 50, budget=17)
def test_no_text_breaks_the_budget(tokenizer, context, budget):
    encoded = encode([row(context)], tokenizer, CONFIG.replace(max_prompt_tokens=budget))
    assert len(encoded.prompts[0]) <= budget
    assert tokenizer.decode(encoded.prompts[0]).endswith("\nQuestion: What?\nAnswer:")


def test_a_budget_too_small_for_the_question_is_refused_with_the_length_needed(tokenizer):
    examples = [row("Some context.", "Which town " + "far " * 60 + "away?")]
    with pytest.raises(ValueError, match="max_prompt_tokens=20") as raised:
        encode(examples, tokenizer, CONFIG.replace(max_prompt_tokens=20))
    needed = int(re.search(r"at least (\d+)", str(raised.value)).group(1))
    (prompt,) = encode(examples, tokenizer, CONFIG.replace(max_prompt_tokens=needed)).prompts
    assert len(prompt) == needed
    with pytest.raises(ValueError):
        encode(examples, tokenizer, CONFIG.replace(max_prompt_tokens=needed - 1))


def test_a_training_example_is_dropped_if_its_answer_is_cut(tokenizer):
    context = LONG["almanac"]
    early, late = row(context, answer=context[:10]), row(context, answer=context[-10:])
    training = encode([early, late], tokenizer, CONFIG, training=True)
    assert training.golds == [[context[:10]]]
    assert (training.dropped, training.shortened) == (1, 2)
    testing = encode([early, late], tokenizer, CONFIG)
    assert testing.golds == [[context[:10]], [context[-10:]]]
    assert (testing.dropped, testing.shortened) == (0, 2)


def test_an_answer_is_kept_exactly_if_its_last_character_is(tokenizer):
    context, config = LONG["almanac"], CONFIG.replace(max_prompt_tokens=60)
    (prompt,) = encode([row(context)], tokenizer, config).prompts
    kept = tokenizer.decode(prompt[1:]).split("\nQuestion:")[0].removeprefix("Context: ")
    for end, dropped in [(len(kept), 0), (len(kept) + 1, 1)]:
        example = row(context, answer=context[end - 8 : end], start=end - 8)
        assert encode([example], tokenizer, config, training=True).dropped == dropped


def test_a_training_answer_over_its_budget_is_dropped(tokenizer):
    context = "The letters are a b c d e f g h."
    examples = [row(context, answer="a b c"), row(context, answer="a b c d e f g h")]
    (short, long) = encode(examples, tokenizer, CONFIG).answers
    assert len(short) < len(long)
    for budget, kept in [(len(long), 2), (len(long) - 1, 1), (len(short) - 1, 0)]:
        config = CONFIG.replace(max_answer_tokens=budget)
        encoded = encode(examples, tokenizer, config, training=True)
        assert (len(encoded), encoded.dropped) == (kept, 2 - kept)


@pytest.mark.slow
def test_real_squad_prompts_fit_their_budget(squad_sample, tokenizer):
    examples = read_squad_json(squad_sample).slice(0, 1_000).to_pylist()
    config = CONFIG.replace(max_prompt_tokens=200)
    encoded = encode(examples, tokenizer, config, training=True)
    assert encoded.shortened > 100 and encoded.dropped > 10
    assert len(encoded) == 1_000 - encoded.dropped
    assert max(map(len, encoded.prompts)) <= 200
    assert max(map(len, encoded.answers)) <= config.max_answer_tokens
    for prompt, golds in zip(encoded.prompts, encoded.golds, strict=True):
        assert golds[0] in tokenizer.decode(prompt)


# ---------------------------------------------------------------- counts


@given(prompts=st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=8))
def test_token_counts_are_those_of_a_counter(prompts):
    expected = Counter(token for prompt in prompts for token in prompt)
    counts = token_counts(prompts, 31)
    assert counts.tolist() == [expected[token] for token in range(31)]


def test_token_counts_take_a_generator(rows, tokenizer):
    prompts = encode(rows, tokenizer, CONFIG).prompts
    counts = token_counts((prompt for prompt in prompts), len(tokenizer))
    assert counts.sum() == sum(map(len, prompts)) and counts[tokenizer.bos_token_id] == len(prompts)
