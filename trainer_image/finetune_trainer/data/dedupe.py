"""Examples that are the same, or nearly: repeats are dropped; relatives form a group, which no split parts.

Two examples are relatives when their questions, or their whole texts, share at least 80 % of their 5-character
shingles (Jaccard). Pairs to compare come from MinHash and banding (Broder 1997; Leskovec et al., Mining of Massive
Datasets, ch. 3); each is verified on the shingles themselves.

What many examples have in common does not make relatives of them: not the words that (nearly) all examples of a source
begin or end with, nor shingles that a third of a source has, where they are most of a text and enough is left to
compare. A question with very many different answers is an instruction ("Write a poem.", "Is this review positive?"):
such examples are about their system message as well, if it is not as common itself. Otherwise system messages do not
count.
"""

from __future__ import annotations

import difflib
import hashlib
import heapq
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from finetune_trainer.data.rows import Content

SIMILARITY = 0.8
"""Share of common shingles from which two texts are relatives."""
SHINGLE = 5
_BANDS, _BAND_ROWS = 16, 4
# A bucket's members are compared with this many of its earlier ones, which bounds the work; other bands offer others.
_COMPARED_PER_BUCKET = 8
_TEMPLATE_SHARE = 0.9
_TEMPLATE_MINIMUM_ROWS = 50
# A question asked more often than this, with different answers each time, is an instruction.
_MOST_ANSWERS = 20
_BATCH = 4096
# Shingles that this share of a source's texts has (of a sample, and at least so many) are common to them.
_COMMON_SHARE, _COMMON_MINIMUM_ROWS, _SAMPLE = 1 / 3, 20, 1000
# Texts that are mostly common are compared by the rest, if it has at least so many shingles (three words or so).
_ENOUGH_LEFT = 20
_SHOWN = 400
"""Characters of a text in which a message looks for what two have in common."""
# Not the signs of arithmetic and code, which change what is asked.
_PUNCTUATION = re.compile(r"""[.,;:!?"'()\[\]\u2018-\u201e\u2026\xab\xbb\xa1\xbf]+""")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an example is about, for finding its relatives."""

    source: str
    question: str
    """What is asked, normalised: the text to classify, or the chat up to its last answer. Not the answer: an example
    whose answer is corrected stays in its split."""
    text: str
    """The question, and the answer where it is free text."""
    context: str = ""
    """The system message, normalised."""
    earlier: tuple[str, ...] = ()
    """What is asked on the way: the chat up to each answer before the last one, normalised. It is learned as well."""


def normalise(text: str) -> str:
    """Unicode form NFC, white space as single spaces, none around."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def content_id(content: Content) -> str:
    """sha256 (hex) of the normalised content: equal for examples that repeat each other."""
    document: dict[str, Any] = {}
    if content.messages is not None:
        document["messages"] = [
            [
                message.role,
                normalise(message.content),
                *([message.extra] if message.extra else []),
                *([] if message.learned else [False]),
            ]
            for message in content.messages
        ]
    if content.tools is not None:
        document["tools"] = content.tools
    if content.text is not None:
        document["text"] = normalise(content.text)
    if content.label is not None:
        document["label"] = content.label
    return hashlib.sha256(json.dumps(document, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def subject_of(content: Content, *, source: str) -> Subject:
    """What the content is about."""
    if content.messages is None:
        text = normalise(content.text or "")
        return Subject(source=source, question=text, text=text)
    turns = [message for message in content.messages if message.role != "system"]
    return Subject(
        source=source,
        context=normalise("\n".join(message.text for message in content.messages if message.role == "system")),
        question=normalise("\n".join(message.text for message in turns[:-1])),
        text=normalise("\n".join(message.text for message in turns)),
        earlier=tuple(
            normalise("\n".join(message.text for message in turns[:index]))
            for index, message in enumerate(turns[:-1])
            if message.role == "assistant"
        ),
    )


def groups(subjects: Sequence[Subject]) -> list[str]:
    """The group of each example, named by the smallest sha256 (hex) of a question (of a text, where the question is an
    instruction) among its members.

    Relatives of relatives are relatives. Time and memory grow linearly with the number of examples.
    """
    keys, texts = _compared(subjects)
    sources = [subject.source for subject in subjects]
    sets = _DisjointSets(len(subjects))
    _join_relatives(sets, keys, sources=sources)
    if texts != keys:
        _join_relatives(sets, texts, sources=sources)
    _join_continued(sets, subjects)
    smallest: dict[int, str] = {}
    for index, key in enumerate(keys):
        root, name = sets.find(index), hashlib.sha256(key.encode()).hexdigest()
        smallest[root] = min(smallest.get(root, name), name)
    return [smallest[sets.find(index)] for index in range(len(subjects))]


def _compared(subjects: Sequence[Subject]) -> tuple[list[str], list[str]]:
    """What each example is about, without its answer where that can be told, and its whole text."""
    asked = Counter(subject.question for subject in subjects)
    shared = Counter(subject.context for subject in subjects)
    full = [subject.context if shared[subject.context] <= _MOST_ANSWERS else "" for subject in subjects]
    asked_of = Counter((context, subject.question) for context, subject in zip(full, subjects, strict=True))
    keys, texts = [], []
    for context, subject in zip(full, subjects, strict=True):
        if asked[subject.question] <= _MOST_ANSWERS:
            keys.append(subject.question)
            texts.append(subject.text)
            continue
        texts.append(f"{context} {subject.text}".strip())
        few = asked_of[context, subject.question] <= _MOST_ANSWERS
        keys.append(f"{context} {subject.question}" if few else texts[-1])
    return keys, texts


def _join_continued(sets: _DisjointSets, subjects: Sequence[Subject]) -> None:
    """Join a chat with those that go on from it: what it asks is asked, and answered, inside of them. Not so what very
    many begin with, such as a greeting."""
    asked = Counter(question for subject in subjects for question in (subject.question, *set(subject.earlier)))
    at = {subject.question: index for index, subject in enumerate(subjects)}
    for index, subject in enumerate(subjects):
        for question in subject.earlier:
            if question in at and asked[question] <= _MOST_ANSWERS:
                sets.union(index, at[question])


def likeness(subjects: Sequence[Subject]) -> tuple[int, int, str]:
    """The two most alike of at least two examples of a group, and what they share, for a message."""

    def alike(pair: tuple[int, int]) -> float:
        return max(_jaccard(shingles[kind][pair[0]], shingles[kind][pair[1]]) for kind in range(2))

    shingles = [
        [_shingles(_folded(text)) for text in texts]
        for texts in ([subject.question for subject in subjects], [subject.text for subject in subjects])
    ]
    first, second = max(itertools.combinations(range(len(subjects)), 2), key=alike)
    one, other = subjects[first].text[:_SHOWN], subjects[second].text[:_SHOWN]
    block = difflib.SequenceMatcher(a=one, b=other, autojunk=False).find_longest_match()
    share = alike((first, second))
    return first, second, f"{share:.0%} of what they ask or say, as in {one[block.a : block.a + min(block.size, 80)]!r}"


def conflicting_labels(contents: Iterable[Content]) -> dict[str, set[str]]:
    """Texts (normalised) that carry more than one label, with the labels."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for content in contents:
        if content.text is not None and content.label is not None:
            labels[normalise(content.text)].add(content.label)
    return {text: found for text, found in labels.items() if len(found) > 1}


class _DisjointSets:
    """Union-find with path halving."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def find(self, index: int) -> int:
        parents = self._parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def union(self, first: int, second: int) -> None:
        self._parents[self.find(first)] = self.find(second)


def _join_relatives(sets: _DisjointSets, texts: Sequence[str], *, sources: Sequence[str]) -> None:
    _join_equal(sets, texts)
    compared = _without_templates([_folded(text) for text in texts], sources=sources)
    _join_equal(sets, compared)
    _join_similar(sets, compared, sources=sources)


def _folded(text: str) -> str:
    """Without what a careless copy changes: case and the punctuation of sentences."""
    folded = text.casefold()
    return " ".join(_PUNCTUATION.sub(" ", folded).split()) or folded


def _join_equal(sets: _DisjointSets, keys: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        sets.union(index, first.setdefault(key, index))


def _join_similar(sets: _DisjointSets, texts: Sequence[str], *, sources: Sequence[str]) -> None:
    """Join texts whose shingles overlap by at least `SIMILARITY`."""
    from datasketch import MinHash  # loads scipy, half a second: all stages import this module, Prepare alone compares

    common = _common_shingles(texts, sources=sources)

    @lru_cache(maxsize=8192)
    def shingles(index: int) -> np.ndarray[Any, Any]:
        whole = _shingles(texts[index])
        rest = np.setdiff1d(whole, common[sources[index]], assume_unique=True)
        return rest if _ENOUGH_LEFT <= len(rest) <= len(whole) // 2 else whole

    distinct = list({text: index for index, text in reversed(list(enumerate(texts)))}.values())
    # One sketch is filled again and again: making its permutations costs more than using them.
    sketch = MinHash(num_perm=_BANDS * _BAND_ROWS, seed=1, hashfunc=int)
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(_BANDS)]
    for index in distinct:
        own = shingles(index)
        sketch.clear()
        for start in range(0, len(own), _BATCH):
            sketch.update_batch(own[start : start + _BATCH].tolist())
        signature = sketch.hashvalues.tobytes()
        width = len(signature) // _BANDS
        for band, bucket in enumerate(buckets):
            members = bucket.setdefault(signature[band * width : (band + 1) * width], [])
            for other in members:
                if sets.find(other) != sets.find(index) and _jaccard(own, shingles(other)) >= SIMILARITY:
                    sets.union(index, other)
            if len(members) < _COMPARED_PER_BUCKET:
                members.append(index)


def _common_shingles(texts: Sequence[str], *, sources: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """By source: the shingles that many of its different texts have, sorted. A sample tells, the same in any order."""
    texts_of: defaultdict[str, set[str]] = defaultdict(set)
    for text, source in zip(texts, sources, strict=True):
        texts_of[source].add(text)
    common = {}
    for source, different in texts_of.items():
        sample = heapq.nsmallest(_SAMPLE, different, key=lambda text: hashlib.sha256(text.encode()).digest())
        found, counts = np.unique(np.concatenate([_shingles(text) for text in sample]), return_counts=True)
        common[source] = found[counts >= max(_COMMON_MINIMUM_ROWS, _COMMON_SHARE * len(sample))]
    return common


def _shingles(text: str) -> np.ndarray[Any, Any]:
    """The text's distinct shingles of `SHINGLE` characters as sorted 32-bit hashes; of a shorter text, itself."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    width = min(SHINGLE, len(codes))
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for offset in range(width):
        # Horner's rule modulo 2^64, with an odd multiplier.
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : len(codes) - width + 1 + offset]
    return np.unique((hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32))


def _jaccard(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def _without_templates(texts: Sequence[str], *, sources: Sequence[str]) -> list[str]:
    """The texts without the words that (nearly) all texts of their source begin or end with."""
    words = [text.split() for text in texts]
    members_of: defaultdict[str, list[int]] = defaultdict(list)
    for index, source in enumerate(sources):
        members_of[source].append(index)
    for members in members_of.values():
        if len(members) >= _TEMPLATE_MINIMUM_ROWS:
            _cut_shared_start(words, members)
            for index in members:
                words[index].reverse()
            _cut_shared_start(words, members)
            for index in members:
                words[index].reverse()
    # A text that is all template is compared as it is.
    return [" ".join(left) or text for left, text in zip(words, texts, strict=True)]


def _cut_shared_start(words: list[list[str]], members: Sequence[int]) -> None:
    """Remove the longest start that at least `_TEMPLATE_SHARE` of the members have in common."""
    matching = list(members)
    length = 0
    while True:
        following = Counter(words[index][length] for index in matching if len(words[index]) > length)
        word, count = following.most_common(1)[0] if following else ("", 0)
        if count < _TEMPLATE_SHARE * len(members):
            break
        matching = [index for index in matching if len(words[index]) > length and words[index][length] == word]
        length += 1
    if length:
        for index in matching:
            del words[index][:length]
