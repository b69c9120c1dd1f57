"""The report in headless Chromium: every test also fails on a console message and on any request (see ``visit``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from lrx.report import write
from lrx.results.record import read_folder
from tests.report import invented
from tests.report.conftest import jobs_of
from tests.results.fakes import FakeJob, record_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

Visit = Callable[..., "Page"]
SWEEP = "#/sweep/altlora_glue"
RUN = "#/run/glue-lora-minilm-mini-s0"
ADDRESSES = ["#/", SWEEP, "#/runs", "#/runs?scale=mini", RUN, "#/run/glue-lora-minilm-mini-s97", "#/run/none"]
SCORES = "#altlora_glue-mini-scores"


def column(page: Page, table: str, number: int) -> list[str]:
    """The words in a column of a table as it is shown, their details left out."""
    cells = page.locator(f"{table} tbody tr td:nth-child({number})")
    return [text.split()[0] for text in cells.all_inner_texts()]


def sorted_as(page: Page, table: str, words: str, direction: str) -> None:
    """Wait until the column is sorted so; DataTables sorts a moment after it was asked to."""
    page.locator(f"{table} th[aria-sort={direction}]", has_text=words).wait_for()


def focused(page: Page) -> str:
    """The start tag of what has the focus, and the words of a link or button."""
    return page.evaluate(
        "(e => e.cloneNode(false).outerHTML + (['A', 'BUTTON'].includes(e.tagName) ? e.textContent : ''))"
        "(document.activeElement)"
    )


def tab_to(page: Page, words: str, limit: int = 40) -> None:
    """Press Tab until what has the focus holds ``words``."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        if words in focused(page):
            return
    raise AssertionError(f"{words!r} is not reached with {limit} times Tab")


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_page_opens_in_silence_and_no_page_scrolls_sideways_on_a_phone(
    visit: Visit, rich: Path, address: str
) -> None:
    page = visit(rich, address, viewport={"width": 360, "height": 740})
    assert page.locator("main h1:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for canvas in page.locator("canvas:visible").all():
        painted = "node => node.getContext('2d').getImageData(0, 0, node.width, node.height).data.some(Boolean)"
        assert canvas.evaluate(painted)


def test_sorting_by_pointer_and_by_keyboard(visit: Visit, rich: Path) -> None:
    page = visit(rich, SWEEP)
    head = page.locator(f"{SCORES} th", has_text="avg")
    before = column(page, SCORES, 1)
    head.click()
    sorted_as(page, SCORES, "avg", "descending")
    numbers = [float(text) for text in column(page, SCORES, 6)]
    assert numbers == sorted(numbers, reverse=True)
    head.locator("[role=button]").focus()
    page.keyboard.press("Enter")
    sorted_as(page, SCORES, "avg", "ascending")
    assert [float(text) for text in column(page, SCORES, 6)] == sorted(numbers)
    page.keyboard.press("Space")  # the third time gives the paper's order back
    page.locator(f"{SCORES} th[aria-sort]").wait_for(state="detached")
    assert column(page, SCORES, 1) == before


def test_large_numbers_are_sorted_as_numbers(visit: Visit, rich: Path) -> None:
    page = visit(rich, SWEEP)
    page.locator("#altlora_glue-mini-cost th", has_text="trainable parameters").click()
    sorted_as(page, "#altlora_glue-mini-cost", "trainable parameters", "descending")
    assert column(page, "#altlora_glue-mini-cost", 2)[0] == "22,713,602"
    assert column(page, "#altlora_glue-mini-cost", 2)[-1] == "1,154"


def test_filtering_the_rows_of_a_table(visit: Visit, rich: Path) -> None:
    page = visit(rich, SWEEP)
    field = page.get_by_label("Filter rows of: Ours, scale mini")
    field.fill("altlora")
    assert column(page, SCORES, 1) == ["AltLoRA", "AltLoRA+"]
    field.fill("<img src=x onerror=1>")
    assert "no row holds these words" in page.locator(SCORES).inner_text()
    field.fill("")
    assert len(column(page, SCORES, 1)) == 5


def test_runs_are_filtered_by_every_field_and_the_address_keeps_it(visit: Visit, rich: Path) -> None:
    records, _ = read_folder(rich / "records")
    page = visit(rich, "#/runs")
    for label, value, expected in (
        ("status", "failed", [r for r in records if r.status == "failed"]),
        ("method", "altlora", [r for r in records if r.status == "failed" and r.method == "altlora"]),
    ):
        page.locator(f"#filters [name={label}]").select_option(value)
        assert page.locator("#run-count").inner_text().startswith(f"{len(expected)} of ")
        assert f"{label}={value}" in page.url
    page.get_by_role("button", name="clear").click()
    assert page.url.endswith("#/runs")
    page.locator("#filters [name=text]").fill("SHAPES cannot")
    multiplied = [r for r in records if "shapes cannot" in r.message]
    assert page.locator("#run-count").inner_text().startswith(f"{len(multiplied)} of ")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#filters [name=text]").input_value() == "SHAPES cannot"
    assert page.locator("#run-count").inner_text().startswith(f"{len(multiplied)} of ")


def test_files_that_could_not_be_read_are_one_step_away(visit: Visit, rich: Path) -> None:
    page = visit(rich)
    page.get_by_role("link", name="2 files among the records could not be read").click()
    page.locator("#problems li", has_text="schema 99 is newer").wait_for()


def test_scores_of_two_scales_never_share_a_column(visit: Visit, rich: Path) -> None:
    page = visit(rich, "#/runs?method=altlora")
    heads = page.locator("#run-table th").all_inner_texts()
    assert not any("accuracy" in head or "step" in head for head in heads)
    assert "Choose a scale" in page.locator("#run-count").inner_text()
    page.locator("#scale-choices label", has_text="smoke").click()
    heads = page.locator("#run-table th").all_inner_texts()
    assert "sentiment accuracy" in heads
    assert "scale" not in heads
    assert all("-smoke-" in text for text in page.locator("#run-table td.id").all_inner_texts())


def test_from_a_claim_to_its_runs_and_back(visit: Visit, rich: Path) -> None:
    page = visit(rich)
    page.locator("#papers a").first.click()
    assert page.locator("h1:visible").inner_text() == "AltLoRA on GLUE"
    page.locator("#altlora_glue-mini-runs a", has_text="failed").click()
    page.wait_for_selector("#page-run h1")
    words = page.locator("#page-run").inner_text()
    assert "cannot be multiplied" in words
    assert "target_modules" in words
    assert "query, value" in words
    page.go_back()
    page.wait_for_selector(SCORES)


def test_a_run_s_page_holds_its_whole_configuration_environment_and_files(visit: Visit, rich: Path) -> None:
    page = visit(rich, RUN)
    facts = dict(
        zip(page.locator("#page-run dt").all_inner_texts(), page.locator("#page-run dd").all_inner_texts(), strict=True)
    )
    assert facts["rank"] == "8"
    assert facts["precision"] == "32-true"
    assert facts["fingerprint"] == "fp-lora-mini-0"
    assert facts["torch"] == "2.9"
    assert facts["gpu"] == "none"
    assert facts["trainable parameters"] == "148,610"
    link = page.locator("#page-run .files a", has_text="sentiment/metrics.jsonl")
    assert (rich / str(link.get_attribute("href"))).is_file()
    titles = page.locator("#page-run .plot h3").all_inner_texts()
    assert titles[:4] == ["Evaluations", "Training", "Ranks of the update", "Spectrum of the update"]


def test_a_run_with_a_strange_name_has_an_address(visit: Visit, tmp_path: Path) -> None:
    record = record_of(FakeJob("lora", 0))
    record.run_id = "a b%2Fc?d#e&ü'\""
    invented.write(tmp_path, [record], logs=False)
    write(tmp_path, jobs_of=jobs_of)
    page = visit(tmp_path, f"#/run/{quote(record.run_id, safe='')}")
    assert page.locator("#page-run h1").inner_text() == record.run_id
    page = visit(tmp_path, "#/runs")
    page.locator("#run-table td.id a").click()
    page.wait_for_selector("#page-run h1:visible")
    assert page.locator("#page-run h1").inner_text() == record.run_id


def test_an_address_of_nothing_says_so(visit: Visit, rich: Path) -> None:
    assert "no run called <b>x</b>" in visit(rich, "#/run/<b>x</b>".replace("/b", "%2Fb")).locator("main").inner_text()
    assert "no sweep called %zz" in visit(rich, "#/sweep/%zz").locator("main").inner_text()


def test_plots_have_a_legend_selectors_and_their_numbers_as_a_table(visit: Visit, rich: Path) -> None:
    page = visit(rich, SWEEP)
    plot = page.locator(".plot", has_text="Score against cost").first
    button = plot.get_by_role("button", name="AltLoRA", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert plot.get_by_role("button", name="AltLoRA", exact=True).get_attribute("aria-pressed") == "false"
    assert "AltLoRA" in focused(page)
    plot.locator("summary").click()
    plot.locator("select").nth(1).select_option("1")
    assert "median step (ms)" in plot.locator("details thead").inner_text()
    cost = page.locator("#altlora_glue-mini-cost tbody tr", has_text="AltLoRA+").locator("td").nth(2).inner_text()
    assert cost.split()[0] in plot.locator("details tbody").inner_text()


def test_dark_by_the_system_and_by_the_button(visit: Visit, rich: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert visit(rich).evaluate(background) == "rgb(253, 253, 251)"
    page = visit(rich, SWEEP, color_scheme="dark")
    assert page.evaluate(background) == "rgb(22, 24, 27)"
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "light"
    assert page.evaluate(background) == "rgb(253, 253, 251)"
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(background) == "rgb(253, 253, 251)"
    page.locator("#theme").click()
    assert page.evaluate(background) == "rgb(22, 24, 27)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(visit: Visit, rich: Path, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 for every colour that words have."""
    page = visit(rich, color_scheme=scheme)
    contrast = """name => {
      const probe = document.createElement('i');
      document.body.append(probe);
      const light = (value) => {
        probe.style.color = value;
        const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
        const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
      };
      const pair = [light(`var(${name})`), light('var(--paper)')];
      probe.remove();
      return Math.max(...pair) / Math.min(...pair);
    }"""
    for name in ("--ink", "--muted", "--accent", "--good", "--bad", "--open"):
        assert page.evaluate(contrast, name) >= 4.5, name


def test_with_the_keyboard_alone(visit: Visit, rich: Path) -> None:
    page = visit(rich)
    page.keyboard.press("Tab")
    assert "Skip to the content" in focused(page)
    assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert focused(page).startswith("<main")
    tab_to(page, "status=failed")
    outline = (
        "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    )
    assert page.evaluate(outline) == "solid3px"
    page.keyboard.press("Enter")
    page.wait_for_selector("#run-table")
    assert "status=failed" in page.url
    tab_to(page, 'value=""')  # the scales: one stop, arrows choose
    page.keyboard.press("ArrowRight")
    assert "scale=smoke" in page.url
    page.keyboard.press("ArrowRight")
    assert "scale=mini" in page.url
    tab_to(page, "dt-column-order")
    page.keyboard.press("Enter")
    page.locator("#run-table th[aria-sort]").wait_for()
    tab_to(page, "#/run/")
    page.keyboard.press("Enter")
    page.wait_for_selector("#page-run h1:visible")
    assert "failed" in page.locator("#page-run").inner_text()


def test_what_scrolls_can_be_reached_and_is_named(visit: Visit, rich: Path) -> None:
    for address in (SWEEP, RUN, "#/runs"):
        page = visit(rich, address)
        for place in page.locator(".scroll:visible").all():
            assert place.get_attribute("tabindex") == "0"
            assert place.get_attribute("role") == "region"
            assert place.get_attribute("aria-label") or place.get_attribute("aria-labelledby")


def test_hostile_text_stays_text(visit: Visit, rich: Path) -> None:
    page = visit(rich, "#/runs?scale=mini")
    page.locator("#filters [name=text]").fill("window.broken")
    assert page.locator("#run-count").inner_text().startswith("1 of ")
    assert "<img src=x" in page.locator("#run-table").inner_text()
    for head in page.locator("#run-table .dt-column-order").all():
        head.click()
    page.locator("#run-table td.id a").click()
    page.wait_for_selector("#page-run h1:visible")
    shown = page.locator("#page-run").inner_text()
    assert shown.count(invented.HOSTILE) >= 8  # message, model, data, part, metric, keys and values
    assert page.evaluate("typeof window.broken") == "undefined"
    assert page.locator("img, iframe, object").count() == 0


def test_hostile_names_of_files_lead_to_no_scheme(visit: Visit, tmp_path: Path) -> None:
    record = record_of(FakeJob("lora", 0))
    record.run_id = "javascript:window.broken=1"
    invented.write(tmp_path, [record])
    write(tmp_path, jobs_of=jobs_of)
    page = visit(tmp_path, f"#/run/{quote(record.run_id, safe='')}")
    links = [str(link.get_attribute("href")) for link in page.locator("#page-run .files a").all()]
    assert len(links) == 4
    assert all(link.startswith("./") for link in links)


def test_without_javascript_the_tables_are_there(visit: Visit, rich: Path) -> None:
    page = visit(rich, java_script_enabled=False)
    assert page.locator("#papers").is_visible()
    assert page.locator(SCORES).is_visible()
    assert not page.locator("#filters").is_visible()
    assert "Without JavaScript" in page.locator("main").inner_text()


def test_2000_records_are_usable_within_seconds(visit: Visit, large: Path) -> None:
    start = time.perf_counter()
    page = visit(large, "#/runs?scale=mini")
    page.wait_for_selector("#run-table tbody tr:nth-child(25)")
    assert time.perf_counter() - start < 5
    assert page.locator("#run-table tbody tr").count() == 25
    start = time.perf_counter()
    page.locator("#run-table th", has_text="sentiment accuracy").click()
    sorted_as(page, "#run-table", "sentiment accuracy", "descending")
    page.locator("#filters [name=text]").fill("s17")
    page.get_by_role("button", name="clear").click()
    page.get_by_role("button", name="last").click()
    assert page.locator("#pager-where").inner_text() == "1976–2000 of 2000"
    page.locator("#run-table td.id a").last.click()
    page.wait_for_selector("#page-run h1:visible")
    assert time.perf_counter() - start < 5
