"""Repeats and relatives: what counts as the same, what must not, and how long it takes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune_trainer.data import dedupe
from finetune_trainer.data.dataset import Message
from finetune_trainer.data.dedupe import Subject
from finetune_trainer.data.rows import Content

WORDS = """
account address agent answer app bank bill box branch call card case charge check city claim code company
contact contract copy cost country customer date day delay delivery desk device email error fee file form help
hour house invoice item key letter limit line list loan machine mail manager message minute model money month
name network number office order package page parcel part password pay person phone place plan price problem
product profile purchase question queue rate reason receipt record refund reply report request return road
room sale screen seller server service shop sign size state status stock store street support system team
ticket time tool town train update user value version visit wait week window work year
""".split()  # noqa: SIM905 - a hundred lines otherwise


def sentence(draw: random.Random, length: int = 14) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def groups_of(texts: list[str], *, source: str = "a") -> list[str]:
    return dedupe.groups([Subject(source=source, question=text, text=text) for text in texts])


def chat(*turns: tuple[str, str]) -> Content:
    return Content(messages=tuple(Message(role=role, content=content) for role, content in turns))


def subjects(*contents: Content) -> list[Subject]:
    return [dedupe.subject_of(content, source="a") for content in contents]


# -- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (Content(text="a b"), Content(text="  a \n b\t"), True),
        (Content(text="caf\u00e9"), Content(text="cafe\u0301"), True),
        (Content(text="a b"), Content(text="A b"), False),
        (Content(text="a", label="x"), Content(text="a", label="y"), False),
        (Content(text="a"), Content(text="a", label="x"), False),
        (chat(("user", "a"), ("assistant", "b")), chat(("user", "a "), ("assistant", "b")), True),
        (chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("assistant", "c")), False),
        (chat(("system", "s"), ("user", "a"), ("assistant", "b")), chat(("user", "a"), ("assistant", "b")), False),
        (chat(("user", "a b"), ("assistant", "c")), chat(("user", "a"), ("assistant", "b c")), False),
    ],
)
def test_the_content_id(first: Content, second: Content, same: bool) -> None:
    assert (dedupe.content_id(first) == dedupe.content_id(second)) == same


def test_conflicting_labels_are_found() -> None:
    contents = [Content(text="a b", label="x"), Content(text="a  b", label="y"), Content(text="c", label="x")]
    assert dedupe.conflicting_labels(contents) == {"a b": {"x", "y"}}


# -- relatives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "related"),
    [
        ("Where is my parcel?", "where is my  PARCEL?", True),
        ("Where is my parcel? I ordered it.", "where is my parcel; I ordered it!", True),
        (
            "Ann has 5 red apples and gives 2 to Mary. How many are left?",
            "Ann has 7 red apples and gives 2 to Mary. How many are left?",
            True,
        ),
        ("What is 5+3?", "What is 5-3?", False),
        ("What is the capital of France?", "What is the capital of Spain?", False),
        ("12+7", "12+8", False),
        ("a", "b", False),
        ("", "b", False),
    ],
)
def test_relatives(first: str, second: str, related: bool) -> None:
    one, other = groups_of([first, second])
    assert (one == other) == related


def test_an_example_with_a_corrected_label_stays_in_its_group() -> None:
    wrong, right = subjects(Content(text="Where is it?", label="x"), Content(text="Where is it?", label="y"))
    assert dedupe.groups([wrong]) == dedupe.groups([right])


def test_the_same_question_with_another_answer_is_related() -> None:
    first, second = dedupe.groups(
        subjects(
            chat(("system", "Be kind."), ("user", "Where is it?"), ("assistant", "On the table in the kitchen.")),
            chat(("user", "where is it"), ("assistant", "I do not know; ask somebody who has been at home today.")),
        )
    )
    assert first == second


def test_a_chat_is_related_to_those_that_go_on_from_it() -> None:
    """They teach the answer that it asks for."""
    draw = random.Random(5)
    first = [("user", sentence(draw)), ("assistant", sentence(draw, 5))]
    more = [("user", sentence(draw, 60)), ("assistant", sentence(draw, 60))]
    other = [("user", sentence(draw)), ("assistant", sentence(draw, 5))]
    short, long, unrelated = dedupe.groups(subjects(chat(*first), chat(*first, *more), chat(*other)))
    assert short == long != unrelated


def test_what_many_chats_begin_with_makes_no_relatives() -> None:
    draw = random.Random(6)
    hello = [("user", "hello"), ("assistant", "hello, how can I help?")]
    chats = [chat(*hello, ("user", sentence(draw, 30)), ("assistant", sentence(draw, 30))) for _ in range(30)]
    found = dedupe.groups(subjects(chat(*hello), *chats))
    assert len(set(found)) == len(found)


def test_a_shared_system_message_makes_no_relatives() -> None:
    draw = random.Random(1)
    system = ("system", " ".join(WORDS))
    found = dedupe.groups(
        subjects(*(chat(system, ("user", sentence(draw, 6)), ("assistant", "yes")) for _ in range(100)))
    )
    assert len(set(found)) == 100


def test_a_shared_template_makes_no_relatives() -> None:
    draw = random.Random(2)
    questions = [sentence(draw, 6) for _ in range(200)]
    texts = [
        f"Classify this message of a customer into one of: billing, delivery. Message: {q} Answer:" for q in questions
    ]
    assert len(set(groups_of(texts))) == 200
    assert len(set(groups_of([*texts, f"{texts[0]}!"]))) == 200


def test_an_instruction_with_many_answers_makes_no_relatives() -> None:
    draw = random.Random(3)
    found = dedupe.groups(
        subjects(*(chat(("user", "Write a note."), ("assistant", sentence(draw, 20))) for _ in range(40)))
    )
    assert len(set(found)) == 40


@pytest.mark.parametrize("shared", ["", "Answer by the text that follows. "])
def test_a_document_in_the_system_message_makes_no_relatives_of_a_fixed_question(shared: str) -> None:
    draw = random.Random(7)
    documents = [shared + sentence(draw) for _ in range(40)]
    asked = ("user", "Is this review positive? Answer with yes or no, and with nothing else.")
    rows = [chat(("system", text), asked, ("assistant", "no")) for text in documents]
    assert len(set(dedupe.groups(subjects(*rows)))) == 40
    corrected = chat(("system", documents[3]), asked, ("assistant", "yes"))
    assert len(set(dedupe.groups(subjects(*rows, corrected)))) == 40


def test_an_instruction_that_a_third_of_the_rows_share_makes_no_relatives() -> None:
    """In the middle of the text, beside others, and in fewer rows than a template needs."""
    draw = random.Random(8)
    instructions = [sentence(draw, 60), sentence(draw, 60)]
    texts = [f"{sentence(draw, 3)} {instructions[row % 2]} {sentence(draw, 6)}" for row in range(48)]
    assert len(set(groups_of(texts))) == 48
    assert len(set(groups_of([*texts, f"{texts[0]}!", texts[1].upper()]))) == 48


def test_edits_of_one_text_are_relatives_however_many() -> None:
    draw = random.Random(9)
    words = sentence(draw, 40).split()
    texts = [" ".join([*words[:place], draw.choice(WORDS), *words[place + 1 :]]) for place in range(40)]
    assert len(set(groups_of(texts))) == 1


def test_what_two_rows_share_is_shown() -> None:
    texts = ["Where is my parcel? I ordered it.", "Something else", "Where is my parcel? I ordered that."]
    first, second, shared = dedupe.likeness([Subject(source="a", question=text, text=text) for text in texts])
    assert (first, second) == (0, 2)
    assert "'Where is my parcel? I ordered '" in shared


def test_edited_copies_are_found() -> None:
    """Recall: one word of about twenty changed leaves a similarity well above the limit."""
    draw = random.Random(4)
    texts = [sentence(draw, 22) for _ in range(500)]
    edited = []
    for text in texts:
        words = text.split()
        words[draw.randrange(len(words))] = "xyz"
        edited.append(" ".join(words))
    found = groups_of([*texts, *edited])
    related = sum(first == second for first, second in zip(found[:500], found[500:], strict=True))
    assert related >= 495
    assert len(set(found)) >= 499


def test_relatives_of_relatives_are_relatives() -> None:
    words = sentence(random.Random(5), 60).split()
    chain = [" ".join(words[start : start + 40]) for start in range(0, 21, 2)]
    assert len(set(groups_of(chain))) == 1
    assert len(set(groups_of([chain[0], chain[-1]]))) == 2


@given(some.lists(some.text(max_size=12), min_size=1, max_size=12), some.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order(texts: list[str], draw: random.Random) -> None:
    order = list(range(len(texts)))
    draw.shuffle(order)
    found = groups_of(texts)
    shuffled = groups_of([texts[index] for index in order])
    assert [found[index] for index in order] == shuffled


def test_time_grows_linearly_even_where_all_texts_are_alike() -> None:
    """Templated texts are the worst case: all share most shingles, and few are above the limit."""

    def seconds(count: int) -> float:
        draw = random.Random(6)
        texts = [
            f"dear customer your order number {index} has not arrived at {draw.choice(WORDS)} {draw.choice(WORDS)} yet"
            f" because of {draw.choice(WORDS)} {draw.choice(WORDS)} and the {draw.choice(WORDS)} of {draw.random()}"
            for index in range(count)
        ]
        began = time.process_time()
        groups_of(texts)
        return time.process_time() - began

    seconds(200)
    small, large = max(seconds(1000) for _ in range(3)), min(seconds(4000) for _ in range(2))
    assert large < 4 * small * 2
