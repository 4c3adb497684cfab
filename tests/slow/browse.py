"""See the tracked runs and the page of `pipeline.serve` in a real browser, headless Chromium, as a user does.

python tests/slow/browse.py sweep=<run id>      # docs/ui/sweep.png, from the store of this clone
python tests/slow/browse.py recipe=accurate     # docs/ui/drawing*.png, from a model of this clone
python tests/slow/browse.py views=<folder>      # the pictures of docs/ui/README.md into a folder, from the store
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

# Scroll the tables of a comparison to their ends, which hold no more rows than they show, and the page to a metric.
SCROLL = """
const tables = [...document.querySelectorAll('.ReactVirtualized__Grid')]
tables.filter(e => getComputedStyle(e).overflowY !== 'hidden').forEach(e => e.scrollTo(0, e.scrollHeight))
const shown = tables.flatMap(e => [...e.querySelectorAll('a')]).filter(e => e.textContent === 'val_accuracy')
shown.forEach(e => e.scrollIntoView({block: 'center'}))
return shown.length > 0
"""
# All at once: an answer to the next stroke replaces what is shown. Nothing, while one is on its way.
SHOWN = """
if (document.getElementById('found').dataset.answers != asked) return null
return [...document.querySelectorAll('figure')].map(figure => [
  figure.querySelector('b').textContent, [...figure.querySelectorAll('tr')].map(row => row.cells[2].textContent)])
"""
TO_THE_END = """
const long = [...document.querySelectorAll('*')].filter(e => e.scrollHeight > e.clientHeight)
long.forEach(e => e.scrollTo(0, e.scrollHeight))
"""
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds for a page to show what it should, on a busy machine


def installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextmanager
def mlflow_ui(folder: Path) -> Iterator[str]:
    """Plain `mlflow ui` in `folder`, on a free port: its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "-w", "1"]
    server = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: urllib.request.urlopen(f"{address}/health").status == 200, "mlflow ui to answer")
        yield address
    finally:
        server.terminate()
        server.wait()


@contextmanager
def browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,1000",
    ):
        options.add_argument(word)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def draw(driver: WebDriver, digit: str, left: float, hand: str = "round") -> None:
    """Draw a digit of reference/strokes.json on the page of `pipeline.serve`, with the mouse, from `left` (0 to 1)."""
    strokes = json.loads((ROOT / "reference" / "strokes.json").read_text(encoding="utf-8"))[hand][digit]
    page = driver.find_element(By.ID, "page")
    width, height = page.size["width"], page.size["height"]
    size = 0.6 * height
    for stroke in strokes:
        places = [
            (left * width + size * x / 100 - width / 2, size * y / 100 + 0.2 * height - height / 2) for x, y in stroke
        ]
        actions = ActionChains(driver, duration=20)
        actions.move_to_element_with_offset(page, *map(round, places[0])).click_and_hold()
        for x, y in places[1:]:
            actions.move_to_element_with_offset(page, round(x), round(y))
        actions.release().perform()


def shown(driver: WebDriver, count: int) -> list[tuple[str, list[float]]]:
    """What the page shows once it shows `count` digits: of each, the digit and its ten probabilities in percent."""
    found: list[tuple[str, list[str]]] = []

    def all_there() -> bool:
        found[:] = driver.execute_script(SHOWN) or []
        return len(found) == count

    until(all_there, f"{count} digits to be shown")
    return [(digit, [float(one) for one in probabilities]) for digit, probabilities in found]


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for something to hold; refusals of a page or server that is not there yet are waited out."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if holds():
                return
        except (OSError, WebDriverException):
            pass
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.2)


def text(driver: WebDriver) -> str:
    return driver.find_element(By.TAG_NAME, "body").text


def see(driver: WebDriver, *words: str) -> None:
    """Wait until the page shows all these words."""
    for word in words:
        until(lambda word=word: word in text(driver), f"{word!r} on {driver.current_url}")


def picture_shown(driver: WebDriver) -> bool:
    """Whether an image on the page has arrived."""
    script = "return [...document.images].some(image => image.naturalWidth > 200 && image.src.startsWith('blob:'))"
    return bool(driver.execute_script(script))


def click(driver: WebDriver, path: str) -> None:
    """Click the first element at an XPath, once it is there."""
    until(lambda: driver.find_element(By.XPATH, path).click() is None, f"{path} on {driver.current_url}")


def tick(driver: WebDriver, name: str) -> None:
    """Tick a run of the list by its name."""
    row = f"//div[@role='row'][.//*[normalize-space()='{name}']]/@row-id"
    found = driver.execute_script(
        "return document.evaluate(arguments[0], document, null, XPathResult.STRING_TYPE, null).stringValue", row
    )
    click(driver, f"//div[@row-id='{found}']//input[@type='checkbox']")


