"""What `finetune console` refuses before it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from finetune_operator.cli.__main__ import main


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, without a kubeconfig."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--local"], "no job has run here"),
        (["--local", "--listen", "0.0.0.0"], "others could look with your rights"),
        (["--local", "--listen="], "others could look with your rights"),
        (["--apiserver", "http://apiserver.example"], "expected https://"),
        (["--apiserver", "https://apiserver.example", "--local"], "each user brings a token"),
        (["--apiserver", "https://apiserver.example", "--ca-file", "none.crt"], "--ca-file none.crt"),
    ],
)
def test_what_would_not_be_safe_or_not_work_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["console", "--port", "0", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("port", [None, 70000])
def test_a_port_that_cannot_be_had_is_named(
    nowhere: Path, port: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / ".finetune").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = port or taken.getsockname()[1]
        assert main(["console", "--local", "--port", str(number)]) == 2
    assert f"port {number} of 127.0.0.1: " in (said := capsys.readouterr().err)
    assert "choose another one with --port" in said
