"""The launch recipes of `cluster/`, and `make setup`: what can be known without Slurm, Kubernetes or a registry.

Slurm's programs are replaced by small scripts that do what Slurm does to a job; Ray is the real one wherever
its behaviour is the question.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
README = ROOT / "cluster/README.md"
SBATCH = ROOT / "cluster/slurm/temperflow.sbatch"
RAYJOB = ROOT / "cluster/kubernetes/rayjob.yaml"
RESULTS = ROOT / "cluster/kubernetes/results.yaml"
DOCKERFILE = ROOT / "cluster/Dockerfile"
SCHEMA = Path(__file__).parent / "data/rayjob_v1.schema.json.gz"

CONFIGURATION = "examples/hudson_bay.yaml"
COMMAND = re.compile(r"temperflow run (?P<configuration>\S+) --dir (?P<directory>\S+)")


def code_blocks(markdown: str) -> str:
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE))


def shell_commands(script: str) -> str:
    """The script without its comments, continued lines joined."""
    lines = (line for line in script.splitlines() if not line.lstrip().startswith("#"))
    return "\n".join(lines).replace("\\\n", " ")


@pytest.fixture
def rayjob() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(RAYJOB.read_text())
    return manifest


def containers(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


# Every recipe runs the same campaign


@pytest.mark.parametrize("recipe", [README, SBATCH, RAYJOB], ids=lambda path: path.name)
def test_runs_the_same_command_with_the_same_file(recipe: Path) -> None:
    text = recipe.read_text()
    commands = code_blocks(text) if recipe is README else shell_commands(text)
    runs = list(COMMAND.finditer(commands))
    assert runs
    assert len(runs) == commands.count("temperflow run"), "a run that is written in another way"
    assert {run["configuration"] for run in runs} == {CONFIGURATION}


def test_configuration_exists() -> None:
    assert (ROOT / CONFIGURATION).is_file()


def test_readme_names_files_that_exist() -> None:
    named = re.findall(r"(?<![\w/.-])(?:cluster|examples|tests)/[\w/.]*\w", README.read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


# Kubernetes


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every object closed that lists its fields.

    Kubernetes silently drops a field that a custom resource's schema does not know: a misspelt limit is no
    limit. `metadata` of the resource itself is the one object whose fields the schema leaves to Kubernetes.
    """
    result = copy.deepcopy(schema)

    def close(node: dict[str, Any]) -> None:
        properties = node.get("properties", {})
        if properties and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for child in (*properties.values(), node.get("items"), node.get("additionalProperties")):
            if isinstance(child, dict):
                close(child)

    close(result)
    return result


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    return jsonschema.Draft202012Validator(closed(schema))


def test_rayjob_is_valid(rayjob: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(rayjob)] == []


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("spec", "entryPoint", "temperflow"),
        (CLUSTER, "rayVersions", "2.60.0"),
        (f"{CLUSTER}.workerGroupSpecs.0", "maxReplica", 3),
        (f"{CLUSTER}.workerGroupSpecs.0", "maxReplicas", "3"),
        (HEAD, "volumeMount", []),
        (f"{HEAD}.resources.limits", "memory", "8GB"),
        (f"{HEAD}.env.0.valueFrom.secretKeyRef", "keys", "tracking-uri"),
    ],
)
def test_mistake_in_rayjob_is_found(
    rayjob: dict[str, Any], validator: jsonschema.Draft202012Validator, path: str, field: str, value: object
) -> None:
    node: Any = rayjob
    for key in path.split("."):
        node = node[int(key) if key.isdigit() else key]
    node[field] = value
    (error,) = validator.iter_errors(rayjob)
    assert field in error.message or error.path[-1] == field


def test_run_directory_lies_on_the_claimed_volume(rayjob: dict[str, Any]) -> None:
    claim, _ = yaml.safe_load_all(RESULTS.read_text())
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = head["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"]
    run = COMMAND.fullmatch(rayjob["spec"]["entrypoint"])
    assert run is not None
    assert Path(mount["mountPath"]) in Path(run["directory"]).parents


