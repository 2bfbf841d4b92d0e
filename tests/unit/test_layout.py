"""The layout rules that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from finetune_api.__main__ import to_yaml
from finetune_api.crd import RESOURCES, Resource, ResourceKind, custom_resource_definition, object_schema
from finetune_api.shared_fields import Task
from finetune_api.tasks import TASKS, MethodType

ROOT = Path(__file__).resolve().parents[2]


def test_operator_folder_is_no_package() -> None:
    """An __init__.py there would shadow the standard library's `operator`."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "trainer_image" / "__init__.py").exists()


def test_importing_the_operator_and_its_command_line_imports_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'finetune_trainer'}"
    modules = "finetune_operator.__main__, finetune_operator.cli.__main__"
    code = f"import sys, {modules}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_committed_crd_is_current(resource: Resource) -> None:
    path = ROOT / "manifests" / "crd" / f"{resource.plural}.yaml"
    assert path.read_text() == to_yaml(custom_resource_definition(resource=resource)), "stale: run `make generate`"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_every_field_is_described(resource: Resource) -> None:
    """What `kubectl explain` shows: a docstring under the field, or that of its type."""
    lacking = [path for path, node in _fields(object_schema(resource=resource), "") if not node.get("description")]
    assert lacking == [".metadata"], "describe each field by a docstring under it (metadata is Kubernetes' own)"


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from _fields(child, f"{path}.{name}")
    for inner in (node.get("items"), node.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from _fields(inner, f"{path}[]")


def test_committed_files_name_no_package_index() -> None:
    """Locks must install from whatever index a machine is set up with."""
    for lock in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in lock.read_text().splitlines() if "://" in line and not line.lstrip().startswith("#")]
        assert lines == [], lock


def test_no_json_lines_are_split_at_other_line_ends() -> None:
    """`splitlines` also breaks at U+2028, U+0085 and their like, which JSON texts may hold; so do `iter_lines` and
    what `codecs.getreader` makes."""
    ours = [ROOT / folder for folder in ("operator", "trainer_image", "demo", "tests")]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ours
        for path in sorted(folder.rglob("*.py"))
        if re.search(r"\b(splitlines|a?iter_lines|getreader)\b", text := path.read_text())
        for node in _broken_at_any_line_end(ast.parse(text), product=folder.name != "tests")
    ]
    assert found == [], 'use text.split("\\n"), or finetune_trainer.store.json_lines'


def test_only_choosers_ask_which_task_or_method_it_is() -> None:
    """A new one is a file and a row. Everybody else asks what it does (`tasks/task.py`, `methods/choose.py`, and of the
    operator and the gateway `finetune_api/tasks.py`)."""
    names = {*get_args(Task), *get_args(MethodType)}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node).partition(chr(10))[0]}"
        for folder in (ROOT / "trainer_image", ROOT / "operator")
        for path in sorted(folder.rglob("*.py"))
        if path.name != "choose.py" or ("tasks" not in path.parts and "methods" not in path.parts)
        if any(name in (text := path.read_text()) for name in names)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare | ast.Match | ast.keyword)
        and any(isinstance(each, ast.Constant) and each.value in names for each in ast.walk(node))
        and re.search(r"task|method", ast.unparse(node.subject if isinstance(node, ast.Match) else node))
    ]
    assert found == []


def test_each_resource_is_a_kind_and_is_installed() -> None:
    assert {each.kind for each in RESOURCES} == set(get_args(ResourceKind))
    installed = yaml.safe_load((ROOT / "manifests" / "crd" / "kustomization.yaml").read_text())["resources"]
    assert sorted(installed) == sorted(f"{each.plural}.yaml" for each in RESOURCES)


def test_each_task_has_a_row() -> None:
    assert set(TASKS) == set(get_args(Task))


def test_no_test_sleeps_a_fixed_time() -> None:
    """It waits for something, with a deadline, or watches that something stays as it is (tests/staying.py). What fakes
    do, in classes and inner functions, is not meant: there a sleep is what is shown."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "bench" not in path.parts and "sleep" in (text := path.read_text())
        for function in ast.parse(text).body
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for line in _sleeps_outside_of_loops(function)
    ]
    assert found == []


def _sleeps_outside_of_loops(node: ast.AST) -> Iterator[int]:
    """Lines of sleeps that are not in a loop which ends on a condition; `sleep(0)` only lets others run."""
    for child in ast.iter_child_nodes(node):
        polls = isinstance(child, ast.For) and any(isinstance(each, ast.Break | ast.Return) for each in ast.walk(child))
        if polls or isinstance(child, ast.While | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Call) and ast.unparse(child.func).rpartition(".")[2] == "sleep":
            if ast.unparse(child) not in ("asyncio.sleep(0)", "time.sleep(0)"):
                yield child.lineno
        else:
            yield from _sleeps_outside_of_loops(child)


def _broken_at_any_line_end(module: ast.Module, *, product: bool) -> list[ast.Attribute]:
    """In product code every use; in tests those in an expression that reads JSON."""
    places = [module] if product else [node for node in ast.walk(module) if isinstance(node, ast.ListComp | ast.For)]
    return [
        node
        for place in places
        if product or any(isinstance(each, ast.Attribute) and each.attr == "loads" for each in ast.walk(place))
        for node in ast.walk(place)
        if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "iter_lines", "aiter_lines", "getreader")
    ]


def test_what_the_readme_says_to_type_is_there() -> None:
    typed = "\n".join((ROOT / "README.md").read_text().split("```")[1::2])
    named = set(re.findall(r"(?<![\w./-])(?:manifests|demo|charts|operator|trainer_image)/[\w./-]*\w", typed))
    assert {"demo/cluster-storage.yaml", "manifests/default", "operator/Dockerfile"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    (kustomization,) = yaml.safe_load_all((ROOT / "manifests" / "operator" / "kustomization.yaml").read_text())
    images = {f"{each['newName']}:{each['newTag']}" for each in kustomization["images"]}
    assert set(re.findall(r"-t (\S+)", typed)) == images, "what is built is what the manifests ask for"
    assert set(re.findall(r"ghcr\.io/\S+", typed)) == images
