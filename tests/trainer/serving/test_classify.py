"""A real encoder that has learned a real task answers /v1/classify."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from demo import assets
from tests.trainer.serving.server_process import ENDPOINT, ServerProcess, get, order_for, post, publish, serving

from finetune_gateway.openai_format import read_answer, text_of
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.held_out_probes import FILE_NAME, make_probes, to_text
from finetune_trainer.models import base_model
from finetune_trainer.store import json_lines

TOPICS = ("sports", "coding", "emotion")
EVALUATED_AT = 256
"""Tokens after which training and evaluation cut; the model could read 512."""
_EVERY = 5


def questions(folder: Path) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out): real questions on three topics."""
    rows = json_lines.read(assets.topic_labelled(folder / "topics.jsonl").read_text())
    chosen = {row["text"]: row["label"] for row in rows if row["label"] in TOPICS}
    examples = [
        Example(id=str(number), group=str(number), source="topics", text=text, label=label)
        for number, (text, label) in enumerate(chosen.items())
    ]
    return [one for n, one in enumerate(examples) if n % _EVERY], examples[::_EVERY]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """MiniLM with a head of its own."""
    folder = tmp_path_factory.mktemp("classifier")
    learned, held_out = questions(folder)
    torch.manual_seed(0)
    model = base_model.load_model(assets.minilm(), task="SequenceClassification", dtype="float32", labels=TOPICS)
    tokenizer = base_model.load_tokenizer(assets.minilm())
    _learn(model, tokenizer, learned)
    return publish(
        model.eval(),
        tokenizer,
        folder=folder / "stored",
        base=assets.minilm(),
        task="SequenceClassification",
        companions={FILE_NAME: to_text(make_probes(held_out))},
    )


def _learn(model: Any, tokenizer: Any, examples: list[Example]) -> None:
    """Train what comes after the encoder, which reads each text once."""
    tokens = tokenizer([one.text for one in examples], padding=True, truncation=True, return_tensors="pt")
    gold = torch.tensor([TOPICS.index(one.label or "") for one in examples])
    with torch.no_grad():
        hidden = model.bert(**tokens).last_hidden_state
    optimizer = torch.optim.AdamW([*model.bert.pooler.parameters(), *model.classifier.parameters()], lr=1e-3)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model.classifier(model.bert.pooler(hidden)), gold)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def server(served: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("classify-server")
    with serving(
        folder, order_for(served, folder=folder, labels=list(TOPICS), contextTokens=EVALUATED_AT), python=sys.executable
    ) as process:
        yield process


async def test_held_out_questions_are_mostly_right(server: ServerProcess) -> None:
    """What a gateway does with the probes: it sends them, reads the label, and compares."""
    _, text = await get(f"{server.url}/finetune/probes")
    probes = json.loads(text)["probes"]
    assert len(probes) >= 20
    right = 0
    async with aiohttp.ClientSession() as session:
        for probe in probes:
            async with session.post(server.url + probe["path"], json=probe["request"]) as answer:
                assert answer.status == 200
                right += text_of(read_answer(body=await answer.read())[0])[0] == probe["label"]
    assert right >= 0.8 * len(probes), f"{right} of {len(probes)}"


async def test_one_text_and_several_agree(server: ServerProcess) -> None:
    texts = ["What is baseball?", "Do you feel sad?", "what is a compiler?"]
    status, several = await post(f"{server.url}/v1/classify", {"model": ENDPOINT, "input": texts})
    assert status == 200
    assert [entry["index"] for entry in several["data"]] == [0, 1, 2]
    for text, entry in zip(texts, several["data"], strict=True):
        _, one = await post(f"{server.url}/v1/classify", {"input": text})
        assert one["label"] == one["data"][0]["label"] == entry["label"]
        assert one["data"][0]["probabilities"] == pytest.approx(entry["probabilities"], abs=1e-4)
        assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert set(entry["probabilities"]) == set(TOPICS)
        assert entry["label"] == next(iter(entry["probabilities"])), "the likeliest comes first"
    assert "label" not in several
    assert several["usage"]["prompt_tokens"] > 10


async def test_texts_are_cut_where_the_version_was_evaluated_and_the_answer_says_so(server: ServerProcess) -> None:
    read = "baseball " * (EVALUATED_AT - 3) + "compiler"  # and a mark at each end
    texts = [read, read + " compiler", read + " compiler" * 2000]
    status, answer = await post(f"{server.url}/v1/classify", {"input": texts})
    whole, *cut = answer["data"]
    assert (status, "truncated" in whole, [entry["truncated"] for entry in cut]) == (200, False, [True, True])
    for entry in cut:
        assert entry["probabilities"] == pytest.approx(whole["probabilities"], abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == 3 * EVALUATED_AT


async def test_texts_of_10_mb_cost_next_to_nothing(server: ServerProcess) -> None:
    spent = server.cpu_seconds
    status, long = await post(f"{server.url}/v1/classify", {"input": "baseball " * 1_100_000})
    assert (status, long["data"][0]["truncated"]) == (200, True)
    _, short = await post(f"{server.url}/v1/classify", {"input": "baseball " * 600})
    assert long["data"][0]["probabilities"] == short["data"][0]["probabilities"], "what is read is the same"
    status, body = await post(f"{server.url}/v1/classify", {"input": ["baseball " * 5000] * 220})
    assert (status, "send at most 4194304" in body["error"]["message"]) == (413, True)
    assert server.cpu_seconds - spent < 8, "to tokenize them takes twenty seconds and more"


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"input": []}, 400, "input"),
        ({"input": 5}, 400, "input"),
        ({"input": ["x"] * 257}, 400, "256"),
        ({}, 400, "input"),
        ({"input": "x", "model": "bert"}, 404, "'router' only"),
        ({"input": "\udc00"}, 400, "surrogate"),
    ],
)
async def test_wrong_requests(server: ServerProcess, request_: dict[str, Any], status: int, named: str) -> None:
    got, body = await post(f"{server.url}/v1/classify", request_)
    assert (got, body["error"]["type"]) == (status, "invalid_request_error")
    assert named in body["error"]["message"]


async def test_chats_are_not_offered(server: ServerProcess) -> None:
    got, body = await post(f"{server.url}/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert (got, "/v1/classify" in body["error"]["message"]) == (404, True)
