"""The configuration: what is valid, and what an error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from learners.embedding import KINDS as EMBEDDING_KINDS
from learners.source_choice import SOURCES
from orchestrator.campaign import Campaign
from orchestrator.config import ObservationConfig
from orchestrator.config_learner import EMBEDDINGS, LearnerConfig
from orchestrator.config_reading import load_config
from orchestrator.learner_parts import LearnerParts
from orchestrator.observation import read_observation
from orchestrator.problem import resolve
from orchestrator.trainer import learner_options
from simulators.errors import ConfigError, ObservationError, PriorError, SimulatorError

BASE = {"simulator": {"task": "two_moons"}, "budget": {"simulations": 100}}


def resources(**needs: object) -> dict[str, object]:
    return {**BASE, "simulator": {"task": "two_moons", "resources": needs}}


def write(folder: Path, values: object) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_defaults_and_overrides(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, BASE), ["budget.simulations=7", "temperature.low=0.2", "name=other"])
    assert config.budget.simulations == 7
    assert config.temperature.low == 0.2
    assert config.name == "other"
    assert config.acquisition.method == "default"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**BASE, "budgett": 1}, r"budgett: unknown key; did you mean 'budget'"),
        ({**BASE, "budget": {"simulation": 5}}, r"budget.simulation: unknown key; did you mean 'simulations'"),
        ({**BASE, "budget": {}}, "empty budget"),
        ({"simulator": {"task": "two_moons"}}, "budget: required, but missing"),
        ({**BASE, "budget": {"simulations": 0}}, "budget.simulations: .*greater than or equal to 1, got 0"),
        ({**BASE, "temperature": {"low": 2, "high": 1}}, "low <= high"),
        ({**BASE, "temperature": {"low": 0}}, "temperature.low: .*greater than 0, got 0"),
        ({**BASE, "simulator": {"task": "two_mons"}}, "did you mean 'two_moons'"),
        ({**BASE, "acquisition": {"method": "magic"}}, "acquisition.method"),
        ({**BASE, "parameters": {"a": {"loc": 1}}}, "parameter 'a' needs a `distribution`"),
        ({**BASE, "parameters": {"a": {"distribution": "Norml", "loc": 0, "scale": 1}}}, "did you mean 'Normal'"),
        (
            {**BASE, "store": "s3://key:secret@bucket"},
            r"store: a store's URI must not hold credentials; .*s3://bucket",
        ),
        ({**BASE, "store": "s4://bucket"}, "store: there is no store of the kind 's4://'"),
        ({**BASE, "learner": {"source": "ration"}}, "learner.source: .*'surrogate', 'ratio' or 'cost'"),
        (
            {**BASE, "learner": {"source": "cost"}},
            "learner: source `cost` needs a `distance`",
        ),
        ({**BASE, "learner": {"distance": "a.py:d"}}, "learner: a `distance` is for the source `cost`, but"),
        (
            {**BASE, "learner": {"source": "ratio", "members": ["linear"]}},
            "learner: `members` are those",
        ),
        ({**BASE, "learner": {"embedding": "conv"}}, "learner.embedding: no embedding 'conv'; did you mean 'conv1d'"),
        ({**BASE, "learner": {"embedding_dim": 3}}, "learner: `embedding_dim` is for the embeddings mlp and conv1d"),
        (
            {**BASE, "learner": {"embedding": "mlp", "embedding_channels": 2}},
            "`embedding_channels` are for conv1d",
        ),
        ({**BASE, "learner": {"hidden": []}}, r"learner\.hidden: .*at least 1 item"),
        ({**BASE, "learner": {"hidden": [64, 0]}}, r"learner\.hidden\.1: .*greater than 0, got 0"),
        (
            {**BASE, "learner": {"gpus": 1.5}},
            r"learner\.gpus: expected a share of one GPU or a whole number .*got 1\.5",
        ),
        (resources(gpus=1.5), r"simulator\.resources\.gpus: expected a share of one GPU or a whole .*got 1\.5"),
        (resources(cpus=float("inf")), r"simulator\.resources\.cpus: .*finite number, got inf"),
        (resources(custom={"GPU": 1}), r"custom: GPU is no custom resource; give `gpus: 1` instead"),
        (resources(custom={"memory": 1e9}), r"custom: memory is no custom resource; give `memory: 1e\+09` instead"),
        (resources(custom={"licence": 0}), r"custom: expected an amount above 0 of licence, got 0; leave out"),
        (resources(custom={"licence": -1}), r"custom: expected an amount above 0 of licence, got -1; leave out"),
        ({**BASE, "temperature": {"high": float("inf")}}, r"temperature\.high: .*finite number, got inf"),
        (
            {**BASE, "reference": {"a": {"mean": float("nan"), "std": 1}}},
            r"reference\.a\.mean: .*finite number, got nan",
        ),
        ("name: 2024-13-45", r"campaign\.yaml is not valid YAML: month must be in 1\.\.12"),
        (
            {**BASE, "budget": {"simulations": 5, "until": 0.1}, "acquisition": {"method": "sobol"}},
            "`budget.until` asks models .* method `sobol` there is none before the last",
        ),
        (
            {**BASE, "budget": {"simulations": 5, "until": 0.1}, "learner": {"members": ["gaussian"]}},
            "`budget.until` asks how far the members .* only `gaussian`",
        ),
        ({**BASE, "reference": {"a": {"mean": 0, "std": 1, "sd": 1}}}, r"reference\.a\.sd: unknown key"),
        (
            {**BASE, "tracking": {"uri": "https://me:pass/word@host"}},
            r"tracking\.uri: expected a server's address .*; write %2F for /",
        ),
        *(
            ({**BASE, "tracking": {"model": name}}, rf"tracking\.model: .*pattern.*, got .*{name}")
            for name in ("it's", "team/model", "a:b", "")
        ),
        ({**BASE, "tracking": {"experiment": ""}}, r"tracking\.experiment: .*at least 1 character"),
        ({**BASE, "seed": 2**32}, "seed: .*less than or equal to 4294967295"),
        ("a: [", "not valid YAML"),
        ("seed: 1\nname: a\nseed: 2", "the key 'seed' is given twice; remove one.*line 3"),
        ("simulator: {task: two_moons}\nbudget: {hours: 1, hours: 2}", "the key 'hours' is given twice"),
        ({**BASE, "budget": {"simulations": "1.5e0"}}, r"budget\.simulations: .*integer.*got 1\.5"),
        ("- 1\n- 2", "must hold `key: value` lines"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, values))


def test_whole_numbers_may_be_written_as_powers_of_ten(tmp_path: Path) -> None:
    text = "simulator: {task: two_moons, timeout: 1e2}\nbudget: {simulations: 1e4}\nlearner: {pairs: 2.0e+3}\nseed: 1e1"
    config = load_config(write(tmp_path, text), ["acquisition.initial=1e2"])
    assert (config.budget.simulations, config.learner.pairs, config.seed) == (10_000, 2000, 10)
    assert config.acquisition.initial == config.simulator.timeout == 100


def test_what_ray_and_the_learner_can_have_is_taken(tmp_path: Path) -> None:
    for gpus in (0, 0.25, 1, 2.0):
        values = {**resources(gpus=gpus, custom={"licence": 0.5}), "learner": {"gpus": gpus, "hidden": [1]}}
        config = load_config(write(tmp_path, values))
        assert config.simulator.resources.gpus == config.learner.gpus == gpus
    # A bound of a prior may be infinite: it is then none.
    prior = {"distribution": "Normal", "loc": 0, "scale": 1, "low": 0, "high": float("inf")}
    assert load_config(write(tmp_path, {**BASE, "parameters": {"a": prior}})).parameters["a"] == prior


def test_the_configuration_names_all_that_the_learner_knows() -> None:
    # Twice, for the configuration must be read without importing torch.
    assert set(get_args(LearnerConfig.model_fields["source"].annotation)) == set(SOURCES)
    assert set(EMBEDDINGS) == set(EMBEDDING_KINDS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("override", ["budget", "=3", "name.x=3", "budget.simulations=[", "name=2024-13-45"])
def test_malformed_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, {**BASE, "name": "n"}), [override])


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sim.py").write_text("def f(theta):\n    return theta\n")
    (tmp_path / "x.csv").write_text("t,b,a\n0,1,3\n1,2,4\n")
    values = {
        "simulator": {"function": "sim.py:f"},
        "parameters": {"p": {"distribution": "Normal", "loc": 0, "scale": 1}},
        "observation": {"file": "x.csv", "columns": ["a", "b"], "index": "t"},
        "budget": {"simulations": 10},
    }
    problem = resolve(load_config(write(tmp_path, values)), tmp_path)
    assert problem.spec.function == f"{tmp_path / 'sim.py'}:f"
    assert problem.names == ("p",)
    assert problem.observation is not None
    assert problem.observation.x.tolist() == [3, 4, 1, 2]
    assert problem.observation.series == ("a", "b")


def test_an_observation_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_observation(ObservationConfig(file="~/x.csv"), tmp_path / "elsewhere").x.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a\nhello\n", "must hold numbers"),
        ("x.csv", "a\nnan\n", "NaN or infinite"),
        ("x.csv", "b\n1\n", "no column 'a'"),
        ("x.json", "{", "cannot be read"),
        ("x.json", "[]", "empty"),
        (
            "x.json",
            '{"b": 1, "a": 2}',
            "a list of numbers, got an object with b, a; give its values as one list",
        ),
        ("x.txt", "1", r"expected a \.csv"),
        ("x.csv", "a,b,a\n1,2,3\n", "one column 'a' in .*x.csv, got several"),
        ("x.json", "[" * 100_000, "cannot be read"),
        ("x.npy", "", "cannot be read"),
        ("x.npy", "PK\3\4garbage", "cannot be read"),
        ("x.npy", np.array([1 + 2j, 1]), "expected real numbers, got complex128"),
        ("x.npy", np.array(["2020-01-01"], dtype="datetime64[D]"), "expected real numbers, got datetime64"),
        ("x.parquet", pa.table([[1.0], [2.0]], names=["a", "a"]), "x.parquet cannot be read .*Multiple matches"),
        ("x.parquet", pa.table({"a": pa.array([0], pa.timestamp("s"))}), "must hold numbers: got datetime64"),
    ],
)
def test_bad_observations_are_explained(
    tmp_path: Path, name: str, content: str | np.ndarray | pa.Table, message: str
) -> None:
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    else:
        pq.write_table(content, tmp_path / name)
    columns = ["a"] if name.endswith((".csv", ".parquet")) else []
    with pytest.raises(ObservationError, match=message):
        read_observation(ObservationConfig(file=name, columns=columns), tmp_path)
    with pytest.raises(ObservationError, match="no such file"):
        read_observation(ObservationConfig(file="absent.csv"), tmp_path)


def test_a_table_without_names_loses_no_number(tmp_path: Path) -> None:
    for content in ("0.5\n-0.3\n", "0.5,0.5\n1,2\n", "1e3,nan\n1,2\n"):
        (tmp_path / "x.csv").write_text(content)
        with pytest.raises(ObservationError, match="expected the names of the columns in the first line, got the num"):
            read_observation(ObservationConfig(file="x.csv"), tmp_path)
    (tmp_path / "x.csv").write_text("year,1900\n1,2\n")
    assert read_observation(ObservationConfig(file="x.csv"), tmp_path).x.tolist() == [1, 2]
    (tmp_path / "x.csv").write_text("1901,1900\n1,2\n")
    assert read_observation(ObservationConfig(file="x.csv", columns=["1900", "1901"]), tmp_path).x.tolist() == [2, 1]


@pytest.mark.parametrize("name", ["x.json", "x.npy"])
@pytest.mark.parametrize("option", [{"columns": ["a"]}, {"index": "a"}])
def test_a_list_has_no_columns(tmp_path: Path, name: str, option: dict[str, Any]) -> None:
    (tmp_path / "x.json").write_text("[1, 2]")
    np.save(tmp_path / "x.npy", np.ones(2))
    assert len(read_observation(ObservationConfig(file=name), tmp_path).x) == 2
    with pytest.raises(ObservationError, match=rf"{name} is a list of numbers and has no columns; remove `columns`"):
        read_observation(ObservationConfig(file=name, **option), tmp_path)


@pytest.mark.parametrize("x", [[1j, 0.0], np.zeros(2, dtype="datetime64[D]"), ["one", "two"], [[1], []]])
def test_an_observation_that_is_no_real_numbers_is_refused(x: object) -> None:
    with pytest.raises(ObservationError, match="the observation in `observation` cannot be read as numbers"):
        Campaign("two_moons", observation=x)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"simulator": {}}, ConfigError, "exactly one of `function`, `task` and `command`"),
        ({"simulator": {"function": "math:sqrt"}}, ConfigError, "exactly one of `parameters` and `prior`"),
        ({"simulator": {"function": "math:sqrt"}, "prior": "prior.py:scalar"}, PriorError, "event_shape"),
        ({"simulator": {"function": "math:sqrt"}, "prior": "prior.py:text"}, PriorError, "Distribution"),
        ({"simulator": {"function": "math:sqrt"}, "prior": "absent.py:p"}, SimulatorError, "absent.py"),
        ({"reference": {"nobody": {"mean": 0, "std": 1}}}, ConfigError, "no parameter nobody"),
        (
            {
                "simulator": {"function": "math:sqrt"},
                "prior": "prior.py:mixture",
                "acquisition": {"method": "sobol"},
            },
            ConfigError,
            "quantiles are known",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, values: dict[str, object], error: type[Exception], message: str
) -> None:
    (tmp_path / "prior.py").write_text(
        "import torch\nfrom torch.distributions import *\nscalar = Normal(0.0, 1.0)\ntext = 'a prior'\n"
        "modes = Independent(Normal(torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), 1.0), 1)\n"
        "mixture = MixtureSameFamily(Categorical(torch.ones(2)), modes)\n"
    )
    with pytest.raises(error, match=message):
        resolve(load_config(write(tmp_path, {**BASE, **values})), tmp_path)


def test_what_of_the_learner_is_ones_own_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\n"
        "class Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(2, 3)\n\n"
        "class Sized(torch.nn.Module):\n    def __init__(self, width):\n        super().__init__()\n\n"
        "def distance(x, x_o):\n    return (x - x_o).abs().sum(-1)\n\n"
        "number = 3\n\n"
        "def text():\n    return 'no module'\n"
    )

    def parts(**learner: object) -> LearnerParts:
        return resolve(load_config(write(tmp_path, {**BASE, "learner": learner})), tmp_path).learner

    assert parts(embedding="none") == parts() == LearnerParts()
    assert parts(embedding="conv1d", embedding_channels=2).embedding == "conv1d"
    own = parts(source="cost", distance="own.py:distance", embedding="own.py:Net")
    assert own.distance is not None
    assert own.distance(torch.ones(4, 2), torch.zeros(4, 2)).tolist() == [2.0] * 4
    assert isinstance(own.embedding, torch.nn.Linear)
    with pytest.raises(ConfigError, match=r"learner.embedding: expected own.py:Sized to be a class without arguments"):
        parts(embedding="own.py:Sized")
    with pytest.raises(ConfigError, match=r"learner.embedding: expected own.py:text to be a torch.nn.Module, got str"):
        parts(embedding="own.py:text")
    with pytest.raises(ConfigError, match=r"learner.distance: expected own.py:number to be a function"):
        parts(source="cost", distance="own.py:number")
    with pytest.raises(SimulatorError, match="has no 'distanc'; did you mean 'distance'"):
        parts(source="cost", distance="own.py:distanc")


def test_the_learner_is_made_as_configured() -> None:
    options = learner_options(LearnerConfig(compiled=True, members=["affine"], bank=9, posterior_epochs=3), 2, "cpu")
    assert options.compiled
    assert options.surrogate.members == ("affine",)
    assert (options.bank, options.distillation.epochs, options.threads, options.device) == (9, 3, 2, "cpu")
