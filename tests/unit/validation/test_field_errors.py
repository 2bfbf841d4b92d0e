"""Values as Go prints them."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.validation.field_errors import go_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (7, "7"),
        (2.5, "2.5"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (100000.0, "100000"),
        (4294967295.0, "4.294967295e+09"),
        (1e25, "1e+25"),
        ('say "hi"\n\x01ü', r'"say \"hi\"\n\x01ü"'),
        ({"b": [1, 2.0, 1e-7], "a": "<&>"}, r'{"a":"\u003c\u0026\u003e","b":[1,2,1e-7]}'),
    ],
)
def test_go_value(value: Any, text: str) -> None:
    assert go_value(value) == text
