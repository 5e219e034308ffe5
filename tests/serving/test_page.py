"""The page in a real browser: what it shows is what the API answered, by mouse and by keyboard, in wide and narrow.

Screenshots are kept in the folder that RETINA_RAY_ARTIFACTS names, else below pytest's temporary folder.
"""

import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from retina_ray.bundle import Bundle
from retina_ray.serving.keys import ApiKey, ApiKeys
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import ImageQuality
from tests.bundles import make_everything
from tests.serving_http import PredictorService, served, wall
from tests.serving_page import UNSURE, answer_to, choose, graded, in_words, loaded, open_page, shown
from tests.serving_photographs import photograph

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 800}
KEY = "rr_of-a-clinic"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="needs Chromium and playwright: apt-get install chromium, pip install playwright",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "eye.jpg").write_bytes(photograph(2, size=600))
    (folder / "other.jpg").write_bytes(photograph(1, size=300))
    (folder / "wall.jpg").write_bytes(wall())
    (folder / "note.txt").write_text("no photograph")
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("RETINA_RAY_ARTIFACTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> Iterator[tuple[PredictorService, str]]:
    service = PredictorService(bundle, draws=True)
    with served(service) as url:
        yield service, url


@pytest.fixture
def service(shared: tuple[PredictorService, str]) -> PredictorService:
    shared[0].refusal, shared[0].altered, shared[0].draws = None, {}, True
    shared[0].asked.clear()
    return shared[0]


@pytest.fixture
def page(browser: Any, service: PredictorService, shared: tuple[PredictorService, str]) -> Iterator[Any]:
    yield from open_page(browser, shared[1], WIDE)


def test_a_photograph_is_shown_with_all_that_was_answered(
    service: PredictorService, page: Any, bundle: Bundle, files: Path, artifacts: Path
) -> None:
    choose(page, files / "eye.jpg")
    graded(page)
    answer = answer_to(service, page)
    cards = page.locator(".task")
    assert cards.count() == 2
    for place, (task, found) in enumerate(answer.tasks.items()):
        text = cards.nth(place).inner_text()
        assert found.grade_name in text
        cleared = "No referral" if answer.image.ok else "Retake first"
        verdict = "A human decides" if found.abstain else "Refer" if found.referable else cleared
        assert cards.nth(place).locator(".verdict").inner_text() == verdict
        assert f"confidence {shown(found.confidence)}" in text
        named = [bundle.manifest.tasks[place].grades[grade] for grade in found.prediction_set]
        words = cards.nth(place).locator(".words").first.inner_text()
        assert words.startswith(f"The true grade is {in_words(named)}: ")
        assert cards.nth(place).locator("tbody tr").count() == len(found.probabilities)
        assert cards.nth(place).locator("tr.likely").count() == len(found.prediction_set)
        fills = cards.nth(place).locator(".fill")
        track = cards.nth(place).locator(".track").first.bounding_box()["width"]
        drawn = [fills.nth(grade).bounding_box()["width"] / track for grade in range(fills.count())]
        assert drawn == pytest.approx([max(share, 1 / track) for share in found.probabilities], abs=0.02), task
    facts = page.locator("#facts").inner_text()
    assert answer.model.name in facts
    assert answer.model.hash in facts
    assert service.asked[0].request_id in facts
    assert service.asked[0].options.explain == "gradcam"
    assert "ms" in facts
    page.screenshot(path=artifacts / "page-1280.png", full_page=True)


def test_the_overlay_fades_and_gives_way(service: PredictorService, page: Any, files: Path) -> None:
    choose(page, files / "eye.jpg")
    graded(page)
    assert page.get_by_alt_text("Photograph of the fundus").is_visible()
    heat = page.locator("#stack img.faded:visible")
    assert heat.count() == 1
    page.focus("#opacity")
    page.keyboard.press("Home")
    assert heat.evaluate("element => getComputedStyle(element).opacity") == "0"
    without = page.locator("#stack").screenshot()
    page.keyboard.press("End")
    assert heat.evaluate("element => getComputedStyle(element).opacity") == "1"
    assert page.locator("#opacity-value").inner_text() == "100\u00a0%"
    under = page.locator("#stack").screenshot()
    assert under != without
    page.get_by_role("radio", name="Age-related macular degeneration").check()
    assert page.locator("#stack").screenshot() not in (under, without)
    page.get_by_label("None").check()
    assert page.locator("#stack img.faded:visible").count() == 0
    assert page.locator("#stack").screenshot() == without


def test_a_grade_in_doubt_is_left_to_a_human(service: PredictorService, page: Any, files: Path) -> None:
    service.altered = {"tasks": {"dr": UNSURE}}
    choose(page, files / "eye.jpg")
    graded(page)
    text = page.locator(".task").inner_text()
    assert page.locator(".verdict").inner_text() == "A human decides"
    assert "The true grade is NPDR I, NPDR II or NPDR III: statements like this are meant to hold for 90\u00a0%" in text
    assert "calls for a referral, NPDR II or worse (below the dashed line): 61\u00a0%" in text
    assert "so a human has to decide" in text


def test_lesions_and_the_enhanced_photograph(
    service: PredictorService, page: Any, files: Path, artifacts: Path
) -> None:
    service.altered = {"tasks": {"dr": UNSURE}, "image": ImageQuality(ok=True)}
    choose(page, files / "eye.jpg")
    graded(page)
    page.select_option("#explain", "gmsv")
    page.get_by_label("Lesions").check()
    page.get_by_label("Enhanced photograph").check()
    page.get_by_role("button", name="Grade", exact=True).click()
    page.wait_for_selector("#findings input")
    asked = service.asked[-1].options
    assert (asked.explain, asked.lesions, asked.enhance, asked.low_resolution) == ("gmsv", True, True, False)
    answer = answer_to(service, page)
    assert answer.lesions is not None
    shown = page.locator("#findings").inner_text()
    for name, code in (("microaneurysms", "MA"), ("haemorrhages", "HM"), ("soft exudates", "SE")):
        assert f"{name}, {100 * answer.lesions[code].area:.1f}\u00a0%" in shown
    assert page.locator("#stack canvas:visible").count() == 3  # of the fourth there is none
    page.screenshot(path=artifacts / "page-1280-lesions.png", full_page=True)
    before = page.locator("#stack").screenshot()
    page.get_by_role("checkbox", name="haemorrhages").uncheck()
    assert page.locator("#stack canvas:visible").count() == 2
    without = page.locator("#stack").screenshot()
    assert without != before
    page.get_by_role("radio", name="Enhanced").check()
    assert page.locator("#stack").screenshot() != without


def test_everything_can_be_done_with_the_keyboard(service: PredictorService, page: Any, files: Path) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate(
                    "getComputedStyle(document.activeElement.matches('.unseen')"
                    " ? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
                )
                assert outline == "solid", f"{selector} does not show that it has the focus"
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    # From now on, so that the browser is told long before a chooser opens: Playwright does not wait until it has heard.
    page.on("filechooser", lambda chooser: None)
    loaded(page)
    tab_to("#file")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(files / "other.jpg")
    graded(page)
    assert page.evaluate("document.activeElement.id") == "results-title"
    page.focus("h1 + p, #file")
    tab_to("#explain")
    page.keyboard.press("ArrowUp")
    tab_to("#lesions")
    page.keyboard.press("Space")
    tab_to("#grade")
    page.keyboard.press("Enter")
    page.wait_for_selector("#findings input")
    assert service.asked[-1].options.lesions
    assert service.asked[-1].options.explain is None
    page.focus("#grade")
    tab_to("#findings input")
    tab_to("#opacity")
    tab_to("summary")
    page.keyboard.press("Enter")
    assert page.locator("#card").is_visible()


def test_dropping_a_photograph(page: Any, files: Path) -> None:
    loaded(page)
    data = list((files / "eye.jpg").read_bytes())
    page.evaluate(
        """data => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(data)], "dropped.jpg"));
          for (const type of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
        }""",
        data,
    )
    graded(page)
    assert "dropped.jpg" in page.locator("#status").inner_text()


def test_the_model_card_is_text(page: Any, bundle: Bundle, artifacts: Path) -> None:
    page.get_by_text("Model card").click()
    card = page.locator("#card")
    assert "It is not a medical device" in card.inner_text()
    assert card.locator("h3", has_text="Calibration").count() == 1
    assert "sall" in card.locator("code").all_inner_texts()
    assert card.locator("table").count() >= 4
    assert "|" not in card.inner_text()
    page.screenshot(path=artifacts / "page-1280-card.png", full_page=True)


def test_a_photograph_that_is_unlike_the_training_images(service: PredictorService, page: Any, files: Path) -> None:
    service.altered = {"image": ImageQuality(ok=False, reason="too dark: 12.0, the limit is 30.0")}
    choose(page, files / "eye.jpg")
    graded(page)
    quality = page.locator("#quality")
    assert "too dark: 12.0" in quality.inner_text()
    assert "poor" in str(quality.get_attribute("class"))
    assert "No referral" not in page.locator("#results").inner_text()


def test_what_cannot_be_graded_is_explained(page: Any, files: Path, artifacts: Path) -> None:
    choose(page, files / "eye.jpg")
    graded(page)
    choose(page, files / "wall.jpg")
    problem = page.get_by_role("alert")
    problem.wait_for()
    text = problem.inner_text()
    assert "shows no fundus" in text
    assert "What to do: Retake: no fundus found" in text
    assert page.evaluate("document.activeElement.id") == "problem"
    assert not page.locator("#results").is_visible()  # those of the photograph before
    page.screenshot(path=artifacts / "page-1280-problem.png", full_page=True)
    choose(page, files / "note.txt")
    page.get_by_text("cannot show this kind of file").wait_for()
    page.get_by_text("The photograph cannot be read").wait_for()
    choose(page, files / "eye.jpg")
    graded(page)
    assert not problem.is_visible()


def test_an_overloaded_service_says_when_to_try_again(service: PredictorService, page: Any, files: Path) -> None:
    service.refusal = RefusedError("overloaded", "32 photographs are being graded", retry_after=3.0)
    choose(page, files / "eye.jpg")
    page.get_by_text("Try again in 3 s.").wait_for()
    service.refusal = None
    page.get_by_role("button", name="Grade", exact=True).click()
    graded(page)


def test_a_service_that_is_gone_is_named_as_such(page: Any, files: Path) -> None:
    loaded(page)
    page.route("**/v1/grade*", lambda route: route.abort())
    choose(page, files / "eye.jpg")
    page.get_by_text("The service cannot be reached").wait_for()


def test_a_narrow_screen_needs_no_scrolling_sideways(
    service: PredictorService, browser: Any, shared: tuple[PredictorService, str], files: Path, artifacts: Path
) -> None:
    for page in open_page(browser, shared[1], NARROW):
        choose(page, files / "eye.jpg")
        graded(page)
        page.get_by_label("Lesions").check()
        page.get_by_role("button", name="Grade", exact=True).click()
        page.wait_for_selector("#findings input")
        page.screenshot(path=artifacts / "page-360.png", full_page=True)
        for width in (360, 320):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_text("Model card").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_model_that_draws_nothing_offers_nothing_to_draw(service: PredictorService, page: Any, files: Path) -> None:
    service.draws = False
    page.reload()
    choose(page, files / "eye.jpg")
    graded(page)
    for control in ("#explain", "#lesions", "#enhance", "#low_resolution", "#layers"):
        assert not page.locator(control).is_visible(), control
    assert page.locator("#stack img").count() == 1  # the photograph itself
    assert service.asked[-1].options.explain is None


def test_a_service_with_keys_asks_for_one(bundle: Bundle, browser: Any, files: Path, artifacts: Path) -> None:
    key = ApiKey(id="clinic", sha256=sha256(KEY.encode()).hexdigest(), per_minute=600, scopes=("grade",))
    service = PredictorService(bundle)
    with served(service, keys=ApiKeys([key])) as url:
        for page in open_page(browser, url, WIDE):
            field = page.get_by_label("API key")
            field.wait_for()
            page.get_by_text("This service asks for an API key.").wait_for()
            page.screenshot(path=artifacts / "page-1280-key.png", full_page=True)
            choose(page, files / "eye.jpg")
            field.fill("rr_wrong")
            field.press("Enter")
            page.get_by_text("names no valid API key").wait_for()
            field.fill(KEY)
            page.get_by_role("button", name="Use key").click()
            graded(page)
            assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
            assert KEY not in page.url
    assert service.asked[-1].key_id == "clinic"


def test_every_control_has_a_name(page: Any, files: Path) -> None:
    choose(page, files / "eye.jpg")
    graded(page)
    page.get_by_label("Lesions").check()
    page.get_by_role("button", name="Grade", exact=True).click()
    page.wait_for_selector("#findings input")
    unnamed = page.evaluate(
        """[...document.querySelectorAll("input, select, button, img, canvas")]
           .filter(e => !(e.labels?.length || e.textContent.trim() || e.alt || e.ariaLabel)).map(e => e.outerHTML)"""
    )
    assert unnamed == []
