"""rq-dashboard, in a real browser, shows the nodes' queues and each message's job while a run goes on."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cli.deployment import NODES, Deployment, deployment, write_project
from tests.support import Service, free_port, wait_until
from tests.support.services import SCRIPTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("federation")) as running:
        yield running


@pytest.fixture
def dashboard(federation: Deployment, tmp_path: Path) -> Iterator[str]:
    """The address of ``fedq dashboard``."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    service = Service(
        "dashboard",
        [str(SCRIPTS / "fedq"), "dashboard", "--port", str(port)],
        log=tmp_path / "dashboard.log",
        environment={"FEDQ_REDIS_URL": federation.url},
    )
    with service:
        service.wait_until(lambda: answers(url), "the dashboard answers")
        yield url
        service.kill()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Driver(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def shows(text: Callable[[], str], *words: str) -> bool:
    return all(word in text() for word in words)


def test_queues_and_finished_jobs_are_there_while_the_run_goes_on(
    federation: Deployment, dashboard: str, browser: object, tmp_path: Path
) -> None:
    client = """
    import time

    @app.train()
    def train(message, context):
        if message.content["config"]["server-round"] > 1:
            time.sleep(float(context.run_config["pause"]))
        arrays = message.content["arrays"]
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
    """
    project = write_project(tmp_path, client=client, config="pause = 30.0")
    submitted = json.loads(federation.fedq("run", project, "--json", "-c", "num-rounds=2", "-c", "timeout=100.0"))
    number = submitted["run_id"]
    wait_until(lambda: "round 1/2" in federation.fedq("log", number), "the first round is over", timeout=30)

    def text() -> str:
        return str(browser.find_element("tag name", "body").text)  # type: ignore[attr-defined]

    browser.get(dashboard)  # type: ignore[attr-defined]
    wait_until(lambda: all(f"\n{name} " in f"\n{text()}" for name in NODES), lambda: f"queues of all nodes: {text()}")
    assert json.loads(federation.fedq("runs", "--json"))[0]["status"] == "running"

    for name in NODES:
        browser.get(f"{dashboard}/0/view/jobs/{name}/finished/8/desc/1")  # type: ignore[attr-defined]
        wait_until(
            partial(shows, text, f"run {number}", "train", name),
            lambda: f"the finished job of a node with its description: {text()}",
        )
    federation.fedq("stop", number)
