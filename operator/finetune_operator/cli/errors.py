"""How commands end: the only list of exit statuses. docs/cli.md is made from it."""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class ExitStatus(IntEnum):
    """Exit statuses of `finetune`, with what they mean for any command."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> Self:
        made = int.__new__(cls, number)
        made._value_ = number
        made.meaning = meaning
        return made

    DONE = 0, "done"
    FAILED = 1, "it was tried and failed, or cannot be looked at: the cluster does not answer, a disk is full"
    BAD_INPUT = 2, "refused before anything was done: wrong options, a bad manifest, a name that does not exist"
    REJECTED = 3, "the version was judged and is not to be used"
    NOT_ENDED = 4, "there is no end to report yet: something else has to happen first"
    INTERRUPTED = 130, "stopped by Ctrl-C, SIGTERM or a closed terminal"


EXIT_STATUS_OF_PHASE = {
    "Succeeded": ExitStatus.DONE,
    "Failed": ExitStatus.FAILED,
    "Superseded": ExitStatus.FAILED,
    "Rejected": ExitStatus.REJECTED,
    "RolledBack": ExitStatus.REJECTED,
}
"""Of `run`, and of `report` for a job without a comparison. Any other phase: NOT_ENDED."""
ENDS: dict[str, dict[ExitStatus, str]] = {
    "run": {
        ExitStatus.DONE: "the job Succeeded: its version may be used and, where it names an endpoint, was promoted",
        ExitStatus.FAILED: "the job Failed, or was Superseded by a newer version; somebody deleted it meanwhile",
        ExitStatus.BAD_INPUT: "the manifest is refused, or this machine cannot run it; the folder is in use",
        ExitStatus.REJECTED: "the job was Rejected (not proven better) or RolledBack",
        ExitStatus.NOT_ENDED: "the job waits: its version for its endpoint or a person's approval, or it is Suspended"
        " because its manifest says `suspend: true`",
        ExitStatus.INTERRUPTED: "the job is Suspended after a checkpoint; the same command goes on",
    },
    "up": {
        ExitStatus.BAD_INPUT: "a manifest is refused, or this machine cannot serve it; port or folder are in use",
        ExitStatus.INTERRUPTED: "all is ended; `up` goes on until somebody stops it, so this is its usual end",
    },
    "watch": {
        ExitStatus.DONE: "the job Succeeded",
        ExitStatus.FAILED: "the job Failed or was Superseded; it was deleted meanwhile",
        ExitStatus.BAD_INPUT: "there is no such job or endpoint",
        ExitStatus.REJECTED: "the job was Rejected or RolledBack",
        ExitStatus.INTERRUPTED: "the view is ended, which is the only end of an endpoint's; what it shows goes on",
    },
    "retry": {
        ExitStatus.DONE: "it is asked for; `finetune watch` follows it",
        ExitStatus.BAD_INPUT: "the job has not failed, or would fail again in the same way",
    },
    "validate": {
        ExitStatus.DONE: "every manifest is valid",
        ExitStatus.BAD_INPUT: "at least one is not, or cannot be read",
    },
    "plan": {
        ExitStatus.DONE: "the plan is printed",
        ExitStatus.BAD_INPUT: "the manifest is refused, or Prepare would refuse it: nothing fits",
    },
    "approve, reject, rollback, pause, resume": {
        ExitStatus.DONE: "it is asked for; with `--wait`: the endpoint is in that state",
        ExitStatus.FAILED: "with `--wait`: not so within `--timeout`, or it cannot come to that any more",
        ExitStatus.BAD_INPUT: "there is nothing that this could be about; a policy refuses it",
        ExitStatus.REJECTED: "of `approve --wait`: the version was rejected or rolled back instead",
        ExitStatus.INTERRUPTED: "with `--wait`: nobody follows any more; the request stays",
    },
    "logs": {
        ExitStatus.DONE: "the log is printed; with `-f`: the job has ended, in any way",
        ExitStatus.BAD_INPUT: "there is no such job or log",
    },
    "report": {
        ExitStatus.DONE: "the comparison is printed, whatever its verdict",
        ExitStatus.FAILED: "the job Failed before its evaluation",
        ExitStatus.NOT_ENDED: "the job has not come to its evaluation yet",
    },
    "doctor": {
        ExitStatus.DONE: "jobs can run, perhaps with warnings",
        ExitStatus.FAILED: "something must be mended first",
    },
}
"""What the statuses mean for a command, where there is more to say."""


class CommandError(Exception):
    """The command cannot do what it was asked. `str()` names the thing, the reason and the way out."""

    def __init__(self, message: str, *, status: ExitStatus = ExitStatus.BAD_INPUT) -> None:
        super().__init__(message)
        self.status = status
