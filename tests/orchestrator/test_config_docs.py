"""docs/configuration.md: it is what the models say, and they say it all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from orchestrator.config import CampaignConfig
from orchestrator.config_docs import EXAMPLE, FIXED, markdown, sections
from orchestrator.config_reading import load_config, validate_config
from orchestrator.problem import resolve

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_FILE = ROOT / "examples" / "hudson_bay.yaml"


def test_the_committed_page_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown(), "run `make docs`"


@pytest.mark.parametrize("model", [pytest.param(m, id=m.__name__) for _, m in sections(CampaignConfig)])
def test_every_model_and_field_says_what_it_is(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_every_field_is_on_the_page() -> None:
    page = markdown()
    for key, model in sections(CampaignConfig):
        section = page.split(f"## `{key}`\n" if key else "## All keys\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, flags=re.M) == list(model.model_fields)


def test_links_lead_to_headings() -> None:
    page = markdown()
    headings = re.findall(r"^## (.+)$", page, flags=re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors


def test_the_example_is_valid_and_agrees_with_the_file() -> None:
    values = yaml.safe_load(EXAMPLE)
    validate_config(values, "the example")
    file = yaml.safe_load(EXAMPLE_FILE.read_text())
    parameters = values.pop("parameters")
    assert parameters.items() <= file["parameters"].items()
    assert values == {key: file[key] for key in values}


def test_what_must_stay_is_what_a_run_directory_compares() -> None:
    config = load_config(EXAMPLE_FILE)
    identity = resolve(config, EXAMPLE_FILE.parent).identity(config)
    assert FIXED.keys() == identity.keys()
