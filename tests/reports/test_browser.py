"""The page in a real browser: it runs without errors, sorts, links, and fits a phone."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import NASTY, write_fake_run, write_lines

from penstock.reports import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))),
    None,
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH; un-skip: install chromium")

Visit = Callable[..., dict[str, Any]]

QUIET = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000
    --window-size=1400,1000 --dump-dom
""".split()  # noqa: SIM905

WATCH = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
</script>"""

PROBE = """<script>
addEventListener("load", async () => {
  let result = null;
  try { result = await (async () => { %s })(); } catch (error) { errors.push(String(error)); }
  parent.postMessage(JSON.stringify({ result, errors }), "*");
});
</script>"""

# The page sits in a frame, because a headless window is never narrower than 500 px.
HOST = """<!doctype html><pre id="answer"></pre><script>
addEventListener("message", (event) => { document.getElementById("answer").textContent = event.data; });
</script><iframe src="page.html" style="border:0;width:%dpx;height:900px"></iframe>"""


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    def visit(run_dir: Path, script: str, *, width: int = 1280) -> dict[str, Any]:
        """Runs `script` in the report at a width in px; fails if the browser complains about anything."""
        page = write_report(run_dir).read_text(encoding="utf-8")
        page = page.replace("<head>", "<head>" + WATCH, 1).replace("</body>", PROBE % script + "</body>")
        folder = tmp_path / "browser"
        folder.mkdir(exist_ok=True)
        (folder / "page.html").write_text(page, encoding="utf-8")
        (folder / "host.html").write_text(HOST % width)
        done = subprocess.run(
            [str(BROWSER), *QUIET, f"--user-data-dir={folder / 'profile'}", (folder / "host.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        answer = re.search(r'<pre id="answer">(.+?)</pre>', done.stdout, re.DOTALL)
        assert answer, f"The page never answered.\n{done.stdout[:500]}\n{done.stderr[-2000:]}"
        found = json.loads(html.unescape(answer[1]))
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert found["errors"] + console == []
        return found["result"]

    return visit


def test_a_desktop_page_draws_every_sae_in_every_panel_and_sorts_its_table(tmp_path: Path, visit: Visit) -> None:
    records = write_fake_run(tmp_path / "run")
    saes = [record for record in records if record["seed"] is not None]
    result = visit(
        tmp_path / "run",
        """
        const column = (key) => {
          const head = all("#table thead th");
          const at = head.findIndex((cell) => cell.dataset.key === key);
          return all("#table tbody tr").map((row) => row.children[at].textContent);
        };
        const sort = (key) => document.querySelector(`th[data-key="${key}"] button`).click();
        const marks = all("#panels svg").map((svg) => all(".mark", svg).length);
        const overflow = document.documentElement.scrollWidth - innerWidth;
        sort("kl");
        const ascending = column("kl");
        sort("kl");
        const descending = column("kl");
        sort("l0");
        return { marks, overflow, ascending, descending, l0: column("l0"), names: column("name"),
          curves: all("#curves path").length,
          densities: all("#densities path[data-run]").length,
          sorted: all("th[aria-sort]").length };
        """,
    )
    # PCA lies on the scale of the SAEs only where it is as unbiased as they are.
    assert result["marks"] == [len(saes)] * 3 + [len(saes) + 1]
    assert result["densities"] == len(saes)
    assert result["curves"] == 4 * len(saes)
    assert result["overflow"] <= 0
    missing = len(records) - len(saes)
    kl = sorted(record["kl"] for record in saes)
    assert [float(text) for text in result["ascending"][:-missing]] == pytest.approx(kl, rel=1e-3)
    assert [float(text) for text in result["descending"][:-missing]] == pytest.approx(kl[::-1], rel=1e-3)
    assert result["ascending"][-missing:] == result["descending"][-missing:] == ["–"] * missing
    # By size, not by spelling: "16.03" comes after "8.008".
    assert [float(text) for text in result["l0"]] == sorted(float(text) for text in result["l0"])
    assert result["sorted"] == 1


def test_pointing_at_a_mark_shows_its_run_everywhere_and_keys_walk_on(tmp_path: Path, visit: Visit) -> None:
    write_fake_run(tmp_path / "run")
    result = visit(
        tmp_path / "run",
        """
        const hot = () => all(".mark.hot, tr.hot, #curves .hot, #densities .hot")
          .map((node) => `${node.tagName.toLowerCase()} ${node.dataset.run}`);
        const tip = document.getElementById("tip");
        const first = document.querySelector("#panels .mark");
        first.dispatchEvent(new PointerEvent("pointerenter"));
        const pointed = hot(), text = tip.textContent;
        first.dispatchEvent(new PointerEvent("pointerleave"));
        const left = hot(), hiddenAfter = tip.hidden;
        first.focus();
        const key = (name) => document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key: name, bubbles: true }));
        key("ArrowRight");
        const walked = document.activeElement.dataset.run, focusedTip = tip.textContent;
        key("Enter");
        document.activeElement.blur();
        const pinned = hot();
        document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
        const stops = all("#panels svg").map((svg) => all("[tabindex='0']", svg).length);
        return { pointed, text, left, hiddenAfter, walked, first: first.dataset.run, focusedTip, pinned,
          after: hot(), stops };
        """,
    )
    run = result["first"]
    assert sorted(result["pointed"]) == sorted([f"g {run}"] * 4 + [f"tr {run}"] + [f"path {run}"] * 5)
    assert "gated-resid_post.2-l0_4-seed" in result["text"]
    assert "Loss recovered" in result["text"]
    assert result["left"] == result["after"] == []
    assert result["hiddenAfter"] is True
    assert result["walked"] != run
    assert "seed" in result["focusedTip"]
    assert len(result["pinned"]) == 10
    assert result["stops"] == [1, 1, 1, 1]


def test_on_a_phone_panels_stack_and_nothing_hangs_over_the_edge(tmp_path: Path, visit: Visit) -> None:
    site = "model.layers.12.mlp.down_proj.output"
    records = write_fake_run(tmp_path / "run", sites=(site, "resid_post.12"), seeds=(0,))
    # Labels are longest when an arm must be told apart by both its recipe and its width.
    other = [record | {"recipe": "paper", "d_sae": 131_072, "name": "x-" + record["name"]} for record in records]
    write_lines(tmp_path / "run" / "records.jsonl", [*records, *other[:4]])
    result = visit(
        tmp_path / "run",
        """
        const lefts = all("#panels .panel").map((panel) => panel.getBoundingClientRect().left);
        const box = document.getElementById("table").parentElement;
        document.getElementById("all-columns").click();
        document.querySelector("#panels .mark").dispatchEvent(new PointerEvent("pointerenter"));
        const tipBox = document.getElementById("tip");
        const tip = tipBox.getBoundingClientRect();
        return { inner: innerWidth, scroll: document.documentElement.scrollWidth, lefts,
          tableScrolls: box.scrollWidth > box.clientWidth, tip: [tip.left, tip.right],
          tipOverflow: tipBox.scrollWidth - tipBox.clientWidth };
        """,
        width=390,
    )
    assert result["inner"] == 390
    assert result["scroll"] <= 390
    assert len(set(result["lefts"])) == 1
    assert result["tableScrolls"] is True
    assert result["tip"][0] >= 0
    assert result["tip"][1] <= 390
    assert result["tipOverflow"] == 0


def test_choosing_a_site_changes_every_picture(tmp_path: Path, visit: Visit) -> None:
    records = write_fake_run(tmp_path / "run", sites=("resid_post.2", "mlp_out.1"), seeds=(0,))
    result = visit(
        tmp_path / "run",
        """
        const shown = () => ({
          runs: [...new Set(all("#panels .mark, #curves [data-run], #densities [data-run]")
            .map((node) => Number(node.dataset.run)))],
          comparisons: all(".comparison").map((node) => node.hidden),
        });
        const before = shown();
        const select = document.getElementById("site");
        select.value = "mlp_out.1";
        select.dispatchEvent(new Event("change"));
        return { before, after: shown(), rows: all("#table tbody tr").length };
        """,
    )
    assert {records[run]["site"] for run in result["before"]["runs"]} == {"resid_post.2"}
    assert {records[run]["site"] for run in result["after"]["runs"]} == {"mlp_out.1"}
    assert {run for run in result["after"]["runs"] if records[run]["seed"] is not None} == set(range(8, 16))
    assert result["before"]["comparisons"] == [False, True]
    assert result["after"]["comparisons"] == [True, False]
    assert result["rows"] == len(records)


def test_nasty_names_stay_text_and_downloads_hold_every_record(tmp_path: Path, visit: Visit) -> None:
    records = write_fake_run(tmp_path / "run", model=NASTY, seeds=(0,), target_l0s=(8, 16))
    for record in records:
        record["name"] += NASTY
    write_lines(tmp_path / "run" / "records.jsonl", records)
    result = visit(
        tmp_path / "run",
        """
        const blobs = [];
        URL.createObjectURL = (blob) => { blobs.push(blob); return "#"; };
        document.getElementById("download-json").click();
        document.getElementById("download-csv").click();
        const name = document.querySelector("#table tbody th span").textContent;
        document.querySelector("#panels .mark").focus();
        const [json, csv] = await Promise.all(blobs.map((blob) => blob.text()));
        return { json, csv, name, title: document.title };
        """,
    )
    assert json.loads(result["json"]) == records
    assert result["csv"].startswith("name,")
    assert result["csv"].count(NASTY.replace('"', '""')) >= 2 * len(records)
    assert result["name"] == records[0]["name"]
    assert result["title"] != "broken out"


@pytest.mark.parametrize("sae", ["none", "one", "without numbers"])
def test_a_run_with_little_to_show_still_makes_a_page(tmp_path: Path, visit: Visit, sae: str) -> None:
    records = write_fake_run(tmp_path / "run", seeds=(0,), target_l0s=(8,), metrics=False, comparison=False)
    chosen = [record for record in records if record["seed"] is None]
    if sae != "none":
        chosen = [records[0], *chosen]
    if sae == "without numbers":
        for key in ("l0", "delta_ce", "intervals", "density_histogram", "target_l0", "warnings"):
            chosen[0][key] = None
    write_lines(tmp_path / "run" / "records.jsonl", chosen)
    rows = visit(tmp_path / "run", 'return all("#table tbody tr").length;')
    assert rows == len(chosen)


def test_fitting_the_axes_to_the_controls_draws_them(tmp_path: Path, visit: Visit) -> None:
    write_fake_run(tmp_path / "run")
    result = visit(
        tmp_path / "run",
        """
        const labels = () => all("#panels .panel:nth-child(2) text").map((node) => node.textContent);
        const before = labels();
        document.getElementById("controls").click();
        return { before, after: labels(), marks: all("#panels .panel:nth-child(2) .mark").length };
        """,
    )
    assert "Zero ablation 6.769" not in result["before"]
    assert {"Zero ablation 6.769", "Mean ablation 4.442", "Identity 0"} <= set(result["after"])
    assert result["marks"] == 16 + 2
