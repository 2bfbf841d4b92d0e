"""What a client reads when its request is not understood."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from finetune_trainer.serving.application import _malformed
from finetune_trainer.serving.wire import ClassifyRequest


def test_no_word_of_the_library_that_reads_requests() -> None:
    try:
        ClassifyRequest.model_validate({"text": "x"})
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
    said = _malformed(RequestValidationError(problems)).body()["error"]["message"]
    assert said == "the request is not understood: text: not supported by this server; leave it out"
