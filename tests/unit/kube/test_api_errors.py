"""What an answer of the apiserver means to the core."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.core.ports import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotAllowedError,
    NotFoundError,
    UnavailableError,
)
from finetune_operator.kube.api import error_of

RBAC = 'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"'
QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: small, requested: count/jobs.batch=1, used: 1, limited: 1'
ENDING = 'jobs.batch "x" is forbidden: unable to create new content in namespace a because it is being terminated'
POLICY = "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
WEBHOOK = 'admission webhook "w.example.org" denied the request: no'
AWAY = 'Internal error occurred: failed calling webhook "w.example.org": failed to call webhook: connection refused'
SECURITY = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged'


@pytest.mark.parametrize(
    ("status", "reason", "message", "expected"),
    [
        (404, "NotFound", "gone", NotFoundError),
        (409, "AlreadyExists", "there already", AlreadyExistsError),
        (409, "Conflict", "the object has been modified", ConflictError),
        (422, "Invalid", "spec.x: Invalid value", InvalidError),
        (400, "BadRequest", 'strict decoding error: unknown field "x"', InvalidError),
        (413, "RequestEntityTooLarge", "too large", InvalidError),
        (403, "Forbidden", POLICY, InvalidError),
        (403, "Forbidden", WEBHOOK, InvalidError),
        (403, "Forbidden", SECURITY, InvalidError),
        (403, "Forbidden", RBAC, NotAllowedError),
        (403, "Forbidden", QUOTA, NotAllowedError),
        (403, "Forbidden", ENDING, NotAllowedError),
        (500, "InternalError", AWAY, NotAllowedError),
        (500, "", "failed to create typed patch object (a/b): .x: field not declared in schema", InvalidError),
        (401, "Unauthorized", "Unauthorized", UnavailableError),
        (429, "TooManyRequests", "too many requests", UnavailableError),
        (500, "InternalError", "etcdserver: request timed out", UnavailableError),
        (503, "ServiceUnavailable", "not yet", UnavailableError),
        (504, "Timeout", "timeout", UnavailableError),
    ],
)
def test_errors(status: int, reason: str, message: str, expected: type[Exception]) -> None:
    error = error_of(status=status, answer={"reason": reason, "message": message}, request="POST /x")
    assert type(error) is expected
    assert str(error) == message


@pytest.mark.parametrize("answer", [{}, {"message": ""}])
def test_an_answer_without_words_names_the_request(answer: dict[str, Any]) -> None:
    assert str(error_of(status=502, answer=answer, request="GET /api/v1/pods")) == "GET /api/v1/pods: HTTP 502"
