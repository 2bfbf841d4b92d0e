"""One process of a pod, which has things done once for all of them: says what it was given, and what it did itself.

`python -m tests.trainer.once_per_node`, with the variables that torchrun sets.
"""

from __future__ import annotations

from typing import Any

from finetune_trainer.process import gang as gangs
from finetune_trainer.process.errors import StageError, bad_data


def main() -> None:
    """Values, and a failure."""
    done: list[Any] = []

    def work(value: Any) -> Any:
        done.append(value)
        gang.store.wait(["asked"])
        if value == "wrong":
            raise bad_data("Wrong", "so it is")
        return value

    gangs._POLL_SECONDS = 2.0  # whoever waits hears of it when the other would long be gone
    with gangs.joined(gpus=False) as gang:
        if gang.local_rank:
            gang.store.set("asked", "")
        said = [gang.once_per_node(lambda value=value: work(value)) for value in ("one", ["two"], None)]  # type: ignore[misc]
        try:
            gang.once_per_node(lambda: work("wrong"))
        except StageError as error:
            said += [error.reason, error.message, int(error.exit_code)]
    print("SAID", said, len(done))


if __name__ == "__main__":
    main()
