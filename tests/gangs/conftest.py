"""Fixtures of the layer of gangs: the cluster layer's, and one namespace for all runs that are compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.cluster.conftest import (  # noqa: F401 - pytest finds fixtures and hooks by their names here
    cluster,
    evidence_folder,
    inside,
    operator,
    print_figures,
    pytest_runtest_makereport,
)
from tests.cluster.jobs import Workspace, give_to_pods, prepare
from tests.cluster.operator_install import InstalledOperator
from tests.gangs.gang import BASE
from tests.harness.preparation import prepare_collected, prepare_for_cluster
from transformers import AutoConfig, AutoModel


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_cluster)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded."""
    print_figures(terminalreporter)


@pytest.fixture(scope="session")
def shared(operator: InstalledOperator) -> Iterator[Workspace]:  # noqa: F811
    """A namespace with a base model and data on a claim, for the whole session."""
    with operator.cluster.namespace_named(labels={"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        workspace = prepare(cluster=operator.cluster, namespace=name)
        small_encoder(workspace.folder)
        yield workspace


def small_encoder(folder: Path) -> None:
    """A random encoder with MiniLM's tokenizer: steps are short, even with eight processes on two cores."""
    of = AutoConfig.from_pretrained(str(folder / "all-minilm-l6-v2"))
    of.update({"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 2})
    torch.manual_seed(0)
    shutil.copytree(folder / "all-minilm-l6-v2", folder / BASE, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModel.from_config(of).save_pretrained(str(folder / BASE))
    give_to_pods(folder / BASE)


@pytest.fixture
def namespace(shared: Workspace) -> str:
    """Whence evidence is collected."""
    return shared.namespace
