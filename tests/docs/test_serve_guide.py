"""The guide to serving names every option, field and status that there is."""

from pathlib import Path

import pytest
from typer.main import get_command

from vistoken.cli.main import app as program
from vistoken.serve.app import _REFUSALS
from vistoken.serve.schema import ChatRequest
from vistoken.serve.settings import ServeSettings

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
TEXT = (GUIDES / "serve.md").read_text("utf-8")
ALL = TEXT + (GUIDES / "serve-vllm.md").read_text("utf-8")


def options():
    command = get_command(program).commands["serve"]
    return [option for each in command.params for option in each.opts if option.startswith("--")]


@pytest.mark.parametrize("option", options())
def test_every_option(option):
    assert f"`{option}`" in ALL or f"`{option} " in ALL


@pytest.mark.parametrize("field", ChatRequest.model_fields)
def test_every_field_of_a_request(field):
    assert f"`{field}`" in TEXT


@pytest.mark.parametrize("status", [status for status in _REFUSALS if isinstance(status, int)])
def test_every_refusal(status):
    assert f"| {status} |" in TEXT or status == 415


def test_limits_that_no_option_changes():
    settings = ServeSettings()
    fixed = (
        f"{settings.max_messages} messages and {settings.max_choices} answers (`n`) per request, "
        f"{settings.header_timeout_s:g} s for the headers of a request, "
        f"{settings.body_timeout_s:g} s for its body"
    )
    assert fixed in " ".join(TEXT.split())
