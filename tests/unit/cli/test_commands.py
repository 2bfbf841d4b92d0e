"""The commands as a user calls them: options, exit statuses, messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conformance.objects import job_manifest
from tests.patience import HANGS_S
from tests.unit.cli.jobs import ended
from tests.wrong_manifests import valid

from finetune_operator.cli import doctor
from finetune_operator.cli.__main__ import main
from finetune_operator.cli.completion import script
from finetune_operator.cli.manifests import with_absolute_uris
from finetune_operator.cli.reference import reference
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, without a kubeconfig."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return tmp_path


def write(name: str, *manifests: Any) -> str:
    Path(name).write_text(yaml.safe_dump_all(manifests))
    return name


def test_validate_says_what_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", write("both.yaml", valid("job"), valid("version"))]) == 0
    assert capsys.readouterr().out == (
        "finetunejob.finetune.dev/router is valid\nmodelversion.finetune.dev/router-1 is valid\n"
    )


def test_validate_refuses_in_kubectls_words(capsys: pytest.CaptureFixture[str]) -> None:
    wrong, unknown = valid("job"), valid("job")
    wrong["spec"]["training"]["epochs"] = "three"
    unknown["spec"]["modle"] = {}
    files = [write("a.yaml", wrong), write("b.yaml", unknown), write("c.yaml", valid("job"))]
    arguments = [argument for name in files for argument in ("-f", name)]
    assert main(["validate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "finetunejob.finetune.dev/router is valid\n", "the others are checked all the same"
    assert captured.err.splitlines() == [
        'a.yaml: The FineTuneJob "router" is invalid: ',
        '* spec.training.epochs: Invalid value: "string":'
        ' spec.training.epochs in body must be of type number: "string"',
        "* <nil>: Invalid value: null: some validation rules were not checked because the object was invalid;"
        " correct the existing errors to complete validation",
        'b.yaml: Error from server (BadRequest): FineTuneJob in version "v1alpha1" cannot be handled as a FineTuneJob:'
        ' strict decoding error: unknown field "spec.modle" (write model)',
    ]


def test_validate_knows_what_only_the_operator_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = valid("job")
    wrong["spec"]["evaluation"] = {"metrics": [{"name": "beauty", "maxRegression": 0.1}]}
    assert main(["validate", "-f", write("a.yaml", wrong)]) == 2
    assert 'The FineTuneJob "router" can never run: spec.evaluation.metrics' in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "part"), [("job", "compute"), ("endpoint", "serving")])
def test_validate_refuses_what_is_too_large_for_its_status(
    kind: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    large = valid(kind)
    large["spec"][part]["podTemplate"] = {"spec": {"affinity": {"any": ["x" * 1000] * 300}}}
    assert main(["validate", "-f", write("a.yaml", large)]) == 2
    said = capsys.readouterr().err
    assert "can never run: spec has 30" in said
    assert "at most 262,144" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "error: x.yaml: not YAML"),
        ("", "error: x.yaml: no object in it"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: x}\n", 'x.yaml: no matches for kind "Pod" in version "v1"'),
        ("kind: FineTuneJob\nkind: FineTuneJob\n", 'error: x.yaml: line 2: mapping key "kind" already defined'),
    ],
)
def test_files_that_are_no_manifests(content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(content)
    assert main(["validate", "-f", "x.yaml"]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_folder_of_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs").mkdir()
    write("jobs/b.yaml", valid("job"))
    Path("jobs/a.json").write_text(json.dumps(valid("version")))
    Path("jobs/notes.txt").write_text("not a manifest")
    assert main(["validate", "-f", "jobs"]) == 0
    assert [line.split("/")[0] for line in capsys.readouterr().out.splitlines()] == [
        "modelversion.finetune.dev",
        "finetunejob.finetune.dev",
    ]


def test_one_bad_file_of_a_folder_leaves_the_others_checked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs").mkdir()
    Path("jobs/a.yaml").write_text("a:\n\tb: 1\n")
    write("jobs/b.yaml", {**valid("job"), "spec": {}})
    write("jobs/c.yaml", valid("job"))
    assert main(["validate", "-f", "jobs", "-f", "nowhere.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "finetunejob.finetune.dev/router is valid\n"
    said = captured.err.splitlines()
    assert said[0].startswith("error: jobs/a.yaml: not YAML: line 2, column 1: ")
    assert said[1] == 'jobs/b.yaml: The FineTuneJob "router" is invalid: ', "the file is named, not the folder"
    assert said[-1] == "error: nowhere.yaml does not exist"


@pytest.mark.parametrize(
    ("parent", "name", "hint"),
    [
        (("training",), "learning_rate", " (write learningRate)"),
        (("training",), "learningrate", " (write learningRate)"),
        (("training",), "batch_size", " (write globalBatchSize or microBatchSize)"),
        (("training",), "warmup", " (write warmupFraction)"),
        (("data", "sources", 0), "urii", " (write uri)"),
        ((), "epochs", " (write spec.training.epochs)"),
        (("training",), "lr", " (write learningRate)"),
        (("training",), "num_train_epochs", " (write epochs)"),
        (("training",), "warmup_ratio", " (write warmupFraction)"),
        (("training",), "gradient_checkpointing", " (write activationCheckpointing)"),
        (("training",), "per_device_train_batch_size", " (write globalBatchSize or microBatchSize)"),
        (("method", "lora"), "r", " (write rank)"),
        (("method", "lora"), "lora_alpha", " (write alpha)"),
        (("training",), "gradient_accumulation_steps", ""),
        (("training",), "colour", ""),
    ],
)
def test_an_unknown_field_comes_with_the_one_that_was_meant(
    parent: tuple[str | int, ...], name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = valid("job")
    place, path = wrong["spec"], "spec"
    for part in parent:
        place, path = place[part], f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}"
    place[name] = 1
    assert main(["validate", "-f", write("a.yaml", wrong)]) == 2
    assert capsys.readouterr().err.endswith(f'strict decoding error: unknown field "{path}.{name}"{hint}\n')


def test_a_deepspeed_configuration_beside_its_job_is_checked_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    job = valid("job")
    job["spec"]["compute"] |= {"strategy": "DeepSpeedZeRO2", "configRef": {"name": "mine", "key": "ds.json"}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}, "data": {"ds.json": "{}"}}
    assert main(["validate", "-f", write("right.yaml", config, job)]) == 0
    config["data"] = {"ds.json": '{"zero_optimization": {"stage": 3}}'}
    assert main(["validate", "-f", write("wrong.yaml", config, job)]) == 2
    assert "stage: 3 contradicts compute.strategy: DeepSpeedZeRO2" in capsys.readouterr().err


def test_run_takes_one_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-f", write("two.yaml", valid("job"), valid("job"))]) == 2
    assert capsys.readouterr().err == "error: two.yaml: run takes one FineTuneJob, found FineTuneJob, FineTuneJob\n"
    assert not Path(".finetune").exists()


def test_relative_uris_are_relative_to_the_manifest(tmp_path: Path) -> None:
    manifest = job_manifest(
        artifacts={"uri": "file://./runs"},
        model={"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        data={"sources": [{"name": "a", "uri": "file://../data/a.jsonl"}]},
    )
    spec = with_absolute_uris(manifest, folder=tmp_path / "jobs")["spec"]
    assert spec["artifacts"]["uri"] == f"file://{tmp_path}/jobs/runs"
    assert spec["data"]["sources"][0]["uri"] == f"file://{tmp_path}/data/a.jsonl"
    assert spec["model"]["uri"] == "hf://HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_file_of_the_folder_above_is_valid_and_one_of_no_folder_is_told_how(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def source(uri: str) -> dict[str, Any]:
        return {**valid("job"), "spec": {**valid("job")["spec"], "data": {"sources": [{"name": "a", "uri": uri}]}}}

    assert main(["validate", "-f", write("above.yaml", source("file://../data.jsonl"))]) == 0
    assert main(["validate", "-f", write("bare.yaml", source("file://data.jsonl"))]) == 2
    assert "file://data.jsonl names no absolute path" in capsys.readouterr().err


@pytest.fixture
def stored() -> LocalHome:
    """A home with one job that has ended."""
    home = LocalHome.at(".finetune")
    manifest = ended().to_dict()
    manifest["metadata"]["namespace"] = "default"
    LocalCluster(home=home).store.write(manifest)
    return home


def test_get_in_all_forms(stored: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "jobs", "-o", "name"]) == 0
    assert capsys.readouterr().out == "finetunejob.finetune.dev/router\n", "without a kubeconfig, this folder is meant"
    assert main(["get", "job", "router", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["phase"] == "Succeeded"
    assert main(["get", "jobs", "-o", "yaml", "--home", str(stored.root)]) == 0
    assert [item["kind"] for item in yaml.safe_load(capsys.readouterr().out)["items"]] == ["FineTuneJob"]
    assert main(["get", "jobs", "-A"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["NAMESPACE", "NAME"]
    assert main(["get", "jobs", "-l", "team=red"]) == 0
    assert capsys.readouterr().err == "No resources found in default namespace.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "jobs", "other"], "error: FineTuneJob other was not found in {home}\n"),
        (
            ["get", "pods"],
            "error: there is no kind 'pods'; expected one of jobs (ftj), versions (mv), endpoints (mep)\n",
        ),
        (["get", "jobs", "router", "-A"], "error: a name is one of a namespace: use -n instead of -A\n"),
        (["get", "jobs", "-l", "team"], "error: --selector team: expected key=value,...\n"),
        (["get", "jobs", "--local", "--context", "x"], "error: --local and --home mean this machine"),
        (["logs", "router"], "error: router has no such log: Succeeded\n"),
        (
            ["report", "router", "--open"],
            "error: pvc://models/runs/ml/router-5a0c1e7e/evaluation/report.html is not on",
        ),
    ],
)
def test_what_cannot_be_shown(
    stored: LocalHome, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message.format(home=stored.root))


def test_without_any_home(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "jobs"]) == 2
    assert "no job has run here; `finetune run -f job.yaml` makes it" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    users = {"users": [{"name": "u", "user": {"token": "t"}}], "current-context": "x"}
    file = write("kubeconfig", {**config, **users})
    assert main(["get", "jobs", "--kubeconfig", file]) == 1
    assert "127.0.0.1" in capsys.readouterr().err
    assert main(["doctor", "--kubeconfig", file]) == 1
    assert re.search(r"apiserver +failed", capsys.readouterr().out)


def test_wrong_options_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["get", "jobs", "-o", "xml"])
    assert stopped.value.code == 2
    assert "invalid choice: 'xml'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["get"])
    assert capsys.readouterr().err.endswith("required: KIND\n"), "names may be left out"


def test_logs_of_the_newest_attempt(stored: LocalHome, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored.logs(namespace="default", job="router")
    folder.mkdir(parents=True)
    for pod in ("prepare-1-0", "train-1-0", "train-2-0", "train-2-1", "train-10-0"):
        (folder / f"router-{pod}-ab12c.log").write_text(f"{pod}\n")
    for arguments, expected in (
        ([], "train-10-0\n"),
        (["--stage", "Prepare"], "prepare-1-0\n"),
        (["--attempt", "2"], "train-2-0\n"),
        (["--attempt", "2", "--index", "1"], "train-2-1\n"),
        (["-f"], "train-10-0\n"),
    ):
        assert main(["logs", "router", *arguments]) == 0
        assert capsys.readouterr().out == expected, arguments


@pytest.mark.parametrize(
    "command",
    [["finetune_operator.cli", "describe", "job", "router"], ["finetune_trainer", "--run-file", "größe.yaml"]],
)
def test_words_that_the_terminal_cannot_show_end_no_command(command: list[str], stored: LocalHome) -> None:
    manifest = ended().to_dict()
    manifest["metadata"]["namespace"] = "default"
    manifest["status"]["conditions"][0]["message"] = "größe.yaml"
    LocalCluster(home=stored).store.write(manifest)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "FINETUNE_TERMINATION_LOG": "ended"}
    finished = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, env=environment, timeout=HANGS_S, check=False
    )
    said = (finished.stdout + finished.stderr).decode()
    assert "gr\\xf6\\xdfe.yaml" in said
    assert "Traceback" not in said


def test_doctor_of_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH_PROBE", 'print(\'{"version": "2.15.0", "gpus": ["H200"]}\')')
    assert main(["doctor", "--local"]) == 0
    assert re.search(r"torch +ok +2.15.0, H200", capsys.readouterr().out)
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "import no_such_module")
    assert main(["doctor", "--local"]) == 1
    assert "No module named 'no_such_module'; install it again" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "trainer_is_installed", lambda: False)
    assert main(["doctor", "--local"]) == 1
    assert "pip install 'finetune-operator[local]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["finetune", "r"], {"run", "report", "reject", "resume", "retry", "rollback"}),
        (["finetune", "get", "j"], {"jobs"}),
        (["finetune", "get", "jobs", "-o", "w"], {"wide"}),
        (["finetune", "logs", "x", "--stage", ""], {"Prepare", "Train", "Evaluate"}),
        (["finetune", "run", "--p"], {"--plain"}),
        (["finetune", "completion", "z"], {"zsh"}),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script(dialect="bash"))
    words = " ".join(f"'{word}'" for word in typed)
    program = (
        f'source completion; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _finetune; echo "${{COMPREPLY[@]}}"'
    )
    answer = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) == offered


def test_zsh_gets_the_same(tmp_path: Path) -> None:
    assert script(dialect="zsh").endswith(script(dialect="bash"))
    assert script(dialect="zsh").startswith("#compdef finetune kubectl-finetune\n")


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run `make generate`"
