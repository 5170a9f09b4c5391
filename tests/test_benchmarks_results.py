"""What is done with measurements: files, tables, goals, the README's figures, plots."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmark_rows import CELL, FACTS, measurement, rows_of
from conftest import ROOT, require_or_skip

from benchmarks import causes, contenders, goals, host, plots, readme, results, summary, table
from benchmarks import text as texts
from benchmarks.contenders import COMPILED, EAGER, OURS, OURS_FLOAT32, OURS_ONE_THREAD, TUNED
from benchmarks.host import HostTime
from benchmarks.progress import Progress, duration
from benchmarks.runner import Measurement
from benchmarks.workloads import DTYPES, LAYOUTS, WORKLOADS, parse_size

HOST = [
    HostTime("bilinear-add-relu", "1x16x16x16", way, kind, 1e-5 * (1 + number), 1e-5, 3e-5, 9)
    for way in (EAGER, host.FUNCTION)
    for number, kind in enumerate(host.KINDS)
]

MODEL_ROW = {
    "model": "a-net", "size": "1x3x8x8", "precision": "float32", "layout": "NCHW", "sites": 2,
    "remark": "2 FusedBlock", "plain_seconds": 0.5, "plain_q1_seconds": 0.4,
    "plain_q3_seconds": 0.6, "swapped_seconds": 0.4, "swapped_q1_seconds": 0.3,
    "swapped_q3_seconds": 0.5, "samples": 5, "speedup": 1.25, "certain": False,
    "plain_share": 0.1, "swapped_share": 0.02, "plain_peak_bytes": 3_000_000,
    "swapped_peak_bytes": 2_000_000, "error": 1e-7,
}  # fmt: skip
MODELS = {
    **FACTS, "command": "python -m benchmarks.models", "complete": True, "left_out": [],
    "wrong": [], "measurements": [
        {**MODEL_ROW, "direction": "inference"},
        {**MODEL_ROW, "direction": "step", "certain": True, "speedup": 0.9},
    ],
}  # fmt: skip

# ---------------------------------------------------------------------------- rows and tables


def test_rows_have_ratios_and_shares() -> None:
    run = results.Run(FACTS, [measurement(EAGER, 0.03), measurement(OURS, 0.01)])
    eager, ours = run.rows
    assert tuple(eager) == tuple(ours)
    assert set(eager) == set(results.COLUMNS)
    assert eager["times_ours"] == pytest.approx(3.0)
    assert ours["times_ours"] == 1.0
    assert ours["median_seconds"] == 0.02
    assert ours["q1_seconds"] == pytest.approx(0.015)
    assert ours["q3_seconds"] == pytest.approx(0.025)
    assert ours["copy_share"] == pytest.approx(4000 / 0.02 / 1e6)
    assert ours["commit"] == "0123456789abcdef-dirty"
    (alone,) = results.Run(FACTS, [measurement(EAGER, 0.03)]).rows
    assert alone["times_ours"] is None


def test_files_can_be_read_again(tmp_path: Path) -> None:
    run = results.Run(FACTS, [measurement(EAGER, 0.03), measurement(OURS, 0.01)], ["a"], ["b"])
    run.write(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "benchmarks.csv", "benchmarks.json",
    ]  # fmt: skip
    run.host = HOST
    written = run.write(tmp_path / "new")
    assert [path.name for path in written] == ["benchmarks.json", "benchmarks.csv", "host.csv"]
    with open(tmp_path / "new" / "host.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == HostTime._fields
    assert [line["way"] for line in lines] == [row.way for row in HOST]
    again = [HostTime(**row) for row in results.load(tmp_path / "new")["host"]]
    assert again == HOST
    content = results.load(tmp_path / "new")
    assert content["left_out"] == ["a"]
    assert content["wrong"] == ["b"]
    assert content["complete"] is False
    assert content["measurements"][0]["samples_seconds"] == [0.03, 0.06, 0.09]
    with open(tmp_path / "new" / "benchmarks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == results.COLUMNS
    assert [row["contender"] for row in rows] == [EAGER, OURS]
    assert rows[0]["device"] == "A processor"
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected a benchmarks\.json"):
        results.load(tmp_path / "other.json")


def test_json_has_a_line_for_every_measurement() -> None:
    content = {"facts": {"a": [1, 2]}, "rows": [{"x": 1.5}, {"x": None}], "none": []}
    text = results.to_json(content)
    assert json.loads(text) == content
    assert text.splitlines() == [
        "{", ' "facts": {"a": [1, 2]},', ' "rows": [', '  {"x": 1.5},', '  {"x": null}', " ],",
        ' "none": []', "}",
    ]  # fmt: skip


def test_ratios_are_least_and_median_over_the_sizes() -> None:
    rows = rows_of(
        ("1x1x8x8", EAGER, "inference", 6.0), ("1x1x8x8", OURS, "inference", 2.0),
        ("2x1x8x8", EAGER, "inference", 8.0), ("2x1x8x8", OURS, "inference", 2.0),
        ("3x1x8x8", EAGER, "inference", 9.0), ("3x1x8x8", OURS, "inference", 1.0),
        ("3x1x8x8", EAGER, "backward", 5.0),
    )  # fmt: skip
    (ratio,) = summary.ratios(rows)
    assert (ratio.least, ratio.median, ratio.sizes) == (3.0, 4.0, 3)
    assert ratio.direction == "inference"
    lines = summary.ratios_table([ratio]).splitlines()
    assert lines[2] == (
        "| bilinear-add-relu | float32 | NCHW | inference | eager | 3.00 | 4.00 | 3 |"
    )


def test_the_table_of_cells_is_markdown() -> None:
    both = [
        ("1x1x8x8", contender, direction, seconds)
        for contender, seconds in ((EAGER, 6.0), (OURS, 2.0))
        for direction in contenders.DIRECTIONS
    ]
    header, rule, line = summary.cells_table(rows_of(*both)).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| bilinear-add-relu | 1x1x8x8 | float32 | NCHW | 2.00 s | 3.00 |")


def test_the_printed_cell_is_aligned() -> None:
    both = [
        ("1x1x8x8", contender, direction, seconds)
        for contender, seconds in ((EAGER, 0.5), (OURS, 2.0))
        for direction in contenders.DIRECTIONS
    ]
    (group,) = table.by_cell(rows_of(*both))
    title, header, eager, ours = table.cell_text(group).splitlines()
    assert len(header) == len(eager) == len(ours)
    assert "fewest bytes 0.0 MB" in title
    assert eager.count("0.25x") == len(contenders.DIRECTIONS)
    assert "x" not in ours.replace("msr_cuda", "")


def test_goals_are_held_against_the_least_ratio() -> None:
    goal = goals.Goal(CELL.workload, "float32", "NCHW", "inference", EAGER, 3.0)
    rows = rows_of(
        ("1x1x8x8", EAGER, "inference", 6.0), ("1x1x8x8", OURS, "inference", 2.0),
        ("2x1x8x8", EAGER, "inference", 5.8), ("2x1x8x8", OURS, "inference", 2.0),
    )  # fmt: skip
    (missed,) = goals.verdicts(rows, [goal])
    assert not missed.met
    assert missed.least == pytest.approx(2.9)
    assert missed.median == pytest.approx(2.95)
    why = causes.Causes(rows)
    assert goals.describe(missed, why).endswith(
        "measured 2.90 (median 2.95 of 2) MISSED; within the spread of the samples"
    )
    (met,) = goals.verdicts(rows[:2], [goal])
    assert met.met
    (unknown,) = goals.verdicts(rows, [goal._replace(layout="channels_last")])
    assert not unknown.met
    assert goals.describe(unknown, why).endswith("not measured")


def test_bfloat16_is_compared_with_our_own_float32() -> None:
    goal = goals.Goal(CELL.workload, "bfloat16", "NCHW", "inference", OURS_FLOAT32, 1.0)
    half = CELL._replace(dtype="bfloat16")
    run = results.Run(
        FACTS,
        [
            measurement(OURS, 9.0),  # another cell, at another time
            measurement(OURS_FLOAT32, 0.05, cell=half),
            measurement(OURS, 0.04, cell=half),
        ],
    )
    (verdict,) = goals.verdicts(run.rows, [goal])
    assert verdict.least == pytest.approx(1.25)


def test_summary_names_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = results.Run(FACTS, [measurement(EAGER, 0.03), measurement(OURS, 0.01)])
    run.write(tmp_path)
    assert summary.main([str(tmp_path), "--ratios"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "A processor (avx2), 1 thread, CPU time of the thread; torch 2.13.0, msr_cuda 0.1.0 at "
        "0123456789ab-dirty"
    )
    assert printed[-1].endswith("| eager | 3.00 | 3.00 | 1 |")
    assert summary.main([str(tmp_path / "nowhere.json")]) == 2


def test_the_best_peer_of_every_cell_is_named() -> None:
    rows = rows_of(
        ("1x1x8x8", EAGER, "inference", 6.0), ("1x1x8x8", COMPILED, "inference", 3.0),
        ("1x1x8x8", OURS, "inference", 2.0), ("1x1x8x8", EAGER, "backward", 1.8),
        ("1x1x8x8", COMPILED, "backward", 9.0), ("1x1x8x8", OURS, "backward", 2.0),
        ("2x1x8x8", OURS, "inference", 2.0), ("3x1x8x8", EAGER, "inference", 2.0),
    )  # fmt: skip
    # Ourselves in another dtype or with one thread is no peer.
    rows += [{**rows[0], "contender": OURS_FLOAT32, "times_ours": 0.1}]
    first, second = goals.standings(rows)
    assert (first.direction, first.peer, first.ratio) == ("inference", COMPILED, 1.5)
    assert not first.lost
    assert (second.direction, second.peer, second.ratio) == ("backward", EAGER, 0.9)
    assert second.lost
    assert goals.describe_standings([first, second], causes.Causes(rows)) == [
        "bilinear-add-relu 1x1x8x8 float32 NCHW: inference 1.50 (torch.compile), "
        "backward 0.90 (eager) LOST",
        "1 of 2 at least as fast as the best peer",
        "LOST: bilinear-add-relu 1x1x8x8 float32 NCHW backward: eager 0.90; within the spread of "
        "the samples",
    ]


def test_why_a_cell_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what calls on tiny maps cost, by what a copy takes, or by what a profile showed."""
    finding = causes.Finding("bifpn-down", ("NCHW",), ("backward",), "a cause", ("float32",))
    monkeypatch.setattr(causes, "FINDINGS", [finding])
    tiny, large = "1x16x16x16", "1x1x64x64"
    rows = rows_of(
        (large, OURS, "backward", 10e-6), (large, EAGER, "backward", 5e-6),
        (tiny, OURS, "backward", 8e-6), (tiny, EAGER, "backward", 4e-6),
        (large, COMPILED, "backward", 9e-6),
    )  # fmt: skip
    ours, eager, tiny_ours, tiny_eager, compiled = rows
    found = causes.Causes(rows)
    assert found.of(tiny_ours, tiny_eager) == (causes.CALL, "8 µs against 4")
    assert found.of(ours, compiled) == (causes.SPREAD, "")
    assert found.of(ours, eager) == (causes.CALL, "4 of 5 µs are lost on a tiny map, too")
    # Without tiny maps, nothing is known of calls.
    found = causes.Causes(rows[:2])
    assert found.of({**ours, "copy_share": 0.9}, eager) == (
        causes.MEMORY, "90% of a copy's bandwidth",
    )  # fmt: skip
    ours = {**ours, "copy_share": 0.3}
    assert found.of(ours, eager, factor=3.0, bytes_ratio=0.5) == (
        causes.MEMORY, "the peer moves 0.5 times the fewest bytes",
    )  # fmt: skip
    assert found.of(ours, eager, factor=3.0, bytes_ratio=0.7) == (causes.UNKNOWN, "")
    assert found.of(ours, eager) == (causes.UNKNOWN, "")
    assert found.of(ours, {**eager, "contender": OURS_FLOAT32}) == (causes.FOUND, causes.ROUNDING)
    pooled = {**ours, "workload": "bifpn-down"}
    assert found.of(pooled, eager) == (causes.FOUND, "a cause")
    for key, other in (("direction", "forward"), ("layout", "channels_last"), ("dtype", "float16")):
        assert found.of({**pooled, key: other}, eager) == (causes.UNKNOWN, "")


