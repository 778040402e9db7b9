"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reference
from mlx_pharos.server.chat_schema import ChatRequest
from mlx_pharos.server.completion_schema import CompletionRequest
from mlx_pharos.server.openapi import build_document
from mlx_pharos.server.operation import METRICS_PATHS
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.telemetry.attributes import ERROR_TYPE, OTHER
from mlx_pharos.telemetry.record import CLIENT_GONE, REFUSED_CODES, REJECTED_CODES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", sorted(reference.PAGES))
def test_generated_pages_are_up_to_date(path: str) -> None:
    """A page that comes from the code is what the code says now; `make docs` writes it."""
    assert (ROOT / path).read_text(encoding="utf-8") == reference.PAGES[path]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file of the project."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_on_the_map() -> None:
    """Every page under docs is linked from another page."""
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8"))
        if "://" not in target
    }
    pages = {page for page in PAGES if "docs" in page.relative_to(ROOT).parts}
    assert pages - linked == {ROOT / "docs" / "README.md"}


def test_every_make_target_in_the_docs_exists() -> None:
    """Every `make TARGET` that a page shows is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", text, flags=re.MULTILINE))
        assert {name for pair in shown for name in pair if name} <= targets, page


def test_every_example_of_a_proxy_keeps_the_metrics_in() -> None:
    """To the server a proxy is a client of its own machine: the examples answer for the metrics
    themselves, and say of everything else that they speak for others.
    """
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```nginx\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert any("proxy_pass" in block for block in blocks)
    for block in blocks:
        for path in METRICS_PATHS:
            assert re.search(rf"location = {path}\s+{{ return 403; }}", block), path
        for location in re.findall(r"location [^{]*{([^}]*)}", block):
            forwarded = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
            assert "proxy_pass" not in location or forwarded in location


def test_the_api_page_has_every_field() -> None:
    """Every field that a request may have is on the page of the API, also those that do nothing."""
    text = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    fields = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
    assert {name for name in fields if f"`{name}`" not in text} == set()


def test_the_api_page_has_every_failure_that_is_a_latency_sample() -> None:
    """Of all ends with an error, those whose latency counts at `/v1/metrics` are on the page."""
    text = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| failed: (.*) \| yes", text, flags=re.MULTILINE)
    counted = {*ERROR_TYPE.values} - REFUSED_CODES - REJECTED_CODES - {CLIENT_GONE, OTHER}
    assert counted == set(re.findall(r"`(\w+)`", row))


def test_the_api_page_has_every_route() -> None:
    """The routes of the server's own description are the endpoints of the page."""
    text = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    paths = build_document(ServerOptions(served_model_names=("m",)))["paths"]
    shown = {path.replace("{id}", "{model}") for path in re.findall(r"`[A-Z]+ (/[^`]*)`", text)}
    assert shown - {"/openapi.json"} == set(paths) - {"/openapi.json"}
