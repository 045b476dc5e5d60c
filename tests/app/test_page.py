"""The page as a person uses it, in a real Chromium; nothing is kept, and nothing comes from elsewhere."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import HOSTILE, Looked, Served
from tests.conftest import refusal
from tests.door_runs import call_door
from tests.picture_samples import gradient, save
from tests.predictor.samples import picture_paths

QUESTION = "is the star above the square?"


@pytest.fixture
def wide(chromium, served: Served):
    looked = Looked(chromium, served.address, 1280)
    yield looked
    assert looked.errors == [] and looked.hosts() == {"127.0.0.1"}, (looked.errors, looked.requests)
    looked.page.close()


@pytest.fixture(scope="module")
def picture(folder: Path) -> Path:
    return next(iter(picture_paths(folder).values()))


def test_a_picture_is_given_and_a_question_answered(
    wide: Looked, served: Served, picture: Path, tmp_path: Path
) -> None:
    page = wide.page
    wide.give(picture)
    page.wait_for_selector(".vinvl.regions svg rect")
    boxes, rows = page.locator(".vinvl.regions svg rect"), page.locator(".vinvl.regions tbody tr")
    assert boxes.count() == rows.count() > 3
    assert (
        re.search(r"class \d+", rows.first.inner_text()) and "attribute" in page.locator(".vinvl.regions").inner_text()
    )
    assert served.uploads() == [] or all(path.suffix == ".webp" for path in served.uploads())

    rows.nth(2).hover()
    number = rows.nth(2).get_attribute("data-region")
    assert page.locator("rect.on").get_attribute("data-region") == number
    page.locator(f".vinvl.regions rect[data-region='{number}']").dispatch_event("mouseout", {"bubbles": True})
    page.mouse.move(0, 0)
    assert page.locator(".vinvl.regions .on").count() == 0
    page.locator(".vinvl.regions svg").scroll_into_view_if_needed()
    place = page.locator(".vinvl.regions svg").bounding_box()
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(*middle)
    pointed = page.evaluate("([x, y]) => document.elementFromPoint(x, y).dataset.region", middle)
    assert pointed is not None and page.locator(".vinvl.regions tr.on").get_attribute("data-region") == pointed

    scores = sorted(float(one.get_attribute("data-score")) for one in rows.all())
    least = (np.floor(scores[len(scores) // 2] / 0.05) + 1) * 0.05
    page.locator(".least").fill(f"{least:.2f}")
    assert rows.locator("visible=true").count() == sum(score >= least for score in scores) < len(scores)
    assert boxes.locator("visible=true").count() == rows.locator("visible=true").count()

    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("Question").press("Enter")
    page.wait_for_selector(".vinvl.answers .ranked")
    cards = page.locator(".vinvl.answers .card")
    assert cards.count() == 2  # side by side
    left, right = (cards.nth(number).bounding_box() for number in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    texts = cards.first.locator(".ranked").first.locator("tr").all_inner_texts()
    assert len(texts) == 3 and all(re.search(r"(yes|no|2)\s+\d+\.\d %$", text) for text in texts)  # all that it knows
    assert "Attention rollout" in cards.first.inner_text()
    shares = [float(one) for one in re.findall(r"(\d+) %", cards.first.locator(".why p").inner_text())]
    assert len(shares) == 3 and abs(sum(shares) - 100) <= 2
    reason = cards.first.locator(".why tr[data-region]").first
    reason.hover()
    assert (
        cards.first.locator("rect.on").first.get_attribute("data-region") in reason.get_attribute("data-region").split()
    )
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == 1280 and len(set(shot.resize((64, 64)).getdata())) > 100


def test_captions_and_scores(wide: Looked, picture: Path) -> None:
    page = wide.page
    page.get_by_role("button", name="Write a caption").click()
    page.wait_for_selector("text=Give a picture first.")
    wide.give(picture)
    page.wait_for_selector(".vinvl.regions svg rect")
    page.get_by_role("button", name="Write a caption").click()
    page.wait_for_selector(".caption")
    assert page.locator(".caption").first.inner_text().strip()
    page.get_by_label("Sentence about the picture").fill("a red circle")
    page.get_by_role("button", name="Score it").click()
    page.wait_for_selector(".vinvl.scores .ranked")
    assert re.search(r"belongs to the picture\s+\d+\.\d %", page.locator(".vinvl.scores .ranked").first.inner_text())
    assert page.locator(".vinvl.scores .why svg rect").count() > 3
    page.get_by_label("Sentence about the picture").fill("  ")
    page.get_by_role("button", name="Score it").click()
    page.wait_for_selector("text=The text is blank: give a text.")


def strange_files(folder: Path) -> dict[Path, str]:
    """Files that are no pictures to look at, with what is said of them."""
    broken = save(folder / "cut.png", gradient(300, 200))
    broken.write_bytes(broken.read_bytes()[:400])
    (folder / "empty.jpg").touch()
    (folder / "text.txt").write_text("no picture")
    (folder / "large.jpg").write_bytes(os.urandom(3 * 2**20))
    return {
        broken: "cut.png is cut off or damaged",
        folder / "empty.jpg": "empty",
        folder / "text.txt": "text.txt is not a picture of a known kind",
        save(
            folder / "many pixels.png", Image.new("L", (1200, 900))
        ): "has 1,200 × 900 pixels, and max_pixels is 1,000,000",
        folder / "large.jpg": "exceed the maximum allowed size of 2.0 M",
    }


def test_what_is_no_picture_gets_a_sentence_and_nothing_is_kept(
    wide: Looked, served: Served, picture: Path, tmp_path: Path
) -> None:
    before = set(served.uploads())
    for file, sentence in strange_files(tmp_path).items():
        wide.give(file)
        wide.page.wait_for_selector(f"text={sentence}")
        assert str(served.temporary) not in wide.page.inner_text("body")
    for file in (
        save(tmp_path / "thin.png", gradient(900, 2)),
        save(tmp_path / "grey.png", Image.fromarray(np.full((50, 60), 40_000, np.uint16))),
        save(tmp_path / "film.gif", gradient(90, 60), save_all=True, append_images=[gradient(90, 60)]),
        save(tmp_path / "print.jpg", gradient(90, 60).convert("CMYK")),
        picture,
    ):
        wide.give(file)
        wide.page.wait_for_selector(f"text={file.name}: ")
    assert set(served.uploads()) == before


def test_examples_are_pictures_too_and_a_phone_shows_everything(
    chromium, served: Served, folder: Path, tmp_path: Path
) -> None:
    looked = Looked(chromium, served.address, 390)
    page = looked.page
    page.locator(".examples button").nth(2).click()
    page.wait_for_selector(".vinvl.regions svg rect")
    assert (
        sorted(picture_paths(folder))[2] in page.locator(".vinvl.regions").inner_text()
        or page.locator(".examples button").count() == 3
    )
    page.get_by_label("Question").fill(QUESTION * 8)
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".vinvl.answers .ranked")
    page.locator(".vinvl.answers tr[data-region]").first.focus()
    assert page.locator(".vinvl.answers rect.on").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert looked.errors == [] and looked.hosts() == {"127.0.0.1"}
    page.close()


def test_two_pictures_hostile_names_and_the_end(chromium, statements: Served, folder: Path, tmp_path: Path) -> None:
    looked = Looked(chromium, statements.address, 390)
    page = looked.page
    page.on("dialog", lambda dialog: looked.errors.append(f"a script ran: {dialog.message}"))
    pictures = list(picture_paths(folder).values())
    hostile = tmp_path / "<b>${1} long name long name long name long name.png"
    hostile.write_bytes(pictures[0].read_bytes())
    page.get_by_label("Sentence about both pictures").fill("both are red")
    looked.give(hostile)
    page.wait_for_selector(".vinvl.regions svg rect")
    page.get_by_role("button", name="Score it").click()
    page.wait_for_selector("text=judges statements about two pictures: give the second one too.")
    page.locator("input[type=file]").nth(1).set_input_files(pictures[1])
    page.wait_for_function("document.querySelectorAll('.vinvl.regions').length == 2")
    page.get_by_role("button", name="Score it").click()
    page.wait_for_selector("text=true of both pictures")
    assert page.locator(".vinvl.scores .why svg").count() == 2
    assert page.locator("img[src=x]").count() == 0 and page.locator("td.tag").first.inner_text().startswith(HOSTILE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert looked.errors == [] and looked.hosts() == {"127.0.0.1"}
    page.close()
    assert statements.uploads() == []
    assert statements.end() == 130 and list(statements.temporary.glob("vinvl-app-*")) == []
    assert list((statements.folder / "cwd").iterdir()) == [] and "Traceback" not in statements.printed()
    assert statements.printed().rstrip().endswith("Stopped as asked to.")


def test_a_port_that_is_taken_is_refused(
    served: Served, folder: Path, own_runs: dict[str, Path], demo_data: Path
) -> None:
    port = served.address.rstrip("/").rpartition(":")[2]
    result = call_door(
        folder, demo_data, "app", f"model={own_runs['vqa']}", f"detector={folder / 'detector.pth'}", f"port={port}"
    )
    assert f"No page can be served at host=127.0.0.1 port={port}" in refusal(result)
