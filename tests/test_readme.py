"""Every code block of the README and the docs runs, on a real federation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.deployment import Deployment, deployment
from tests.support.documents import ROOT, blocks, run_document

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("federation")) as running:
        yield running


QUICK = ("README.md", "CONTRIBUTING.md", "docs/apps.md", "docs/strategies.md", "docs/mods.md")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_every_code_block_runs(
    name: str,
    federation: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDQ_REDIS_URL", federation.url)
    # Where a page starts services of its own, their caches are its own too.
    monkeypatch.setenv("HOME", str(tmp_path))
    count = run_document(ROOT / name, tmp_path, {}, short=not request.config.getoption("--all"))
    assert count == len(blocks(ROOT / name))


@pytest.mark.parametrize("name", NAMES)
def test_every_link_to_a_file_leads_to_one(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


def test_every_test_that_a_guarantee_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_every_file_that_a_guarantee_names_exists() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:apps|relay|node|cli)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_shows_the_parts_of_the_repository() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in ("apps/", "relay/", "node/", "cli/", "scripts/", "tests/", "examples/", "docs/"):
        assert f"`{folder}`" in text
        assert (ROOT / folder).is_dir()
