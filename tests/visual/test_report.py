"""The report holds everything, escapes everything and loads nothing."""

import base64
import html.parser
import re

import numpy as np
import pytest

from sde_score.metrics import MetricResult
from sde_score.visual import Section, Table, bar_chart, line_chart, png_bytes, render_report, write_report
from sde_score.visual.svg import format_with_error, nice_ticks

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;'


class Page(html.parser.HTMLParser):
    """Collects tags and checks that they are balanced."""

    VOID = {"meta", "img", "br", "rect", "path"}

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(evil=EVIL):
    grid = np.zeros((8, 8, 3), np.uint8)
    return dict(
        title=evil,
        summary=f"{evil}\n\nsecond",
        sections=[
            Section(evil, evil, image=(grid, evil)),
            Section(
                "Results",
                table=Table([evil, "value"], [[evil, (1.87, 0.014)], ["none", None]], highlight=[0], note=evil),
                svg=[bar_chart([evil, "b"], [1.0, 2.0], errors=[0.1, None], unit=evil, title=evil)],
            ),
            Section("Curve", svg=line_chart({evil: ([0, 1, 2], [1.0, 0.1, 0.01])}, xlabel=evil, title=evil, log=True)),
            Section("Go on", commands=[f"sde-score {evil}"], image=[png_bytes(grid), grid]),
        ],
        provenance={evil: evil, "config": {"a": evil}, "seeds": list(range(20))},
    )


def test_report_is_self_contained_balanced_and_escaped(tmp_path):
    text = write_report(tmp_path / "report.html", **page()).read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
    assert "default-src 'none'" in text and "prefers-color-scheme:dark" in text and "width=device-width" in text
    assert "1.870" in text and "± 0.014" in text


def test_pictures_come_back_unchanged(tmp_path):
    data = png_bytes(np.arange(64, dtype=np.uint8).reshape(8, 8))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    text = render_report(title="t", sections=[Section("s", image=str(path))])
    assert base64.b64decode(re.search(r"base64,([^\"]*)", text)[1]) == data


def test_results_stand_in_cells_with_their_errors():
    failed = MetricResult("x", float("nan"), error="ValueError: <oops>")
    table = Table(["metric", "value"], [["fd", MetricResult("fd", 0.41234, 0.0312)], ["x", failed], ["n", 1500]])
    text = render_report(title="t", sections=[Section("s", table=table)])
    assert '0.412 <span class="se">± 0.031</span>' in text
    assert "failed: ValueError: &lt;oops&gt;" in text and "1,500" in text


@pytest.mark.parametrize(
    "value, error, expected",
    [
        (1.8704, 0.0141, ("1.870", "0.014")),
        (2.0, None, ("2", "")),
        (123.4, 5.2, ("123.4", "5.2")),
        (1234.0, 210.0, ("1234", "210")),
    ],
)
def test_value_and_error_have_the_same_decimals(value, error, expected):
    assert format_with_error(value, error) == expected


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 99) == [0, 25, 50, 75]
    assert nice_ticks(0.0, 1.0) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert nice_ticks(-2, 0.04, log=True)[0] == -2
    for low, high in ((1e-9, 2e-9), (-5, 1e6), (3.0, 3.1)):
        ticks = nice_ticks(low, high)
        assert 2 <= len(ticks) <= 9 and all(low - 1e-12 <= t <= high * (1 + 1e-9) for t in ticks)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Row 1"):
        render_report(title="t", sections=[Section("s", table=Table(["a", "b"], [[1, 2], [1]]))])
    with pytest.raises(ValueError, match="PNG, GIF or JPEG"):
        render_report(title="t", sections=[Section("s", image=b"<svg>")])
    with pytest.raises(ValueError, match="no script"):
        render_report(title="t", sections=[Section("s", svg="<svg><script>x</script></svg>")])
    with pytest.raises(FileNotFoundError):
        render_report(title="t", sections=[Section("s", image="missing.png")])
    with pytest.raises(ValueError, match="label"):
        bar_chart(["a"], [])
    with pytest.raises(ValueError, match="no finite"):
        line_chart({"a": ([0], [float("nan")])})


@pytest.mark.parametrize(
    "values",
    [[-1.0, 2.0], [-3.0, -1.0], [float("nan"), 1.0], [float("inf"), -2.0], [None, 0.0], [0.0, 0.0], [1e308, -1e308]],
)
def test_bars_of_any_value(values):
    chart = bar_chart(["a", "b"], values, errors=[0.5, float("nan")], unit="bits/dim")
    Page().feed(chart)
    bars = {k: float(w) for k, w in re.findall(r'<rect class="bar" x="([\d.-]+)" y="\d+" width="([\d.]+)"', chart)}
    finite = [v for v in values if v is not None and abs(v) < np.inf]
    assert len(re.findall("<rect", chart)) == len(finite) and "nan" not in re.sub(">[^<]*<", "", chart)
    assert all(float(x) >= 139 and float(x) + w <= 540 for x, w in bars.items())


def test_bars_go_to_both_sides_of_zero_in_proportion():
    chart = bar_chart(["a", "b"], [-1.0, 2.0])
    (x0, w0), (x1, w1) = ((float(a), float(b)) for a, b in re.findall(r'x="([\d.]+)" y="\d+" width="([\d.]+)"', chart))
    assert x0 + w0 == pytest.approx(x1, abs=0.2) and w1 == pytest.approx(2 * w0, abs=0.3)


def test_a_cell_without_a_value_holds_its_reason():
    rows = [["fd", (None, "needs at least <2>"), (None, None)], ["x", (1.0, None), (float("inf"), 1.0)]]
    table = Table(["figure", "a", "b"], rows)
    text = render_report(title="t", sections=[Section("s", table=table)])
    assert "needs at least &lt;2&gt;" in text and "–" in text and "inf" in text


def test_a_long_command_is_not_cut_off():
    assert "white-space:pre-wrap" in render_report(title="t", sections=[Section("s", commands=["x" * 500])])


def test_a_report_is_html(tmp_path):
    with pytest.raises(ValueError, match=r"\.html"):
        write_report(tmp_path / "report.pdf", title="t")