def walk(
    driver: WebDriver, address: str, parent: Any, children: Sequence[Any], picture: Path | None = None
) -> dict[str, Any]:
    """Go from the list of runs to a sweep, one of its children, its model and a comparison of two: what was seen."""
    experiment = f"{address}/#/experiments/{parent.info.experiment_id}"
    driver.get(f"{experiment}/runs")
    see(driver, "Training runs", parent.info.run_name)
    click(driver, "//button[@data-component-id='mlflow.assistant.chat_panel.close']")
    click(driver, f"//div[@row-id='{parent.info.run_id}']//button[contains(@data-component-id, 'runnamecell')]")
    see(driver, *(child.info.run_name for child in children))
    seen = {"children": {child.info.run_name for child in children if child.info.run_name in text(driver)}}

    driver.get(f"{experiment}/runs/{parent.info.run_id}")
    see(driver, parent.info.run_name, "Child runs", children[0].info.run_name)
    until(lambda: driver.find_element(By.XPATH, "//td[normalize-space()='1']"), "the ranking as a table")
    click(driver, "//*[text()='Show more']")
    if picture:
        driver.save_screenshot(str(picture))
    driver.get(f"{experiment}/runs/{parent.info.run_id}/artifacts/sweep.png")
    until(lambda: picture_shown(driver), "the picture of the sweep")

    child = children[0]
    driver.get(f"{experiment}/runs/{child.info.run_id}/model-metrics")
    see(driver, "speed", "train_accuracy")
    until(lambda: driver.execute_script(TO_THE_END) or "val_accuracy" in text(driver), "the last charts")
    see(driver, f"{child.info.run_name} (val_accuracy)")
    driver.get(f"{experiment}/models/{child.outputs.model_outputs[0].model_id}")
    see(driver, "model", child.info.run_name)

    driver.get(f"{experiment}/runs")
    see(driver, *(child.info.run_name for child in children))
    for one in children[:2]:
        tick(driver, one.info.run_name)
    click(driver, "//*[@data-testid='runs-compare-button']")
    see(driver, "Comparing 2 Runs", "epoch_seconds")
    until(lambda: driver.execute_script(SCROLL), "the validation accuracies")
    return seen | {"compared": text(driver)}


def open_view(driver: WebDriver, address: str, experiment: str, view: str, *words: str, charts: bool = False) -> None:
    """Open a saved view of the runs by its link, and wait until it shows these words."""
    driver.get("about:blank")  # the page reads a view when it is loaded
    mode = "&compareRunsMode=CHART" if charts else ""
    driver.get(f"{address}/#/experiments/{experiment}/runs?viewStateShareKey={view}{mode}")
    see(driver, *words)


def save_drawing(picture: Path, *overrides: str) -> None:
    """Draw a 2, a 5 and a 7 on the page of `pipeline.serve`, called with these overrides, and save what it shows,
    here and on a phone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "pipeline.serve", f"port={port}", *overrides], cwd=ROOT)
    try:
        until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health"), "pipeline.serve")
        with browser() as driver:
            driver.get(f"http://127.0.0.1:{port}/")
            for digit, left in (("2", 0.05), ("5", 0.38), ("7", 0.7)):
                draw(driver, digit, left)
            shown(driver, 3)
            driver.save_screenshot(str(picture))
            phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
            driver.save_screenshot(str(picture.with_stem(f"{picture.stem}_phone")))
    finally:
        server.terminate()
        server.wait()


def save_views(client: Any, folder: Path) -> None:
    """Save what the views Recipes and Sweep and the newest run of a recipe show."""
    experiment = client.get_experiment_by_name("mnist").experiment_id
    recipe = client.search_runs([experiment], "tags.dvc_stage LIKE 'train@%'", max_results=1)[0]
    with mlflow_ui(ROOT) as address, browser() as driver:
        open_view(driver, address, experiment, "recipes", "val_accuracy")
        click(driver, "//button[@data-component-id='mlflow.assistant.chat_panel.close']")
        driver.save_screenshot(str(folder / "recipes.png"))
        for name, view in (("recipes_charts", "recipes"), ("sweep_view", "sweep")):
            open_view(driver, address, experiment, view, "Charts", charts=True)
            time.sleep(5)  # charts are drawn one by one
            driver.save_screenshot(str(folder / f"{name}.png"))
        driver.get(f"{address}/#/experiments/{experiment}/runs/{recipe.info.run_id}")
        click(driver, "//*[text()='Show more']")
        driver.save_screenshot(str(folder / "run.png"))


def main(argument: str) -> None:
    key, _, value = argument.partition("=")
    if key == "recipe":
        save_drawing(ROOT / "docs" / "ui" / "drawing.png", argument)
        return
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{ROOT / 'mlflow.db'}")
    if key == "views":
        save_views(client, Path(value))
        return
    parent = client.get_run(value)
    query = f"tags.`mlflow.parentRunId` = '{value}'"
    children = client.search_runs([parent.info.experiment_id], query, max_results=9)
    with mlflow_ui(ROOT) as address, browser() as driver:
        walk(driver, address, parent, children, ROOT / "docs" / "ui" / "sweep.png")


if __name__ == "__main__":
    main(sys.argv[1])
