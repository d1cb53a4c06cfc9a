import base64
import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from envs.errors import UpswingError
from envs.record import Journal
from envs.types import Completion, Task, Trajectory, Turn
from rl.report import compare_table, find_runs, read_run, summary_table, write_report, write_sweep_report
from rl.report.chart import Axes, Chart, Line, axes, figure, smooth, thin, tick_label, ticks
from rl.report.comparison import differences, label, no_choices
from rl.report.examples import choose, pair_up
from rl.report.text import escape, flatten, interval, printable, score, signed

spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).with_name("fake_run.py"))
fake_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_run)

VOID = {"meta", "link", "path", "br"}


class Structure(HTMLParser):
    """Every tag with its attributes; fails on tags that are not closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def show(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def run(tmp_path):
    return fake_run.build_run(tmp_path / "run", steps=40, tasks=32)


def test_the_page_is_complete_and_needs_nothing_but_itself(run):
    paths = write_report(run)
    assert (paths.html, paths.png) == (run / "report.html", run / "reward.png")
    html = paths.html.read_text(encoding="utf-8")
    assert "http://" not in html and "https://" not in html
    assert re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", html) is None
    page = Structure(html)
    loads = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset", "action") if key in attrs]
    assert loads == ["data:,"]
    assert {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "form", "base"} == set()
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    order = ["exact_match on held-out arithmetic tasks", "gain is paired", "Reward", "How it learned", "entropy"]
    order += ["policy KL", "throughput", "Held-out rollouts", "most improved", "Configuration", "Machine and versions"]
    places = [page.words.index(words) for words in order]
    assert places == sorted(places)
    assert paths.png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_numbers_are_those_of_the_summary(run):
    summary = {
        "before": {"solved": 0.3125, "ci95": [0.25, 0.3755], "reward": 0.5, "reward_ci95": [0.45, 0.55], "tasks": 256},
        "after": {"solved": 0.6875, "ci95": [0.62, 0.74], "reward": 0.75, "reward_ci95": [0.7, 0.8], "tasks": 256},
        "gain": {"solved": 0.375, "ci95": [0.3105, 0.4395]},
        "metric": "solved",
        "train_seconds": 125.0,
        "steps": 40,
        "seed": 7,
        "run_dir": "runs/x",
    }
    (run / "summary.json").write_text(json.dumps(summary))
    words = Structure(write_report(run).html.read_text()).words
    assert (
        "40 updates of grpo took a model of 842k parameters from 0.312 to 0.688 solved on held-out arithmetic tasks: "
        "a gain of +0.375 (95 % interval +0.310 to +0.440)." in words
    )
    assert "solved 0.312 0.250 to 0.376 0.688 0.620 to 0.740 +0.375 +0.310 to +0.440" in words
    assert "reward 0.500 0.450 to 0.550 0.750 0.700 to 0.800 +0.250" in words
    table = show(summary_table(summary))
    assert re.search(r"solved +│ +0\.312 │ +0\.688 │ +\+0\.375", table)
    assert re.search(r"0\.250 to 0\.376 │ 0\.620 to 0\.740 │ \+0\.310 to \+0\.440", table)
    assert re.search(r"reward +│ +0\.500 │ +0\.750 │ +\+0\.250", table)
    assert "256 held-out tasks, 95 % intervals" in table


@pytest.mark.parametrize(
    ("bounds", "words"),
    [([-0.02, 0.06], "no clear change, +0.020"), ([0.001, 0.04], "a gain of +0.020"), (None, "a difference of +0.020")],
)
def test_the_headline_claims_no_more_than_the_interval_shows(run, bounds, words):
    summary = {"metric": "solved", "before": {"solved": 0.5}, "after": {"solved": 0.52}}
    summary["gain"] = {"solved": 0.02, "ci95": bounds}
    (run / "summary.json").write_text(json.dumps(summary))
    assert words in Structure(write_report(run).html.read_text()).words


def test_a_loss_is_called_a_loss(run):
    summary = {"metric": "solved", "before": {"solved": 0.5}, "after": {"solved": 0.25}}
    summary["gain"] = {"solved": -0.25, "ci95": [-0.3, -0.2]}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "a loss of −0.250 (95 % interval −0.300 to −0.200)" in Structure(write_report(run).html.read_text()).words


def test_hostile_text_stays_text(tmp_path):
    run = fake_run.build_run(tmp_path / "<img src=x onerror=alert(2)>", steps=5, tasks=16, hostile=True)
    row = fake_run.train_row(6, 6, fake_run.random.Random(0), 0.5) | {"</script><svg onload=alert(3)>": 1.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    html = write_report(run).html.read_text(encoding="utf-8")
    page = Structure(html)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert {tag for tag, _ in page.tags} & {"img", "b<", "iframe"} == set()
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert "</script><img src=x onerror=alert(1)><!-- </pre></style>" in page.words  # shown, not obeyed
    assert html.count("alert(1)") == html.count("&lt;img src=x onerror=alert(1)&gt;") > 4
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', html).group(1)
    assert "<" not in data and json.loads(data)


def test_hostile_names_do_not_reach_the_terminal(tmp_path):
    for seed in (0, 1):
        fake_run.build_run(tmp_path / f"[red]{seed}", steps=3, tasks=4, env__name=f"\x1b[31m[bold]{seed}")
    table = show(compare_table(find_runs(tmp_path)), width=160)
    assert "\x1b" not in table and "[red]0" in table and "␛[31m[bold]1" in table
    assert "\x1b" not in show(summary_table({"metric": "\x1b[2J[bold]x", "before": {"\x1b[2J[bold]x": 1.0}}))


def test_a_run_at_work_is_reported_as_far_as_it_is(tmp_path):
    run = fake_run.build_run(tmp_path / "run", status="running", done=7, steps=40, tasks=20)
    words = Structure(write_report(run).html.read_text()).words
    assert "grpo on arithmetic, in progress: 7 of 40 updates with a model of 842k parameters, which began at" in words
    assert "This run has not finished" in words and "Held-out rollouts, before training" in words
    right = sum(rollout.metrics["exact_match"] for rollout in read_run(run).before)
    assert f"exact_match {right / 20:.3f}" in words


def test_a_run_that_has_only_begun(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(fake_run.config()))
    (run / "run.json").write_text(json.dumps({"status": "running"}))
    paths = write_report(run)
    words = Structure(paths.html.read_text()).words
    assert "No training update has been logged yet." in words
    assert "No evaluation on held-out tasks yet." in words
    assert paths.png.is_file()


def test_a_failed_run_shows_its_error(tmp_path):
    run = fake_run.build_run(tmp_path / "run", status="failed", done=3, tasks=4)
    assert "This run failed: EngineError: no answer for 60 s" in Structure(write_report(run).html.read_text()).words


def test_a_torn_last_line_is_skipped(run):
    for name in ("metrics.jsonl", "evals/after.jsonl"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-40])
    assert read_run(run).updates == 39
    assert len(read_run(run).after) == 31
    write_report(run)


def test_a_damaged_line_is_named(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UpswingError, match=r"metrics\.jsonl, line 5, is damaged: .*expected one JSON object per line"):
        write_report(run)


def test_a_line_that_is_no_metrics_row_is_named(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": "one"}\n')
    with pytest.raises(UpswingError, match=r'line 81: found {"step": "one"}; expected an object with "stage"'):
        read_run(run)


def test_a_line_that_is_no_trajectory_is_named(run):
    (run / "evals" / "before.jsonl").write_text('{"task": {"id": "a"}}\n')
    with pytest.raises(UpswingError, match=r"before\.jsonl:1 is damaged \(KeyError: 'keys'\)"):
        read_run(run)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [1"), ("run.json", "{"), ("summary.json", "[]")])
def test_a_damaged_file_is_named(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(UpswingError, match=rf"{re.escape(name)} is damaged: "):
        read_run(run)


def test_a_folder_that_is_no_run_says_what_is_there_and_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "src").mkdir()
    with pytest.raises(UpswingError) as caught:
        write_report(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a run directory: found notes.txt, src/; expected config.yaml and run.json (config.yaml and "
        "run.json are missing). Name a directory that `rl train` wrote, by default below runs/"
    )


def test_a_folder_of_runs_points_to_one(tmp_path):
    run = fake_run.build_run(tmp_path / "runs" / "a", steps=2, tasks=2)
    with pytest.raises(UpswingError, match=rf"It contains 1 of them, for example {re.escape(str(run))}"):
        read_run(tmp_path / "runs")


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(UpswingError, match="nothing does not exist; expected the directory of a run"):
        write_report(tmp_path / "nothing")


def test_values_that_are_no_numbers_leave_gaps(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, value in zip(rows[-6:], [float("nan"), float("inf"), None, "text", 1e300, -1e300], strict=True):
        row["entropy"] = row["reward"] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(run).html.read_text()
    assert re.search(r"\b(nan|inf)\b", " ".join(re.findall(r' d="([^"]*)"', html))) is None
    assert json.loads(re.search(r'id="charts">(.*?)</script>', html).group(1))


def test_a_formula_in_a_name_is_not_typeset(tmp_path):
    run = fake_run.build_run(tmp_path / "$x^$", steps=4, tasks=4)
    (run / "run.json").write_text(json.dumps({"status": "running", "environment": {"name": r"$\frac{1$ 漢字"}}))
    write_report(run)


def test_a_sweep_has_a_row_per_run_that_tells_how_it_differs(tmp_path):
    for lr in (1e-4, 1e-3):
        for seed in (0, 1):
            path = tmp_path / f"{lr},{seed}"
            fake_run.build_run(path, steps=10, tasks=16, seed=seed, optimizer__lr=lr, run_dir=str(path))
    fake_run.build_run(tmp_path / "broken", steps=10, done=2, tasks=4, status="failed", optimizer__lr=0.5)
    write_report(tmp_path / "0.001,1")
    table = show(compare_table(find_runs(tmp_path)))
    head = next(line for line in table.splitlines() if "before" in line)
    assert head.split() == ["run", "settings", "before", "after", "gain"]
    assert re.search(r"broken +lr=0\.5 +0\.\d{3} +failed +– *\n +seed=0 ", table)
    summary = json.loads((tmp_path / "0.001,1" / "summary.json").read_text())
    before, after, gain = (summary[when]["exact_match"] for when in ("before", "after", "gain"))
    assert re.search(rf"0\.001,1 +lr=0\.001 +{before:.3f} +{after:.3f} +\+{gain:.3f} *\n +seed=1 ", table)

    paths = write_sweep_report(tmp_path)
    page = Structure(paths.html.read_text())
    assert paths.png.is_file()
    assert "5 runs of arithmetic; the best reached" in page.words
    assert f"0.001,1 0.001 1 {before:.3f}" in page.words and "optimizer.lr" in page.words
    assert [attrs["href"] for _, attrs in page.tags if "href" in attrs] == ["data:,", "0.001,1/report.html"]
    chart = json.loads(re.search(r'id="charts">(.*?)</script>', paths.html.read_text()).group(1))[0]
    assert {line["name"] for line in chart["series"]} == {
        "lr=0.0001, seed=0",
        "lr=0.0001, seed=1",
        "lr=0.001, seed=0",
        "lr=0.001, seed=1",
        "lr=0.5, seed=0",
    }


CHOICES = {
    "grpo": {"name": "grpo", "clip_low": 0.2, "clip_high": "2e-1", "normalise_std": True, "kl": None},
    "gspo": {"name": "gspo", "clip_low": 3e-4, "clip_high": "4e-4", "normalise_std": True, "kl": "${optimizer.lr}"},
}


def choose_algorithm(section, name):
    return CHOICES.get(name) if section == "algorithm" else None


def build_choice(path, choice, **changes):
    own = {key: float(value) if key.startswith("clip") else value for key, value in CHOICES[choice].items()}
    if own["kl"]:
        own["kl"] = 3e-4
    settings = {f"algorithm__{key}": value for key, value in (own | changes).items()}
    fake_run.build_run(path, steps=3, tasks=4, **settings)


def labels(directory, choices=choose_algorithm):
    runs = [read_run(path) for path in find_runs(directory)]
    found = differences(runs, choices)
    return found.keys, [label(run, values) for run, values in zip(runs, found.rows, strict=True)]


def test_what_follows_from_a_choice_is_not_what_sets_runs_apart(tmp_path):
    build_choice(tmp_path / "a", "grpo")
    build_choice(tmp_path / "b", "gspo")
    assert labels(tmp_path) == (["algorithm"], ["algorithm=grpo", "algorithm=gspo"])
    table = show(compare_table(find_runs(tmp_path), choose_algorithm))
    assert "algorithm=gspo" in table and "clip_low" not in table
    everything = ["algorithm.name", "algorithm.clip_low", "algorithm.clip_high", "algorithm.kl"]
    assert labels(tmp_path, no_choices)[0] == everything


def test_what_somebody_set_beside_a_choice_is_shown(tmp_path):
    build_choice(tmp_path / "a", "grpo")
    build_choice(tmp_path / "b", "gspo", clip_low=0.1)
    build_choice(tmp_path / "c", "gspo", kl=0.5, clip_low=0.1)
    keys, found = labels(tmp_path)
    assert keys == ["algorithm", "algorithm.clip_low", "algorithm.kl"]
    assert found == [
        "algorithm=grpo, clip_low=0.2, kl=null",
        "algorithm=gspo, clip_low=0.1, kl=0.0003",
        "algorithm=gspo, clip_low=0.1, kl=0.5",
    ]


def test_a_choice_that_is_not_known_hides_nothing(tmp_path):
    build_choice(tmp_path / "a", "grpo")
    build_choice(tmp_path / "b", "gspo", name="mine")
    assert labels(tmp_path)[0] == ["algorithm.name", "algorithm.clip_low", "algorithm.clip_high", "algorithm.kl"]


def test_a_sweep_without_runs(tmp_path):
    with pytest.raises(
        UpswingError, match=r"contains no run directory; expected folders with config\.yaml and run\.json"
    ):
        write_sweep_report(tmp_path)
    with pytest.raises(UpswingError, match="no run directories to compare"):
        compare_table([])


def test_examples_pair_tasks_and_lead_with_what_changed():
    before = [fake_run.trajectory(i, i in (0, 1)) for i in range(20)]
    after = [fake_run.trajectory(i, i not in (0, 5)) for i in reversed(range(20))]
    groups = choose(pair_up(before, after, "exact_match"))
    ids = {name: [pair.before.task.id for pair in group] for name, group in groups.items()}
    assert ids["most improved"] == ["eval-0002", "eval-0003", "eval-0004", "eval-0006"]
    assert ids["got worse"] == ["eval-0000"]
    assert len(ids["drawn at random"]) == 4
    assert len({*ids["most improved"], *ids["got worse"], *ids["drawn at random"]}) == 9


def test_a_failed_rollout_is_never_a_change():
    before = [fake_run.trajectory(0, True)]
    after = [fake_run.trajectory(0, False, failure=True)]
    (pair,) = pair_up(before, after, "exact_match")
    assert pair.change == (0.0, 0.0) and pair.value_after is None


def test_a_conversation_shows_its_tool_calls_and_cuts_long_results(run):
    task = Task.ask("t", "Who won?", {"name": "Garin"})
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "<b>"}'}}
    asked = Completion({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")
    result = {"role": "tool", "content": "x" * 5000, "tool_call_id": "1"}
    answer = Completion({"role": "assistant", "content": "Garin"}, "stop")
    turns = [Turn(task.prompt, asked, True), Turn((result,), answer, False)]
    rollout = Trajectory(task, turns=turns, stop="max_turns", reward=1.0, metrics={"exact_match": 1.0})
    (run / "evals" / "before.jsonl").unlink()
    with Journal(run / "evals" / "before.jsonl") as journal:
        journal.append(rollout)
    (run / "evals" / "after.jsonl").unlink()
    html = write_report(run).html.read_text()
    assert '<span class="call">search</span>({&quot;query&quot;: &quot;&lt;b&gt;&quot;})' in html
    assert "… 4,400 characters …" in html and "<pre>Garin</pre>" in html and "· max_turns" in html
    assert "{&quot;name&quot;: &quot;Garin&quot;}" in html


def test_text_helpers():
    assert printable("a\x1b[0m\u202eb\ud800\t\n\x85") == "a␛[0m⟨U+202E⟩b\ufffd\t\n⟨U+0085⟩"
    assert escape("<a href=\"x\" title='y'>&") == "&lt;a href=&quot;x&quot; title=&#x27;y&#x27;&gt;&amp;"
    assert [score(v) for v in (0.3125, -1, 12345, None, float("nan"), "x")] == [
        "0.312",
        "−1.000",
        "12.3k",
        "–",
        "–",
        "–",
    ]
    assert [signed(v) for v in (0.25, -0.25, 0, None)] == ["+0.250", "−0.250", "+0.000", "–"]
    assert interval([0.25, 0.5]) == "0.250 to 0.500" and interval([-0.1, 0.2], sign=True) == "−0.100 to +0.200"
    assert interval(None) == interval([None, None]) == interval([0.1]) == ""
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_chart_geometry():
    assert smooth([0.0, 3.0, 6.0, float("nan")], 3) == [1.5, 3.0, 4.5, 6.0]
    assert thin([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], most=2) == ([2, 4], [2.0, 6.0])
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.013, 0.041, 4) == pytest.approx([0.02, 0.03, 0.04])
    assert [tick_label(v, 0.2) for v in (0.0, 0.4, -0.2)] == ["0", "0.4", "−0.2"]
    assert [tick_label(v, 2500) for v in (2500, 10_000, 1_500_000)] == ["2.5k", "10k", "1.5M"]
    area = axes(Chart("c", "", [Line("l", [1, 100], [0.5, 1.0])]))
    assert area == Axes(0.0, 100, 0.47, 1.03)
    constant = axes(Chart("c", "", [Line("l", [1, 2], [0.2, 0.2 + 1e-15])]))
    assert (constant.y0, constant.y1) == pytest.approx((0.18, 0.22))
    html = figure(Chart("c", "u", [Line("l", [0, 50, 100], [0.0, float("nan"), 1.0])]), 0)
    assert 'd="M0.0 1000.0h0M1000.0 56.6h0"' in html


def test_reports_load_neither_jax_nor_matplotlib_until_they_draw():
    code = "import rl.report, rl.progress, sys; print([m for m in ('jax', 'hydra', 'matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
