"""The layout rules that no linter knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.__main__ import to_yaml
from finetune_api.crd import RESOURCES, Resource, custom_resource_definition

ROOT = Path(__file__).resolve().parents[2]


def test_operator_folder_is_no_package() -> None:
    """An __init__.py there would shadow the standard library's `operator`."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "trainer_image" / "__init__.py").exists()


@pytest.mark.parametrize("module", ["finetune_operator.__main__", "finetune_operator.cli.__main__"])
def test_importing_the_operator_imports_no_torch(module: str) -> None:
    heavy = "{'torch', 'transformers', 'finetune_trainer'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_committed_crd_is_current(resource: Resource) -> None:
    path = ROOT / "manifests" / "crd" / f"{resource.plural}.yaml"
    assert path.read_text() == to_yaml(custom_resource_definition(resource=resource)), "stale: run `make generate`"


def test_committed_files_name_no_package_index() -> None:
    """Locks must install from whatever index a machine is set up with."""
    for lock in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in lock.read_text().splitlines() if "://" in line and not line.lstrip().startswith("#")]
        assert lines == [], lock
