"""What a person sees of runs in `mlflow ui`, and of the report to send, in a real browser."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import browse
import pytest
from conftest import run, store
from selenium.webdriver.remote.webdriver import WebDriver

pytestmark = [
    pytest.mark.skipif(not browse.installed(), reason="Chromium and its driver are not installed (.ci/run does)"),
]


@pytest.fixture(scope="module")
def parent(clone) -> str:
    """A sweep of four, beside the two recipes."""
    done = run(
        "python", "-m", "pipeline.train", "-m", "recipe=baseline", "train.epochs=2,4", "seed=5,6", cwd=clone
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [found] = re.findall(r"^sweep .*MLflow run (\w{32})", done.stdout, re.MULTILINE)
    return str(found)


@pytest.fixture(scope="module")
def page(clone, parent) -> Iterator[tuple[WebDriver, str]]:
    with browse.mlflow_ui(clone) as address, browse.browser() as driver:
        yield driver, address


@pytest.mark.sample
def test_a_sweep_is_seen_in_the_browser(clone, parent, page):
    client = store(clone)
    children = client.search_runs(
        [client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=4
    )
    driver, address = page
    seen = browse.walk(driver, address, client.get_run(parent), children)
    assert seen["children"] == {child.info.run_name for child in children}
    first, second = (f"{child.data.metrics['val_accuracy']:.3g}" for child in children[:2])
    assert first in seen["compared"] and second in seen["compared"]


@pytest.mark.sample
def test_the_saved_views_show_the_accuracies(clone, parent, page):
    client, (driver, address) = store(clone), page
    experiment = client.get_run(parent).info.experiment_id
    recipes = client.search_runs([experiment], "tags.dvc_stage LIKE 'train@%'")
    assert len(recipes) == 2
    shown = [f"{found.data.metrics[key]:.3g}" for found in recipes for key in ("test_accuracy", "val_accuracy")]
    browse.open_view(driver, address, experiment, "recipes", "test_accuracy", "test_errors", "val_accuracy", *shown)
    assert "Recipes" in browse.text(driver)


FITS = """
const images = [...document.images]
const shown = images.every(image => image.naturalWidth > 0)
return [document.documentElement.scrollWidth <= innerWidth, images.length, shown]
"""


def test_the_report_fits_a_phone_a_desktop_and_paper(clone):
    page = clone / "results/report.html"
    with browse.browser() as driver:
        for width in (390, 1200):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(page.as_uri())
            fits, count, all_shown = driver.execute_script(FITS)
            assert fits and all_shown and count == page.read_text().count("<img ") >= 5
        background = "return getComputedStyle(document.body).backgroundColor"
        colours = []
        for value in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": value}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            colours.append(driver.execute_script(background))
        assert colours == ["rgb(255, 255, 255)", "rgb(22, 25, 28)"]
        paper = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 6