def test_findings_are_of_workloads() -> None:
    for finding in causes.FINDINGS:
        assert finding.workload in WORKLOADS
        assert set(finding.layouts) <= set(LAYOUTS)
        assert set(finding.directions) <= set(contenders.DIRECTIONS)
        assert set(finding.dtypes) <= set(DTYPES)


def test_goals_are_those_of_maps_that_take_time() -> None:
    goal = goals.Goal(CELL.workload, "float32", "NCHW", "inference", EAGER, 3.0)
    tiny = rows_of(("1x16x16x16", EAGER, "inference", 1.0), ("1x16x16x16", OURS, "inference", 2.0))
    (unknown,) = goals.verdicts(tiny, [goal])
    assert unknown.sizes == 0


def test_host_times_are_a_table() -> None:
    header, *lines = host.host_table(HOST).splitlines()
    assert header.split() == ["bilinear-add-relu", "1x16x16x16", "no", "grad", "with", "grad",
                              "forward+backward"]  # fmt: skip
    assert [line.split()[-2:] for line in lines] == [["30.0", "us"], ["30.0", "us"]]
    assert len({len(line) for line in (header, *lines)}) == 1


# ---------------------------------------------------------------------------- the README's figures


def test_the_readme_has_what_the_command_makes_of_the_committed_files() -> None:
    found, folder = readme.current()
    assert found == readme.block(ROOT, folder), (
        "README.md: run `python -m benchmarks.summary --readme`"
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A README and results of a machine."""
    folder = tmp_path / "results" / "machine"
    rows = [
        measurement(contender, seconds, direction=direction)
        for contender, seconds in ((EAGER, 0.03), (COMPILED, 0.005), (OURS, 0.01))
        for direction in contenders.DIRECTIONS
    ]
    run = results.Run(FACTS, rows, complete=True)
    run.host = HOST
    run.write(folder)
    (folder / "models.json").write_text(json.dumps(MODELS), encoding="utf-8")
    text = "before\n" + readme._BEGIN.format("nowhere") + "\nold\n" + readme._END + "\nafter\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_figures_of_the_readme_are_rewritten(checkout: Path) -> None:
    path = checkout / "README.md"
    folder = checkout / "results" / "machine"
    assert readme.rewrite(folder, path) == "results/machine"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| bilinear-add-relu | float32 | 3.00, 0.50 | 3.00, 0.50 |" in text
    assert "A processor (avx2), 1 thread" in text
    assert "0 are at least as fast as the best peer; slower are" in text
    assert "inference: torch.compile takes 0.50 of msr_cuda's time" in text
    assert f"| {host.FUNCTION} | 10.0 | 20.0 | 30.0 |" in text
    assert "| a-net | 1x3x8x8 | float32 | NCHW | 2 FusedBlock | 500 ms | 400 ms | ~1.25 |" in text
    assert "| 0.90 | 10.0 → 2.0 % | 3 → 2 |" in text
    # Again, from the folder that it names now.
    assert readme.rewrite(None, path) == "results/machine"
    assert path.read_text(encoding="utf-8") == text
    assert readme.current(path)[1] == "results/machine"


def _readme_beside(
    checkout: Path, ending: str, measurements: list[Measurement], wrong: Sequence[str] = ()
) -> str:
    """The README, where a folder of that ending stands beside the machine's."""
    path, folder = checkout / "README.md", checkout / "results" / "machine"
    beside = folder.with_name(folder.name + ending)
    results.Run(FACTS, measurements, wrong=list(wrong), complete=True).write(beside)
    readme.rewrite(folder, path)
    return path.read_text(encoding="utf-8")


def test_the_whole_grid_is_counted_beside(checkout: Path) -> None:
    path, folder = checkout / "README.md", checkout / "results" / "machine"
    readme.rewrite(folder, path)
    assert "Directions of the whole grid" not in path.read_text(encoding="utf-8")
    measurements = [
        measurement(contender, seconds, cell=CELL._replace(size=parse_size(size)))
        for size, eager in (("2x8x64x64", 3.0), ("1x64x64x64", 3.0), ("1x16x16x16", 1.0))
        for contender, seconds in ((EAGER, eager), (OURS, 2.0))
    ]
    text = _readme_beside(checkout, readme.GRID, measurements)
    assert "- float32, large maps: 1 of 1\n- float32, small maps (1x64x64x64): 1 of 1\n" in text
    assert "- float32, tiny maps (1x16x16x16): 0 of 1; the others: the call itself 1\n" in text


def test_cells_of_the_grid_may_be_measured_again(checkout: Path) -> None:
    """What was wrong is said until the cell has been measured."""
    once, twice = (CELL._replace(size=parse_size(size)) for size in ("2x8x64x64", "3x8x64x64"))
    first = [measurement(EAGER, 3.0, cell=twice)] + [
        measurement(contender, seconds, cell=once)
        for contender, seconds in ((EAGER, 1.0), (OURS, 2.0))
    ]
    told = f"{OURS} of {twice}: relative errors"
    text = _readme_beside(checkout, readme.GRID, first, [told])
    assert "- float32, large maps: 0 of 1" in text
    assert f"- not timed: {told}\n" in text
    again = [
        measurement(contender, seconds, cell=twice)
        for contender, seconds in ((EAGER, 3.0), (OURS, 2.0))
    ]
    text = _readme_beside(checkout, f"{readme.GRID}-again", again)
    assert "- float32, large maps: 1 of 2" in text
    assert "not timed" not in text
    assert "results/machine-grid/benchmarks.json)), some cells again by `" in text
    assert "results/machine-grid-again/benchmarks.json)):" in text


def test_what_threads_gain_is_said_beside(checkout: Path) -> None:
    measurements = [
        measurement(contender, seconds, direction=direction, cell=CELL._replace(size=size))
        for size, alone in ((parse_size("2x8x64x64"), 1.5), (parse_size("3x8x64x64"), 1.8))
        for direction in ("inference", "backward")
        for contender, seconds in ((EAGER, 0.5), (OURS_ONE_THREAD, alone), (OURS, 1.0))
    ]
    text = _readme_beside(checkout, readme.THREADS, measurements)
    assert "- inference: 1.65 times as fast as one thread, from 1.50 to 1.80; 0 of 2 at" in text
    assert "- backward: 1.65 times as fast as one thread" in text


def test_only_the_worst_losses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row
        for number in range(3)
        for row in rows_of(
            (f"{number + 1}x1x8x8", EAGER, "inference", 1.0 + 0.1 * number),
            (f"{number + 1}x1x8x8", OURS, "inference", 2.0),
        )
    ]
    monkeypatch.setattr(readme, "MOST_LOSSES", 2)
    lines = readme.losses(rows).splitlines()
    assert lines[2].startswith("- bilinear-add-relu 1x1x8x8")
    assert lines[3].startswith("- bilinear-add-relu 2x1x8x8")
    assert lines[4].startswith("- and 1 more")


