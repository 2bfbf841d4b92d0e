"""Ids of answers, votes on them, and whose requests count: what clients send is believed as little as possible."""

from __future__ import annotations

import base64
import string
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_gateway.request_id import Sealer, given_id, issuer_of, issuer_tag
from finetune_gateway.tally import ADDRESS_USERS, KEY_USERS, RENEWED_SECONDS, UNNAMED_USERS, ArmKey, Tally, User
from finetune_gateway.votes import Votes

STABLE, NEW = (3, "half", "old"), (3, "half", "new")
SEALER = Sealer(issuer=issuer_tag("gateway-0"))


def votes(*, remembered: int = 1000) -> Votes:
    tally = Tally(endpoint="router", gateway="gateway-0")
    for key in (STABLE, NEW):
        tally.arm(key)
    return Votes(tally=tally, sealer=SEALER, remembered=remembered)


def answered(known: Votes, key: ArmKey = NEW, *, counted: bool = True) -> str:
    answer_id = known.new_id(key)
    if counted:
        known.counts(answer_id)
    return answer_id


@given(st.integers(0, 2**100), st.integers(0, 47), st.sampled_from(string.ascii_letters + string.digits + "-_"))
def test_an_id_has_one_spelling(number: int, place: int, character: str) -> None:
    sealed = SEALER.seal(number)
    assert (SEALER.open(sealed), issuer_of(sealed)) == (number, SEALER.issuer)
    changed = sealed[:place] + character + sealed[place + 1 :]
    assert (SEALER.open(changed) == number) == (changed == sealed)


@pytest.mark.parametrize("spelling", ["{}!", "{}=", " {}", "{}\n", "{}AAAA", "{}.", "A{}"])
def test_nothing_may_be_added_to_an_id(spelling: str) -> None:
    assert SEALER.open(spelling.format(SEALER.seal(7))) is None


@given(st.text())
def test_reading_a_hostile_id_never_fails(text: str) -> None:
    assert SEALER.open(text) is None
    issuer_of(text)


def test_only_the_gateway_that_gave_an_id_can_read_it() -> None:
    assert Sealer(issuer=SEALER.issuer).open(SEALER.seal(7)) is None


def test_an_id_tells_nothing_of_who_answered() -> None:
    """Of neighbours, all but the name of the gateway differs; an error's id has the same form."""
    known = votes()
    ids = [answered(known, STABLE), answered(known, NEW), known.id_of_nobody()]
    texts = [base64.urlsafe_b64decode(each) for each in ids]
    assert {len(each) for each in ids} == {48}
    assert len({each[:6] for each in texts}) == 1
    assert all(word not in each for each in texts for word in (b"old", b"new", b"half"))
    assert len({each[6:14] for each in texts}) == len({each[-8:] for each in texts}) == 3
    assert known.vote(request_id=ids[2], rating="down") == "unknown"


def test_a_vote_counts_once_for_the_arm_and_epoch_that_answered() -> None:
    known = votes()
    one, other = answered(known, NEW), answered(known, STABLE)
    assert [known.vote(request_id=one, rating="down") for _ in range(3)] == ["counted", "already", "already"]
    assert known.vote(request_id=other, rating="up") == "counted"
    new, old = known.tally.arms[NEW], known.tally.arms[STABLE]
    assert (new.negative, new.bad, old.positive, old.bad) == (1, 1, 1, 0)


def test_a_bad_answer_counts_once_whichever_is_known_first() -> None:
    known = votes()
    judged_first, voted_first, judged_before_its_end = (answered(known, counted=False) for _ in range(3))
    known.found_bad(judged_before_its_end)
    for each in (judged_first, voted_first, judged_before_its_end):
        known.counts(each)
    known.found_bad(judged_first)
    for each in (judged_first, voted_first):
        known.vote(request_id=each, rating="down")
    known.found_bad(voted_first)
    assert known.tally.arms[NEW].bad == 3


def test_a_vote_counts_only_where_its_request_does() -> None:
    known = votes()
    beyond_the_cap = answered(known, counted=False)
    assert known.vote(request_id=beyond_the_cap, rating="down") == "not_counted"
    known.found_bad(beyond_the_cap)
    arm = known.tally.arms[NEW]
    assert (arm.bad, arm.negative) == (0, 0)


def test_answers_of_old_and_of_forgotten_epochs_are_unknown() -> None:
    known = votes(remembered=10)
    ids = [answered(known) for _ in range(25)]
    assert [known.vote(request_id=each, rating="down") for each in ids] == ["unknown"] * 15 + ["counted"] * 10
    last = answered(known)
    known.tally.forget_before(100)
    assert known.vote(request_id=last, rating="down") == "unknown"
    assert NEW not in known.tally.arms, "nor does it come back"


def test_what_clients_send_takes_a_fixed_room() -> None:
    tally = Tally(endpoint="router", gateway="gateway-0")
    tracemalloc.start()
    for number in range(50):
        user = User(source="y" * 1_000_000, name=f"{number}" + "x" * 1_000_000)
        tally.weigh(since=1, variant="new", user=user, cap=50, now=0.0)
    del user
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    assert given_id({"X-Request-Id": "abc-1"}) == "abc-1"
    for wrong in ("", "x" * 129, "with space", "line\nbreak", "é"):
        assert given_id({"X-Request-Id": wrong}) is None


CAP = 2


def weighed(tally: Tally, users: Iterable[User], *, now: float = 0.0) -> tuple[int, int]:
    """How many of these requests count, and how many are a user's voice."""
    found = [tally.weigh(since=1, variant="new", user=user, cap=CAP, now=now) for user in users]
    return sum(counts for counts, _ in found), sum(voice for _, voice in found)


def test_a_user_counts_so_often_wherever_he_comes_from() -> None:
    tally = Tally(endpoint="router", gateway="gateway-0")
    anns = [User(source=f"10.0.0.{number}", name="ann") for number in range(20)]
    assert weighed(tally, anns) == (CAP, 1)
    assert weighed(tally, anns, now=RENEWED_SECONDS) == (0, 0), "in a step, however long it is"


@pytest.mark.parametrize("has_key", [False, True], ids=["address", "key"])
def test_who_names_no_users_stands_for_some_and_who_makes_them_up_for_no_more_than_so_many(has_key: bool) -> None:
    tally = Tally(endpoint="router", gateway="gateway-0")
    unnamed = [User(source="team-a", has_key=has_key)] * 5000
    for renewed in range(3):
        assert weighed(tally, unnamed, now=renewed * RENEWED_SECONDS) == (CAP * UNNAMED_USERS, UNNAMED_USERS)
    most = KEY_USERS if has_key else ADDRESS_USERS
    made_up = [User(source="team-a", has_key=has_key, name=f"u{number}") for number in range(3 * most)]
    assert weighed(tally, made_up) == (CAP * most, CAP * most)
    assert weighed(tally, [User(source="team-b", has_key=has_key, name="ann")] * 5) == (CAP, 1), "others count"
