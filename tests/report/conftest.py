"""Invented results folders, their reports, and a headless Chromium to open them in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lrx.report import write
from tests.report import invented
from tests.results.fakes import METHODS, SEEDS, FakeJob

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def jobs_of(name: str, overrides: Sequence[str] = ()) -> list[FakeJob]:
    """In place of ``lrx.launch.sweep_jobs``; knows every scale, and one sweep."""
    if name != "altlora_glue":
        return []
    scale = next((text.removeprefix("scale=") for text in overrides if text.startswith("scale=")), "mini")
    return [FakeJob(method, seed, scale) for method in METHODS for seed in SEEDS]


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with something of everything, and its report."""
    root = tmp_path_factory.mktemp("rich")
    invented.rich(root)
    write(root, jobs_of=jobs_of)
    return root


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 records and their report."""
    root = tmp_path_factory.mktemp("large")
    invented.write(root, invented.many(2000), logs=False)
    write(root, jobs_of=jobs_of)
    return root


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium that ``LRX_CHROMIUM`` names or that is on PATH, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the dev extra's playwright is not installed")
    names = (os.environ.get("LRX_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: install one, or name it in LRX_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a report at an address: ``visit(root, "#/runs")``. At the end, nothing was asked of any network and
    nothing was complained about in the console."""
    opened: list[Any] = []
    heard: list[str] = []

    def call(root: Path, address: str = "#/", **options: Any) -> Page:
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda asked: heard.append(f"request: {asked.url}") if not is_report(asked.url) else None)
        opened.append(context)
        page.goto(f"{(root / 'report.html').as_uri()}{address}")
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    yield call
    for context in opened:
        context.close()
    assert heard == []


def is_report(url: str) -> bool:
    """Whether a request is for the report itself."""
    return url.startswith("file:///") and url.partition("#")[0].endswith("/report.html")
