"""YAML as kubectl reads it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.validation import ManifestTextError, read_manifests


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("5E3", 5000),
        ("3.0", 3),
        ("0.5", 0.5),
        ("12", 12),
        ("010", 8),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("yes", True),
        ("'1'", "1"),
        ("", None),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    (manifest,) = read_manifests(f"value: {text}", source="x.yaml")
    assert manifest["value"] == value
    assert type(manifest["value"]) is type(value)


def test_several_documents_and_lists() -> None:
    text = "a: 1\n---\n---\nkind: List\nitems: [{b: 2}, {c: 3}]\n"
    assert read_manifests(text, source="x.yaml") == [{"a": 1}, {"b": 2}, {"c": 3}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 'x.yaml: line 3: mapping key "a" already defined at line 1'),
        ("a: [1", "x.yaml: not YAML: line 1, column 6: expected ',' or ']'"),
        (
            "a:\n\tb: 1",
            r"x.yaml: not YAML: line 2, column 1: found character '\\t' that cannot start any token,"
            r" while scanning for the next token \(indent with spaces\)$",
        ),
        ("a:\n  b: 1\n   c: 2", "x.yaml: not YAML: line 3, column 5: mapping values are not allowed here$"),
        ("- 1", "x.yaml: document 1 is no object"),
        ("", "x.yaml: no object in it"),
        ("a: !!python/object:os.system x", "x.yaml: not YAML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestTextError, match="^" + message.replace("[", r"\[").replace(".", r"\.")):
        read_manifests(text, source="x.yaml")
