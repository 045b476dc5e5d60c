"""What the scripts of the pages do, in a Chromium without a screen; skipped where there is none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.test_compare import vqa_examples, written
from tests.pages.test_pages import regions, store
from tests.pages.test_run_page import asked, run_folder
from vinvl.compare import main as compare
from vinvl.pages.pages import report_regions
from vinvl.pages.run_folder import FinishedRun
from vinvl.pages.run_page import report_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
WIDE, PHONE = 1200, 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


def opened(browser: Any, path: Path, width: int = WIDE) -> Any:
    """The page, which asks for nothing beside itself, has no mistake in its scripts, and fits the window."""
    page, wrong = browser.new_page(viewport={"width": width, "height": 900}), list[str]()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith("data:") else None)
    page.goto(path.as_uri())
    assert wrong == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return page


def visible(page: Any, selector: str) -> int:
    return sum(one.is_visible() for one in page.query_selector_all(selector))


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_examples_of_a_run_are_chosen_by_outcome_type_and_words(browser: Any, tmp_path: Path, width: int) -> None:
    examples = [*asked(7), asked(8)[7]._replace(kind="other", text="What colour?")]
    run = run_folder(tmp_path / "run", "vqa", examples)
    report_run(FinishedRun.of(str(run), tmp_path), tmp_path / "page.html", max_pixels=100)
    page = opened(browser, tmp_path / "page.html", width)
    assert visible(page, "figure") == 8
    page.select_option("[data-column=outcome]", label="wrong (6)")
    assert visible(page, "figure") == 6 and page.inner_text("#count") == "6 examples"
    page.select_option("[data-column=kind]", label="other (1)")
    assert visible(page, "figure") == 1
    page.select_option("[data-column=kind]", "")
    page.fill("#words", "WHAT colour")
    assert visible(page, "figure") == 1 and page.inner_text("figure:not(.hidden) .asked") == "What colour?"


def test_boxes_are_chosen_by_score_and_pointed_at_from_the_list(browser: Any, tmp_path: Path) -> None:
    many = regions("a", 30, (200, 150))
    many.class_scores[:] = [1 - number / 30 for number in range(30)]
    report_regions(store(tmp_path, many), tmp_path / "page.html")
    page = opened(browser, tmp_path / "page.html")
    assert visible(page, "rect") == 30 and 0 < visible(page, ".name") < 30
    lists = "document.querySelector('.scrolls')"
    assert page.evaluate(f"{lists}.scrollHeight > {lists}.clientHeight")
    page.hover("tr[data-region='1']")
    assert "on" in page.get_attribute("rect[data-region='1']", "class") and page.is_visible(".name[data-region='1']")
    page.fill(".least", "0.5")
    assert visible(page, "rect") == visible(page, "tr[data-region]") == 16 and page.inner_text(".least + b") == "0.50"
    page.hover("h1")
    page.uncheck(".named")
    assert visible(page, ".name") == 0


def test_examples_of_a_comparison_are_chosen_by_who_is_better(browser: Any, tmp_path: Path) -> None:
    first, second = vqa_examples(1, 0.4), vqa_examples(2)
    paths = [str(written(tmp_path / f"{name}.parquet", one)) for name, one in (("a", first), ("b", second))]
    assert compare([*paths, "--output", str(tmp_path), "--draws", "100"]) == 0
    page = opened(browser, tmp_path / "compare.html")
    better = [sum(one.score > other.score for one, other in zip(*pair, strict=True)) for pair in
              ((first, second), (second, first))]  # fmt: skip
    for name, count in zip("AB", better, strict=True):
        page.select_option("[data-column=better]", label=f"{name} ({count})")
        assert page.inner_text("#count") == f"{count} examples" and visible(page, "figure") == min(count, 60)
