"""The picture of the page in the README: the page of `make app` in a headless Chromium, asked about the demo.

    python scripts/app_picture.py [FILE]

After `make demo-images`, `make app ARGS=--more` (once, for captions and scores) and `make test-app` (for Playwright).
"""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo_app import app_arguments
from PIL import Image
from playwright.sync_api import sync_playwright

from vinvl.run.folders import data_root

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "app.png"
EXAMPLE = 4  # of the pictures that the page offers
QUESTION, SENTENCE = "what color is the star?", "a red star and a yellow circle"
COLOURS = 128  # so that the file stays small


def ask(page: Any, address: str) -> None:
    """What a person does."""
    page.goto(address)
    page.locator(".examples button").nth(EXAMPLE - 1).click()
    page.wait_for_selector(".vinvl.regions svg rect")
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".vinvl.answers .ranked")
    if page.get_by_role("button", name="Write a caption").count():
        page.get_by_role("button", name="Write a caption").click()
        page.wait_for_selector(".vinvl.captions .caption")
    if page.get_by_label("Sentence about the picture").count():
        page.get_by_label("Sentence about the picture").fill(SENTENCE)
        page.get_by_role("button", name="Score it").click()
        page.wait_for_selector(".vinvl.scores .ranked")
        page.locator(".vinvl.scores summary").click()  # the picture would be twice as high
    page.locator(".vinvl.answers .why tr[data-region]").first.hover()
    page.wait_for_timeout(500)


def main(output: Path) -> None:
    command = [sys.executable, "-m", "vinvl.app", *app_arguments(Path(data_root()), Path("runs"), more=False)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served, sync_playwright() as playwright:
        assert served.stdout is not None
        address = re.search(r"http://\S+", served.stdout.readline())
        assert address is not None, "what went wrong stands above"
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1180, "height": 900})
        ask(page, address[0])
        page.screenshot(path=output, full_page=True)
        chromium.close()
        served.send_signal(signal.SIGINT)
    with Image.open(output) as shot:
        small = shot.convert("RGB").quantize(COLOURS)
    small.save(output, optimize=True)
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