def test_tracking_is_on_the_volume_by_default(rayjob: dict[str, Any]) -> None:
    _, defaults = yaml.safe_load_all(RESULTS.read_text())
    assert (defaults["apiVersion"], defaults["kind"]) == ("v1", "ConfigMap")
    (head, *_) = containers(rayjob)
    # Kubernetes lets `env` take precedence over it, and leaves out a secret that is not there.
    assert head["envFrom"] == [{"configMapRef": {"name": defaults["metadata"]["name"]}}]
    (mount,) = head["volumeMounts"]
    database = defaults["data"]["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
    assert Path(mount["mountPath"]) in Path(database).parents


def test_tracking_server_is_an_optional_secret(rayjob: dict[str, Any]) -> None:
    (head, *_) = containers(rayjob)
    (tracking,) = [variable for variable in head["env"] if variable["name"] == "MLFLOW_TRACKING_URI"]
    secret = tracking["valueFrom"]["secretKeyRef"]
    assert secret["optional"] is True
    commands = code_blocks(README.read_text())
    created = re.search(r"create secret generic (\S+) --from-literal=([\w-]+)=", commands)
    assert created is not None
    assert created.groups() == (secret["name"], secret["key"])


def test_workers_are_as_many_as_asked_for(rayjob: dict[str, Any]) -> None:
    # Nobody asks the autoscaler for more: it would only take idle workers away.
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & cluster.keys()
    for group in cluster["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_pods_agree_with_the_image(rayjob: dict[str, Any]) -> None:
    dockerfile = DOCKERFILE.read_text()
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert re.findall(r"^ARG RAY_VERSION=(\S+)$", dockerfile, re.MULTILINE) == [cluster["rayVersion"]]

    built = set(re.findall(r"docker build .*-t (\S+)", dockerfile + code_blocks(README.read_text())))
    assert {container["image"] for container in containers(rayjob)} == built

    (user,) = re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        context = group["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_every_pod_states_its_resources(rayjob: dict[str, Any]) -> None:
    for container in containers(rayjob):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert set(container["resources"]["limits"]) == {"cpu", "memory"}


# The image


def copied_into_image() -> set[str]:
    copies = re.findall(r"^COPY (?:--\S+ )*(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    return {source.rstrip("/") for arguments in copies for source in arguments.split()[:-1]}


def test_image_copies_files_that_exist() -> None:
    assert [source for source in copied_into_image() if not (ROOT / source).exists()] == []


def test_build_sends_exactly_what_the_image_copies() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule[0] == "!"} == copied_into_image()


def test_image_holds_the_configuration_and_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "examples"}
    assert packages | {CONFIGURATION.split("/")[0]} <= copied_into_image()
    (version,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    (ray,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "ray"]
    assert ray.specifier.contains(version), "the image's Ray is not one that the project admits"


# Options that the recipes give to Ray


def options_of(*ray_command: str) -> set[str]:
    ray = Path(sys.executable).with_name("ray")
    shown = subprocess.run([ray, *ray_command, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown.split("\nOptions:\n")[1], re.MULTILINE))


def test_readme_starts_ray_with_options_it_has() -> None:
    starts = re.findall(r"\bray start (.*)", code_blocks(README.read_text()).replace("\\\n", " "))
    assert starts
    given = {option for arguments in starts for option in re.findall(r"--[\w-]+", arguments)}
    assert given
    assert given <= options_of("start")


def test_slurm_gives_ray_options_it_takes() -> None:
    (arguments,) = re.findall(r"\bray symmetric-run (.*?) -- ", shell_commands(SBATCH.read_text()))
    given = set(re.findall(r"--[\w-]+", arguments))
    assert {"--address", "--min-nodes"} <= given & options_of("symmetric-run")
    passed_on = given - options_of("symmetric-run")
    assert passed_on <= options_of("start")
    # The same options reach the head and the workers: `ray symmetric-run` refuses the first four, and
    # `ray start` the last on every node but the head.
    assert passed_on.isdisjoint({"--head", "--node-ip-address", "--port", "--block", "--include-dashboard"})


# The Slurm script


def test_slurm_script_parses() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)


def test_slurm_script_asks_for_a_warning_and_for_the_queue() -> None:
    directives = set(re.findall(r"^#SBATCH (\S+)", SBATCH.read_text(), re.MULTILINE))
    assert "--requeue" in directives
    (signal,) = [directive for directive in directives if directive.startswith("--signal")]
    # Without `B:`, so that it takes the way of a preemption: to the tasks, not to the batch script.
    assert re.fullmatch(r"--signal=TERM@\d+", signal)


SRUN = """#!/usr/bin/env bash
# One task, on this node. Slurm signals the task and none of the processes that the task has started.
while [[ $1 == -* ]]; do shift; done
echo $$ >"$STUBS/task.pid"
SLURM_NODEID=0 exec "$@"
"""

SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >>"$STUBS/scontrol.log"; fi
"""

RAY_THAT_RUNS = """#!/usr/bin/env bash
while [[ $1 != -- ]]; do shift; done
shift
"$@"
"""

RAY_THAT_FAILS = """#!/usr/bin/env bash
echo "Failed to start Ray" >&2
"""

CAMPAIGN = f"""#!{sys.executable}
import json, os, signal, sys, threading
from pathlib import Path

stubs = Path(os.environ["STUBS"])
seen = {{name: os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "OMP_NUM_THREADS")}}
if "REAL_RAY" in os.environ:
    import ray
    ray.init(log_to_driver=False)
    seen["cpus"] = ray.cluster_resources()["CPU"]
(stubs / "campaign.json").write_text(json.dumps({{"arguments": sys.argv[1:], **seen}}))
if "PREEMPTED" in os.environ:
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    os.kill(int((stubs / "task.pid").read_text()), signal.SIGTERM)
    if not told.wait(60):
        sys.exit("SIGTERM never reached the campaign")
    (stubs / "saved").touch()
sys.exit(int(os.environ["CAMPAIGN_STATUS"]))
"""


@pytest.fixture
def stubs() -> Iterator[Path]:
    """A folder of programs for PATH. Its name is short, as the paths of Ray's sockets in it must be."""
    with tempfile.TemporaryDirectory(prefix="tf") as name:
        folder = Path(name)
        for program, text in {"srun": SRUN, "scontrol": SCONTROL, "temperflow": CAMPAIGN}.items():
            install(folder, program, text)
        yield folder


def install(folder: Path, program: str, text: str) -> None:
    path = folder / program
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_job(
    stubs: Path, *, within: tuple[str, ...] = (), preempted: bool = False, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the batch script as Slurm runs it on the first node of a job of one node."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_", "OMP_"))}
    job = {
        "PATH": f"{stubs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STUBS": str(stubs),
        "TMPDIR": str(stubs),
        "RUN_DIRECTORY": str(stubs / "run"),
        "CAMPAIGN_STATUS": str(status),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
    }
    if preempted:
        job["PREEMPTED"] = "1"
    return subprocess.run(
        [*within, "bash", str(SBATCH)],
        env=inherited | job | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def requeued(stubs: Path) -> list[str]:
    log = stubs / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def test_finished_campaign_ends_the_job(stubs: Path) -> None:
    install(stubs, "ray", RAY_THAT_RUNS)
    job = run_job(stubs)
    assert job.returncode == 0, job.stderr
    assert json.loads((stubs / "campaign.json").read_text()) == {
        "arguments": ["run", CONFIGURATION, "--dir", str(stubs / "run")],
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_AUTH_MODE": "token",
        "OMP_NUM_THREADS": "1",
    }
    assert requeued(stubs) == []


def test_preempted_campaign_saves_and_returns_to_the_queue(stubs: Path) -> None:
    install(stubs, "ray", RAY_THAT_RUNS)
    job = run_job(stubs, preempted=True, status=3)
    assert (stubs / "saved").exists(), job.stderr
    assert job.returncode == 3, "the job did not wait for the campaign to end"
    assert requeued(stubs) == ["requeue 77"]


def test_failed_campaign_fails_the_job_and_stays_out_of_the_queue(stubs: Path) -> None:
    install(stubs, "ray", RAY_THAT_RUNS)
    assert run_job(stubs, status=3).returncode == 3
    assert requeued(stubs) == []


def test_ray_that_does_not_start_fails_the_job(stubs: Path) -> None:
    install(stubs, "ray", RAY_THAT_FAILS)  # which `ray symmetric-run` reports with status 0
    job = run_job(stubs)
    assert job.returncode == 1
    assert "never started" in job.stderr
    assert requeued(stubs) == []


@pytest.fixture
def isolated() -> tuple[str, ...]:
    """What runs a command with processes and a network of its own.

    `ray symmetric-run` ends with `ray stop`, which stops all of the user's Ray processes that it can see.
    """
    namespaces = ("--user", "--map-root-user", "--net", "--pid", "--mount-proc")
    with_network = ("bash", "-c", 'ip link set lo up && "$@"', "isolated")
    within = ("unshare", *namespaces, "--fork", "--kill-child", *with_network)
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], check=False).returncode != 0:
        pytest.skip("needs user, process and network namespaces (Linux)")
    return within


