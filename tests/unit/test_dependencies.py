"""An extra declares what its packages import, and nothing else: what nobody uses is in no image."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "operator/finetune_operator"
PACKAGES = {
    "operator": ("operator/finetune_api", "operator/finetune_stats", "operator/finetune_http", OPERATOR),
    "trainer": ("operator/finetune_api", "operator/finetune_stats", "trainer_image/finetune_trainer"),
    "gateway": ("operator/finetune_api", "operator/finetune_http", "operator/finetune_gateway"),
    "local": tuple(f"{OPERATOR}/{name}" for name in ("local", "cli", "validation")),
}
"""Extra -> the packages that need it, as the images hold them. `local` is what a laptop needs besides the others."""
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "celpy": "cel-python",
    "prometheus_client": "prometheus-client",
    "pydantic_settings": "pydantic-settings",
    "huggingface_hub": "huggingface-hub",
    "rouge_score": "rouge-score",
    "lark": "cel-python",
    "starlette": "fastapi",
    "h11": "uvicorn",
    "multidict": "aiohttp",
    "opentelemetry": "opentelemetry-sdk",
}
"""Module -> what brings it, where the names differ; four of the last are parts of another's interface."""
BY_NAME = {"trainer": {"sentencepiece", "s3fs", "gcsfs"}, "gateway": {"opentelemetry-exporter-otlp-proto-http"}}
"""What transformers and fsspec load by its name, and what shares a module's first name with another."""


@pytest.mark.parametrize("extra", ["operator", "trainer", "gateway"])
def test_an_image_holds_what_its_code_imports(extra: str) -> None:
    left_out = PACKAGES["local"] if extra == "operator" else ()
    imported = {name for folder in PACKAGES[extra] for name in imports(folder, besides=left_out)}
    assert declared(extra) == imported | BY_NAME.get(extra, set())


def test_a_laptop_needs_what_the_command_line_and_local_mode_import_besides() -> None:
    imported = {name for folder in PACKAGES["local"] for name in imports(folder)}
    others = {name for extra in ("operator", "trainer", "gateway") for name in declared(extra)}
    assert declared("local") - others == imported - others


def test_the_console_runs_in_the_operators_image() -> None:
    """It shares code with the command line, and that one knows libraries which the image lacks."""
    lacking = [each for each in declared("local") - declared("operator") if each != "pyyaml"]  # kopf brings that one
    modules_ = [next((name for name, brought in DISTRIBUTIONS.items() if brought == each), each) for each in lacking]
    code = f"import sys; sys.modules |= dict.fromkeys({modules_}); import finetune_operator.console.command"
    assert sorted(modules_) == ["celpy", "rich"]
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "dockerfile", ["operator/Dockerfile", "operator/gateway.Dockerfile", "trainer_image/Dockerfile"]
)
def test_an_image_holds_the_packages_that_import_each_other(dockerfile: str) -> None:
    extra = {"Dockerfile": "operator", "gateway.Dockerfile": "gateway"}.get(Path(dockerfile).name, "")
    packages = PACKAGES["trainer" if dockerfile.startswith("trainer") else extra]
    copied = re.findall(r"^COPY (\S+/finetune_\w+) ", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(packages)
    names = {Path(package).name for package in packages}
    found = {name for package in packages for path in files(package) for name in modules(path)}
    assert {name for name in found if name.startswith("finetune_")} <= names


def declared(extra: str) -> set[str]:
    """The distributions that an extra names, with those that all have, without other extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    return {re.split(r"[<>=\[; ]", line)[0] for line in lines if not line.startswith(project["name"])}


def imports(folder: str, *, besides: tuple[str, ...] = ()) -> Iterator[str]:
    """The distributions that the files of a folder import, also inside functions."""
    for path in files(folder, besides=besides):
        for name in modules(path):
            if name not in sys.stdlib_module_names and not name.startswith("finetune_"):
                yield DISTRIBUTIONS.get(name, name)


def files(folder: str, *, besides: tuple[str, ...] = ()) -> list[Path]:
    assert (ROOT / folder).is_dir()
    left_out = [ROOT / each for each in besides]
    return [
        path for path in sorted((ROOT / folder).rglob("*.py")) if not any(each in path.parents for each in left_out)
    ]


def modules(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
