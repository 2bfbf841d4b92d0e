"""Which trace context of a client goes on to a server: W3C's rules, https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from finetune_gateway.trace_context import carried

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def of(*headers: tuple[str, str]) -> dict[str, str]:
    return carried(CIMultiDictProxy(CIMultiDict(headers)))


@pytest.mark.parametrize(
    "parent", [PARENT, f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-09", f"cc-{TRACE}-{SPAN}-01-x"]
)
def test_what_can_be_read_goes_on_as_it_is(parent: str) -> None:
    assert of(("Traceparent", parent)) == {"traceparent": parent}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "junk",
        PARENT.upper(),
        f"{PARENT}-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"cc-{TRACE}-{SPAN}-01.x",
        f"{PARENT}\r\nX-Other: 1",
    ],
)
def test_what_cannot_be_read_stays_here_with_its_state(parent: str) -> None:
    assert of(("traceparent", parent), ("tracestate", "a=1")) == {}


def test_two_parents_are_none() -> None:
    assert of(("traceparent", PARENT), ("traceparent", PARENT)) == {}


@pytest.mark.parametrize(
    ("states", "goes_on"),
    [
        (["a=1,b@c=x y"], "a=1,b@c=x y"),
        (["a=1 , b=2,", "c=3"], "a=1,b=2,c=3"),
        ([","], None),
        (["A=1"], None),
        (["a=1,a=2"], None),
        (["a=1=2"], None),
        (["a"], None),
        ([",".join(f"k{number}=1" for number in range(33))], None),
        ([f"a={'x' * 257}"], None),
        ([",".join(f"k{number}={'x' * 250}" for number in range(20))], None),
    ],
)
def test_a_state_that_cannot_be_read_is_left_out_alone(states: list[str], goes_on: str | None) -> None:
    found = of(("traceparent", PARENT), *(("tracestate", state) for state in states))
    assert found == {"traceparent": PARENT} | ({"tracestate": goes_on} if goes_on else {})


def test_a_state_without_a_parent_is_none() -> None:
    assert of(("tracestate", "a=1")) == {}
