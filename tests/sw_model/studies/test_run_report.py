"""The page about runs: complete, without other files, and no wider than a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fractrain import main
from host.exact_engine import ExactEngine
from sw_model.studies.run_report import read_record, write_page
from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig

STATIC = TrainConfig(
    width=4, epochs=2, batch=32, train_limit=64, test_limit=32, schedule="manual", stages=((3, 3, 6), (8, 8, 8)),
    starts=(0, 1),
)  # fmt: skip
GATED = replace(STATIC, schedule="dfq", stages=((8, 8, 8),), starts=(), options=((4, 6), (6, 8)), targets=(5.0,))
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.goals: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "path", "use", "rect"):
            self.open.append(tag)
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.goals += [value or ""] if name in ("href", "xlink:href", "src", "action") else []
            self.goals += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    train(STATIC, ExactEngine(), out=folder / "exact <&> run")
    train(GATED, out=folder / "gated")
    return [folder / "exact <&> run", folder / "gated"]


@pytest.fixture(scope="module")
def text(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_page(runs, out)
    return out.read_text(encoding="utf-8")


def test_page_needs_no_other_files(text: str) -> None:
    page = Page(text)
    assert page.open == [] and not {"script", "link", "img", "iframe"} & set(page.tags)
    goals = {goal for goal in page.goals if not goal.startswith("data:")}
    assert goals and all(goal.startswith("#") for goal in goals)
    assert len(page.ids) == len(set(page.ids)) and {goal[1:] for goal in goals} <= set(page.ids)
    assert "@import" not in text and "url(http" not in text


def test_page_tells_what_the_folders_hold(runs: list[Path], text: str) -> None:
    page = Page(text)
    for run in runs:
        record = read_record(run)
        assert run.name in page.texts
        assert record.metric.text(record.result["test_score"]) in page.texts
        assert f"{record.result['cc']:.3g}" in page.texts
    assert f"{read_record(runs[0]).result['counters']['PRODUCTS']:,}" in page.texts
    assert page.tags.count("svg") == page.tags.count("figure") == 2 + 5 + 6
    assert "blocks.2.conv2" in page.texts, "a layer's row in the map of precisions"


def test_same_runs_give_the_same_page(runs: list[Path], text: str, tmp_path: Path) -> None:
    assert main(["report", "run", *map(str, runs), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_an_unfinished_run_has_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(STATIC, out=tmp_path / "run", stop_after=3)
    assert main(["report", "run", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "This run has not ended." in page.texts


@pytest.mark.parametrize(
    "content", ["", "epoch,loss,test_accuracy\nx,1,\n", "epoch,loss\n1,2\n", "epoch,loss,test_luck\n1,2,3\n"]
)
def test_folders_without_a_run_are_refused_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content:
        (tmp_path / "metrics.csv").write_text(content)
    assert main(["report", "run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "metrics.csv" in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_a_phone_and_a_screen(width: int, text: str, tmp_path: Path) -> None:
    probe = "<script>document.title = `${innerWidth} ${document.documentElement.scrollWidth}`</script></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},800", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]  # fmt: skip
    dom = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
    found = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert found is not None, dom[:500]
    assert int(found[2]) <= int(found[1]) <= width + 120, "the page is wider than the window"