def test_readmes_that_cannot_be_rewritten(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkout / "README.md"
    outside = tmp_path_factory.mktemp("outside")
    with pytest.raises(ValueError, match="expected a folder of the checkout"):
        readme.rewrite(outside, path)
    with pytest.raises(FileNotFoundError):
        readme.rewrite(None, path)  # its folder is "nowhere"
    path.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the markers"):
        readme.rewrite(checkout / "results" / "machine", path)
    with pytest.raises(SystemExit):
        summary.main(["--readme", "one", "two"])
    assert "expected one DIR at most" in capsys.readouterr().err
    assert summary.main(["--readme", str(outside)]) == 2


# ---------------------------------------------------------------------------- plots


def test_plots_are_small_pictures(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_or_skip("matplotlib")
    folder = checkout / "results" / "machine"
    assert plots.main([str(folder)]) == 0
    names = ["speedup.png", "roofline.png", "memory.png", "models.png"]
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == names
    for name in names:
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 1000 < len(data) < 200_000
    readme.rewrite(folder, checkout / "README.md")
    assert "[peak memory](results/machine/memory.png)" in (checkout / "README.md").read_text()


def test_plots_of_the_committed_results_are_small(tmp_path: Path) -> None:
    require_or_skip("matplotlib")
    shutil.copy(ROOT / readme.current()[1] / "benchmarks.json", tmp_path)
    written = plots.draw(tmp_path)
    assert [path.name for path in written] == ["speedup.png", "roofline.png", "memory.png"]
    assert all(path.stat().st_size < 200_000 for path in written)


def test_without_matplotlib_there_is_a_hint(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    folder = checkout / "results" / "machine"
    assert plots.draw_if_possible(folder) == ([], plots.HOW_TO_GET_IT)
    assert plots.main([str(folder)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not list(folder.glob("*.png"))


def test_plots_of_nothing_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_or_skip("matplotlib")
    assert plots.main([str(tmp_path)]) == 2
    assert "no results there" in capsys.readouterr().err
    results.Run(FACTS, [measurement(OURS, 0.01)]).write(tmp_path)  # nothing to compare with
    assert [path.name for path in plots.draw(tmp_path)] == ["roofline.png"]


def test_every_peer_has_a_color() -> None:
    assert set(plots._COLORS) == {*contenders.PEERS, OURS}
    assert TUNED in contenders.PEERS


# ---------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_tells_what_is_left() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(3, stream, clock=lambda: now[0])
    assert progress.left is None
    progress.tell("one")
    now[0] = 65.0
    progress.finish_part()
    assert progress.left == 130.0
    progress.tell("two")
    progress.clear()
    assert stream.getvalue() == "[1/3, 0:00] one\n[2/3, 1:05, 2:10 to go] two\n"


def test_progress_on_a_terminal_rewrites_its_line() -> None:
    stream = Terminal()
    progress = Progress(2, stream, clock=lambda: 0.0)
    progress.tell("a long name of something")
    progress.finish_part()
    progress.tell("b")
    progress.clear()
    first, second, last = stream.getvalue().split("\r")[1:4]
    assert first.startswith("[........................] 1/2")
    assert second.startswith("[############............] 2/2")
    assert len(second) >= len(first)  # nothing of the longer line stays
    assert last.isspace()
    assert "\n" not in stream.getvalue()


def test_durations() -> None:
    assert duration(5.4) == "0:05"
    assert duration(3725) == "1:02:05"


def test_markdown_tables_put_numbers_on_the_right() -> None:
    made = texts.markdown(["a", "b"], [["x", "1"]], 1)
    assert made == "| a | b |\n| --- | ---: |\n| x | 1 |"
