"""What a person sees: the cockpit notebook in JupyterLab, in a real browser. Needs Debian's chromium; `make screens`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium")
SHOTS = Path(os.environ.get("WINDTUNNEL_SHOTS", "out/screens"))
pytestmark = [pytest.mark.screens, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=",
               "--ServerApp.password=", f"--ServerApp.root_dir={ROOT}", "--ServerApp.allow_root=True", "--LabApp.news_url=None"]
    server = subprocess.Popen(command, env={**os.environ, "WINDTUNNEL_FAST": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            if httpx.get(f"{url}/api/status").status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    yield url
    server.terminate()
    server.wait(20)


@pytest.fixture
def page() -> Iterator[Page]:
    assert CHROMIUM, "Debian's chromium is not installed: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser.new_page(viewport={"width": 1500, "height": 2400})
        browser.close()


def run_all(page: Page, lab: str, name: str) -> None:
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def test_cockpit_shows_figures_and_a_knob_flies_again(lab: str, page: Page) -> None:
    run_all(page, lab, "02-tune-admission")
    page.wait_for_selector(".wt-cockpit [role=img][data-rev]", timeout=120_000)
    page.wait_for_function("document.querySelectorAll('.wt-cockpit [role=img][data-rev]').length >= 4", timeout=60_000)
    page.locator(".wt-cockpit").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.locator(".wt-cockpit").first.screenshot(path=SHOTS / "cockpit.png")
    page.screenshot(path=SHOTS / "notebook-02.png")
    drawn = page.locator(".wt-cockpit .main-svg").count()
    assert drawn >= 4, "every figure of the cockpit is drawn"
    label = page.locator(".wt-cockpit [role=img]").first.get_attribute("aria-label")
    assert label and "limit" in label.lower()


def test_first_notebook_shows_card_run_and_figures(lab: str, page: Page) -> None:
    run_all(page, lab, "01-first-simulation")
    page.wait_for_function("document.querySelectorAll('.jp-Notebook svg[role=img], .jp-Notebook .js-plotly-plot').length >= 2", timeout=120_000)
    page.wait_for_timeout(1500)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "notebook-01.png")
    text = page.locator(".jp-Notebook").inner_text()
    assert "19366" in text and "SIMULATED" in text


def test_driving_notebook_shows_badge_stop_and_replay(lab: str, page: Page) -> None:
    run_all(page, lab, "11-drive-real-engines")
    page.wait_for_selector(".wt-live", timeout=120_000)
    page.wait_for_function("document.querySelector('.jp-Notebook').innerText.includes('replay of')", timeout=120_000)
    page.wait_for_timeout(1000)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "notebook-11.png")
    panel = page.locator(".wt-live").first
    assert panel.get_by_role("button", name="STOP").or_(panel.get_by_role("button", name="landed")).count() == 1
    assert "agrees" in page.locator(".jp-Notebook").inner_text()
