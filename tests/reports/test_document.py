"""The PDF: what it says, its structure, and that nothing of the user's is ever markup."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pikepdf
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

import reports
from analyzer.findings import Finding, Severity
from analyzer.record import save
from probes.errors import AnalyzerError
from reports.appendix import LISTED, all_layers, listed
from reports.document import compose, lay_out, moment, typeset
from reports.section import Section, Table
from reports.summary import actions, diagnostics, headline, provenance

Make = Callable[..., Any]

HOSTILE = [
    "$x_$", "<b>bold</b>", "\u202eevil", "\u05d0\u05d1", "\U0001f600", "n" * 300, "a\x07\x00",
    "#set text(red)", "`code` *b* _i_", "\\u{41} \\x", "tab\tnl\n", "\u65e5\u672c.conv",
    "@label <x> [y] {z}", "e\u0301", "%s %d {}", "a.b" * 80, "", " ", "=== h", "$$", "// c",
]  # fmt: skip


def structure(pdf: pikepdf.Pdf) -> tuple[Counter[str], list[str]]:
    """Count the tags, and collect alternative texts of figures and formulas."""
    tags: Counter[str] = Counter()
    texts: list[str] = []
    waiting = [pdf.Root.StructTreeRoot.K]
    while waiting:
        node = waiting.pop()
        if isinstance(node, pikepdf.Array):
            waiting += list(node)
        elif isinstance(node, pikepdf.Dictionary) and "/S" in node:
            tags[str(node.S)] += 1
            if str(node.S) in ("/Figure", "/Formula"):
                texts.append(str(node.get("/Alt", "")))
            waiting += [node.K] if "/K" in node else []
    return tags, texts


def bookmarks(pdf: pikepdf.Pdf) -> list[str]:
    with pdf.open_outline() as outline:
        return [str(item.title).strip() for item in outline.root]


def fonts(pdf: pikepdf.Pdf) -> dict[str, bool]:
    """Name of every font and whether its file is inside the PDF."""
    found = {}
    for item in pdf.objects:
        if isinstance(item, pikepdf.Dictionary) and item.get("/Type") == "/FontDescriptor":
            inside = any(key in item for key in ("/FontFile", "/FontFile2", "/FontFile3"))
            found[str(item.FontName)] = inside
    return found


def words(path: Path) -> str:
    text = " ".join(page.extract_text() for page in PdfReader(path).pages)
    return re.sub(r"\s+", " ", text)


@pytest.fixture
def lstm_pdf(tmp_path: Path, make_lstm: Make, judge: Make, limits: Any) -> Path:
    tree = make_lstm(date="2026-11-21T02:52:00+00:00")
    path = tmp_path / "report.pdf"
    reports.render(tree, judge(tree), path, limits=limits)
    return path


def test_outline_tags_alternatives_fonts_and_attachment(lstm_pdf: Path) -> None:
    with pikepdf.open(lstm_pdf) as pdf:
        assert bookmarks(pdf) == [
            "Summary",
            "Contents",
            "1 Gradient over depth WARN",
            "2 Gradient over time FAIL",
            "3 Memory horizon INCONCLUSIVE",
            "Not measured",
            "A Methods",
            "B References",
            "C Limits in force",
            "D All layers",
        ]
        tags, texts = structure(pdf)
        assert tags["/Figure"] >= 6
        assert tags["/TH"] > 10
        assert all(texts)
        assert any("4 layers by 140 timesteps" in text for text in texts)
        assert pdf.Root.MarkInfo.Marked
        assert str(pdf.Root.Lang) == "en"
        assert str(pdf.docinfo.Title) == "Checkpoint audit: models.py:HeartbeatLSTM"
        with pdf.open_metadata() as metadata:
            assert metadata["pdfuaid:part"] == "1"
            assert (metadata["pdfaid:part"], metadata["pdfaid:conformance"]) == ("3", "A")
        assert fonts(pdf)
        assert all(fonts(pdf).values())
        assert {name.split("+")[-1].split("-")[0] for name in fonts(pdf)} == {
            "Inter", "JetBrainsMono", "NewCMMath",
        }  # fmt: skip
        attached = json.loads(pdf.attachments["findings.json"].get_file().read_bytes())
        assert attached["verdict"] == "FAIL"
        assert len(pdf.pages) == 7


def test_first_page_says_verdict_actions_limits_and_hashes(lstm_pdf: Path) -> None:
    text = words(lstm_pdf)
    start = text.index("FAIL: from the last to the first of 140 timesteps")
    assert (
        start < text.index("1. Raise the forget-gate bias") < text.index("Diagnostics, worst first")
    )
    for said in (
        "[3.61, 3.9]",
        "\u2264 3 decades",
        "7a3e97493f51176e0b27483006f7ed81597f78b2c4c4a018844935a5100fa264",
        "d88251f9f1fbac5665c9a09f0a0318e09be38aef5709682c1271a282ec4e48ad",
        "2026-11-21 02:52 UTC",
        "CUDA out of memory at lstm.l3 [requested 2 GiB]",
        "1 of 4 limits are set by the user",
        "not set",
        "Page 1 of 7",
    ):
        assert said in text
    assert "Partial weights" not in text


def test_links_lead_into_the_document_and_out(lstm_pdf: Path) -> None:
    with pikepdf.open(lstm_pdf) as pdf:
        links = [a for page in pdf.pages for a in page.get("/Annots", []) if a.Subtype == "/Link"]
        outward = {str(a.A.URI) for a in links if "/A" in a and a.A.S == "/URI"}
        assert "https://arxiv.org/abs/1805.04623" in outward
        assert len(links) - len(outward) > 15


def test_the_same_record_gives_the_same_bytes(make_cnn: Make, judge: Make, tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        tree = make_cnn()
        reports.render(tree, judge(tree), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf"))
    assert first == second


def test_time_zone_locale_and_hash_seed_do_not_matter(make_cnn: Make, tmp_path: Path) -> None:
    save(make_cnn(2), tmp_path / "traces.nc")
    script = (
        "import sys, reports; from analyzer.record import load; "
        f"reports.render(load({str(tmp_path / 'traces.nc')!r}), [], sys.argv[1])"
    )
    root = Path(reports.__file__).parents[1]
    for name, zone, language, seed in (("a", "UTC", "C", "1"), ("b", "Asia/Tokyo", "de_DE", "2")):
        changed = {"TZ": zone, "LANG": language, "LC_ALL": language, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, str(tmp_path / f"{name}.pdf")]
        subprocess.run(command, check=True, cwd=root, env=os.environ | changed)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_partial_weights_are_announced_on_page_one(
    make_cnn: Make, judge: Make, tmp_path: Path
) -> None:
    tree = make_cnn(2, partial=1, loader="2 of 26 keys missing: head.weight, head.bias")
    reports.render(tree, judge(tree), tmp_path / "r.pdf", paper="us-letter")
    text = words(tmp_path / "r.pdf")
    assert "Partial weights." in text[: text.index("What to do first")]
    with pikepdf.open(tmp_path / "r.pdf") as pdf:
        assert list(map(float, pdf.pages[0].MediaBox)) == [0, 0, 612, 792]


def test_hostile_names_are_shown_and_never_markup(
    make_record: Make, make_flow: Make, tmp_path: Path
) -> None:
    flow = make_flow(HOSTILE, ["Conv2d <$>"] * len(HOSTILE), 0.1)
    absent = xr.Dataset(attrs={"outcome": "error", "reason": "\x1b[31m$boom$ \u202e" + "q" * 400})
    facts = {name: HOSTILE[index] for index, name in enumerate(("loader", "tool", "note"))}
    tree = make_record(
        {"gradient_flow": flow, "memory_horizon": absent},
        model="M$_{x}$\u202e#evil" + "m" * 300,
        checkpoint_sha256="\u05d0" * 64,
        date="yesterday",
        **facts,
    )
    count = len(HOSTILE)
    findings = [
        Finding(
            f"code-{i}", "gradient_flow", severity, HOSTILE[i] or "t",
            HOSTILE[(i + 3) % count] + " " + HOSTILE[i], HOSTILE[i], HOSTILE[(i + 7) % count],
            [1e-300, float("nan"), float("inf"), -1e9][i % 4], -1e9, float("inf"), HOSTILE[i],
            [float("nan"), 1e5][i % 2], HOSTILE[0], HOSTILE[4], 3, tuple(HOSTILE),
        )
        for i, severity in enumerate(Severity)
    ]  # fmt: skip
    reports.render(tree, findings, tmp_path / "r.pdf")
    text = words(tmp_path / "r.pdf")
    for said in ("$x_$", "<b>bold</b>", "\\u202eevil", "#set text(red)", "@label <x> [y] {z}"):
        assert said in text


def test_one_layer_one_step_one_sample(make_record: Make, make_flow: Make, tmp_path: Path) -> None:
    tree = make_record({"gradient_flow": make_flow(["fc"], ["Linear"], 0.1, 1)})
    reports.render(tree, [], tmp_path / "r.pdf")
    assert "There are not two layers whose gradients can be compared." in words(tmp_path / "r.pdf")


def test_a_thousand_layers(make_record: Make, make_flow: Make, tmp_path: Path) -> None:
    names = [f"layer{1 + index // 334}.{index}.conv" for index in range(1001)]
    tree = make_record({"gradient_flow": make_flow(names, ["Conv2d"] * 1001, 0.003, 4)})
    reports.render(tree, [], tmp_path / "r.pdf")
    assert (tmp_path / "r.pdf").stat().st_size < 4 * 2**20
    text = words(tmp_path / "r.pdf")
    assert "14 of 2002 parameters" in text
    assert all(name in text for name in (names[0], names[-1]))
    assert "240 of 1001 rows" in text
    with pikepdf.open(tmp_path / "r.pdf") as pdf:
        whole = pdf.attachments["all_layers.csv"].get_file().read_bytes().decode()
    assert all(name in whole for name in names)


def test_undefined_measurements_and_an_empty_record(
    make_record: Make, make_lstm: Make, make_cnn: Make, tmp_path: Path
) -> None:
    traces = {}
    for tree in (make_lstm(), make_cnn()):
        for name, node in tree.children.items():
            if node.attrs["outcome"] == "measured":
                trace = node.to_dataset()
                numeric = [v for v in trace.data_vars if trace[v].dtype.kind == "f"]
                traces[name] = trace.assign({v: trace[v] * np.nan for v in numeric})
    traces["receptive_field"]["status"][:] = "UNKNOWN"
    reports.render(make_record(traces), [], tmp_path / "nan.pdf")
    assert "No layer has an effective field." in words(tmp_path / "nan.pdf")
    reports.render(xr.DataTree(xr.Dataset()), [], tmp_path / "empty.pdf")
    assert "unnamed model" in words(tmp_path / "empty.pdf")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=5, max_size=5))
def test_any_text_can_be_set(strings: list[str]) -> None:
    title, message, action, layer, fact = strings
    finding = Finding("c", "absent", Severity.WARN, title, message, message, action, where=(layer,))
    root = xr.Dataset(attrs={"model": title, "loader": fact, "partial": 1, "tool": fact})
    gone = xr.Dataset(attrs={"outcome": "error", "reason": message})
    tree = xr.DataTree.from_dict({"/": root, "/absent": gone})
    limits = {layer: {"value": fact, "source": message, "overridden": True}}
    assert compose(tree, [finding], limits=limits, paper="a4").startswith(b"%PDF-")


def test_every_admitted_character_can_be_set_in_every_style() -> None:
    from reports.text import coverage, safe

    shown = [chr(code) for code in sorted(coverage()) if safe(chr(code)) == chr(code)]
    source = (
        '#import "design.typ": *\n#set document(title: "t")\n'
        '#set text(font: sans, fallback: false, lang: "en")\n'
        '#let all = json("data.json")\n'
        "#for weight in (400, 500, 600, 700) { text(weight: weight, all) }\n"
        '#text(style: "italic", all)\n#mono(all)\n#text(font: code, weight: 700, all)'
    )
    template = Path(reports.__file__).parent / "template" / "design.typ"
    files = {
        "main.typ": source.encode(),
        "design.typ": template.read_bytes(),
        "data.json": json.dumps(" ".join(shown)).encode(),
    }
    assert len(shown) > 3000
    assert typeset(files, moment({})).startswith(b"%PDF-")


def test_findings_of_unknown_probes_and_probes_without_a_module_are_kept(
    make_record: Make, make_flow: Make, tmp_path: Path
) -> None:
    finding = Finding("c", "gate_statistics", Severity.WARN, "Gates", "the gates are shut")
    tree = make_record({"gate_statistics": make_flow(["a"], ["Linear"], 0.1)})
    reports.render(tree, [finding], tmp_path / "r.pdf")
    text = words(tmp_path / "r.pdf")
    assert "1 gate statistics" in text
    assert text.count("The gates are shut.") == 2


def test_worst_first_and_the_summary_of_the_reach_apart(make_lstm: Make, judge: Make) -> None:
    findings = judge(make_lstm())
    ranks = [finding.severity.rank for finding in diagnostics(findings)]
    assert ranks == sorted(ranks)
    assert "reach" not in [finding.code for finding in diagnostics(findings)]
    said = headline(findings)
    assert said["status"] == "FAIL"
    assert said["headline"].startswith("from the last to the first of 140 timesteps")
    assert {entry["status"]: entry["count"] for entry in said["counts"]} == {
        "FAIL": 1, "ERROR": 1, "WARN": 1, "INCONCLUSIVE": 1, "INFO": 1, "PASS": 1,
        "NOT APPLICABLE": 1,
    }  # fmt: skip


def test_headline_of_passes_of_measurements_and_of_nothing() -> None:
    good = Finding("a", "p", Severity.PASS, "A", "all is well")
    seen = Finding("b", "p", Severity.INFO, "B", "a number")
    assert headline([good, seen])["headline"] == "all is well"
    assert headline([good, good])["headline"] == "2 diagnostics inside their limits"
    assert headline([seen])["headline"] == "measured, not judged"
    assert headline([])["headline"] == "nothing was judged"


def test_first_actions_are_few_distinct_and_asked_for() -> None:
    made = [
        Finding("a", "p", severity, "A", "m", action=action)
        for severity, action in [
            (Severity.PASS, "Rest."),
            (Severity.WARN, "Warm up."),
            (Severity.FAIL, "None."),
            (Severity.FAIL, "Repair."),
            (Severity.WARN, "Repair."),
            (Severity.INFO, "Look."),
        ]
    ]
    assert [step["text"] for step in actions(made)] == ["Repair.", "Warm up.", "Look."]
    many = [Finding("a", "p", Severity.WARN, "A", "m", action=f"Do {i}.") for i in range(9)]
    assert len(actions(many)) == 4


def test_provenance_lists_every_root_attribute_once() -> None:
    told = provenance({"checkpoint": "a.pt", "seed": 3, "cudnn": "9.1", "loader": " ", "schema": 1})
    assert told == {
        "wide": [{"key": "Checkpoint", "value": "a.pt", "mono": True}],
        "narrow": [{"key": "Seed", "value": "3"}, {"key": "Cudnn", "value": "9.1"}],
    }


def test_all_layers_joins_sections_by_name() -> None:
    table = all_layers(
        {
            "a": Section(
                layers={"Gradient": {"x": "1", "y": "2", "z": "3"}, "Kind": {"x": "Conv"}}
            ),
            "b": Section(layers={"Field": {"y": "7", "w": "9"}, "Kind": {"x": "", "w": "Pool"}}),
        }
    )
    assert table.columns == ("#", "Layer", "Kind", "Gradient", "Field")
    assert table.rows == [
        ("0", "x", "Conv", "1", "\u2013"),
        ("1", "y", "\u2013", "2", "7"),
        ("2", "z", "\u2013", "3", "\u2013"),
        ("3", "w", "Pool", "\u2013", "9"),
    ]


def test_long_tables_are_cut_and_attached_whole() -> None:
    rows = [(f"layer{index}", f"{index},5") for index in range(LISTED + 1)]
    short, files = listed(Table("All (layers).", ("Layer", "Size"), ("name", "number"), rows))
    assert len(short.rows) == LISTED
    assert (short.rows[0], short.rows[-1]) == (rows[0], rows[-1])
    assert short.note == (
        "240 of 241 rows, evenly spaced; all of them are in all_layers.csv, attached to this PDF."
    )
    assert files["all_layers.csv"].startswith(b'Layer,Size\nlayer0,"0,5"\nlayer1,"1,5"\n')
    assert files["all_layers.csv"].count(b"\n") == LISTED + 2
    whole = Table("All.", ("Layer", "Size"), ("name", "number"), rows[1:])
    assert listed(whole) == (whole, {})


def test_figures_are_drawn_once_under_unique_names(make_lstm: Make, judge: Make) -> None:
    tree = make_lstm()
    data, files = lay_out(tree, judge(tree), {})
    named = [plate["file"] for part in data["sections"] for plate in part["plates"]]
    assert sorted([*named, data["reach"]["file"]]) == sorted(files)


def test_missing_typst_is_one_line(
    monkeypatch: pytest.MonkeyPatch, make_lstm: Make, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(AnalyzerError) as caught:
        reports.render(make_lstm(), [], tmp_path / "r.pdf")
    assert str(caught.value) == (
        "the PDF needs typst, which is not installed (pip install 'typst>=0.15,<0.16'); traces and "
        "findings are complete without it"
    )
    assert list(tmp_path.iterdir()) == []


def test_warnings_of_typst_are_errors() -> None:
    source = b'#set document(title: "t")\n#set text(font: "nope")\nA'
    with pytest.raises(AnalyzerError, match=r"^the report cannot be typeset cleanly: unknown font"):
        typeset({"main.typ": source}, moment({}))
    with pytest.raises(AnalyzerError, match=r"^the report cannot be typeset: unknown variable"):
        typeset({"main.typ": b"#nope"}, moment({}))


def test_unknown_paper() -> None:
    with pytest.raises(AnalyzerError) as caught:
        compose(xr.DataTree(xr.Dataset()), [], limits={}, paper="a5")
    assert str(caught.value) == "unknown paper 'a5': use a4 or us-letter"


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Refusal(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch on this machine")

sys.meta_path.insert(0, Refusal())
import xarray as xr, reports
assert "typst" not in sys.modules and "matplotlib" not in sys.modules
reports.render(xr.DataTree(xr.Dataset()), [], sys.argv[1])
assert "torch" not in sys.modules
"""


def test_rendering_needs_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "r.pdf")]
    subprocess.run(command, check=True, cwd=Path(reports.__file__).parents[1])
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF-")
