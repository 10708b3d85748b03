"""The page as text: what it says, what it embeds, and that it loads nothing."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import NASTY, write_fake_run, write_lines

from penstock.reports import write_report
from penstock.reports.pages.report import MAX_CURVE_POINTS
from penstock.reports.wording.definitions import METRICS, OTHERS


class Page(HTMLParser):
    """Elements, attributes and text of a page, read as a browser would split them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside != "style":
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def data(self) -> dict[str, Any]:
        (block,) = [text for attributes, text in self.scripts if attributes.get("id") == "penstock-data"]
        return json.loads(block)


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_the_report_is_written_into_the_run_directory_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} - before == {"report.html"}


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    page = page_of(tmp_path)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value!r}>"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", page.html)
    # The one address in the file is the name of the SVG namespace, which no browser loads.
    assert set(re.findall(r"https?:[^\"'\s]*", page.html)) == {"http://www.w3.org/2000/svg"}


def test_a_content_security_policy_forbids_loads(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    policies = [value for tag, _, value in page_of(tmp_path).attributes if tag == "meta" and "-src" in value]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")


def test_embedded_json_parses_back_to_the_records(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path)
    assert page_of(tmp_path).data["records"] == records


def test_script_end_quotes_and_line_separators_in_names_do_not_break_out(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, model=NASTY, sites=(NASTY, "resid_post.2"), seeds=(0,))
    page = page_of(tmp_path)
    assert len(page.scripts) == 2
    assert page.data["records"] == records
    block = page.html.split('id="penstock-data">')[1].split("</script>")[0]
    assert "<" not in block
    assert "\u2028" not in block
    assert " ".join(NASTY.split()) in page.words


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, seeds=(0,), target_l0s=(8, 16))
    for key in ("loss_recovered_mean", "reconstruction_bias", "target_l0", "intervals", "density_histogram"):
        records[0][key] = None
    records[1]["intervals"]["l0"] = None
    write_lines(tmp_path / "records.jsonl", records)
    page = page_of(tmp_path)
    assert page.data["records"] == records
    assert "None" not in page.words
    assert "nan" not in page.words.lower().split()


def test_numbers_that_are_not_finite_are_shown_as_missing_with_a_warning(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, warnings=False)
    records[0]["delta_ce"] = float("nan")
    records[1]["fvu"] = float("inf")
    write_lines(tmp_path / "records.jsonl", records)
    page = page_of(tmp_path)
    assert page.data["records"][0]["delta_ce"] is None
    assert "Not finite in records.jsonl, shown as missing: 2 values." in page.words


def test_without_comparison_and_training_log_the_report_says_so(tmp_path: Path) -> None:
    write_fake_run(tmp_path, comparison=False, metrics=False)
    page = page_of(tmp_path)
    assert "comparison.json is missing: no arm is compared with its baseline." in page.words
    assert "metrics.jsonl is missing: there are no training curves." in page.words
    assert "draws no conclusion" in page.words
    assert page.data["curves"] == []


def test_records_alone_are_enough(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "records.jsonl":
            path.unlink()
    page = page_of(tmp_path)
    assert page.data["records"] == records
    assert "config.json is missing" in page.words


def test_the_headline_states_ratio_interval_and_range(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    headline = (
        "At equal loss recovered the Gated SAE needs 0.549× the firing latents of the ReLU baseline "
        "(95% interval 0.521 to 0.592), over loss recovered 0.9312 to 0.9806."
    )
    assert headline in page_of(tmp_path).words


def test_every_comparison_of_several_sites_is_named_and_the_page_offers_a_choice(tmp_path: Path) -> None:
    write_fake_run(tmp_path, sites=("resid_post.2", "mlp_out.1"), seeds=(0,))
    page = page_of(tmp_path)
    assert page.data["sites"] == ["resid_post.2", "mlp_out.1"]
    assert "mlp_out.1 At equal loss recovered" in page.words
    assert ("select", "id", "site") in page.attributes


def test_one_site_needs_no_choice(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    assert ("select", "id", "site") not in page_of(tmp_path).attributes


def test_warnings_of_records_are_grouped_and_counted(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    words = page_of(tmp_path).words
    assert "3 warnings" in words
    assert "Still improving (2)" in words
    assert "gated-resid_post.2-l0_4-seed0 loss fell by 4.1% over the last tenth of the run" in words


def test_the_result_comes_first_and_provenance_last(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    html = page_of(tmp_path).html
    places = [html.index(part) for part in ("0.549×", 'id="panels"', 'id="table"', 'id="warnings"', "3f9c2ab4d1")]
    assert places == sorted(places)


def test_a_run_without_comparison_begins_with_the_numbers_of_its_saes(tmp_path: Path) -> None:
    records = write_fake_run(tmp_path, comparison=False)
    words = page_of(tmp_path).words
    name = records[0]["name"]
    assert words.index(f"{name}: L0 ") < words.index("so the report draws no conclusion")


def test_no_warnings_are_said_calmly(tmp_path: Path) -> None:
    write_fake_run(tmp_path, warnings=False)
    page = page_of(tmp_path)
    assert "No warnings." in page.words
    assert ("section", "id", "warnings") not in page.attributes


def test_every_metric_is_defined_on_the_page(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    words = page_of(tmp_path).words
    for definition in (*METRICS, *OTHERS):
        assert " ".join(definition.formula.split()) in words


def test_the_run_card_names_data_seeds_hardware_and_command(tmp_path: Path) -> None:
    write_fake_run(tmp_path)
    words = page_of(tmp_path).words
    for fact in (
        "2,048,000 tokens per SAE: 512,000 unique, 4 passes",
        "259,072 held-out tokens in 1,024 sequences",
        "BOS and padding excluded",
        "Siteresid_post.2 (d_in 128)",
        "Seeds0, 1 SAEs16",
        "source code of the Python standard library",
        "AMD EPYC 7B13, 2 threads",
        "torch 2.13.0",
        "3f9c2ab4d1",
        "6 min 11 s",
        "--target-l0 4 8 16 32",
    ):
        assert fact in words


def test_training_curves_are_thinned_and_keep_both_ends(tmp_path: Path) -> None:
    write_fake_run(tmp_path, seeds=(0,), target_l0s=(8,))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    mine = [row for row in rows if row["sae"] == rows[0]["sae"]]
    curve = page_of(tmp_path).data["curves"][0]
    assert len(mine) > MAX_CURVE_POINTS == len(curve["tokens"])
    assert (curve["tokens"][0], curve["tokens"][-1]) == (mine[0]["tokens"], mine[-1]["tokens"])
    assert curve["l0"][-1] == pytest.approx(mine[-1]["l0"], rel=1e-4)


def test_importing_the_package_imports_neither_jinja2_nor_matplotlib() -> None:
    code = "import sys, penstock.reports; sys.exit(bool({'jinja2', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