def test_real_ray_runs_the_campaign_and_passes_on_the_preemption(stubs: Path, isolated: tuple[str, ...]) -> None:
    ray = {"REAL_RAY": "1", "RAY_TMPDIR": str(stubs)}
    job = run_job(stubs, within=isolated, preempted=True, status=3, **ray)
    assert (stubs / "saved").exists(), job.stdout + job.stderr
    assert job.returncode == 3
    seen = json.loads((stubs / "campaign.json").read_text())
    assert (seen["RAY_ADDRESS"], seen["cpus"]) == ("127.0.0.1:6379", 2.0)
    assert requeued(stubs) == ["requeue 77"]


# The virtual environment

PYTHON_WITHOUT_PIP = """#!/usr/bin/env bash
[[ "$*" != *pip* ]]
"""

PYTHON = """#!/usr/bin/env bash
echo "$@" >>calls.log
if [[ $1 == -m && $2 == venv ]]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
"""


@pytest.mark.parametrize(("before", "made"), [(None, 1), (PYTHON_WITHOUT_PIP, 1), (PYTHON, 0)])
def test_a_half_made_environment_is_made_anew(tmp_path: Path, before: str | None, made: int) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    if before is not None:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        install(tmp_path / ".venv/bin", "python", before)
    install(tmp_path, "python", PYTHON)
    subprocess.run(["make", "setup", "PYTHON=./python"], cwd=tmp_path, check=True, capture_output=True)
    calls = (tmp_path / "calls.log").read_text().splitlines()
    assert calls.count("-m venv .venv") == made
    assert (tmp_path / ".venv/ready").exists()
