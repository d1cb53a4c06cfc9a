"""Run directories: made once, taken up again only as they were, never two writers, never somebody else's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from envs.errors import ConfigError, UpswingError
from rl.run_dir import RunDir, same_config

CONFIG = "seed: 1\nsteps: 10\noptimizer:\n  lr: 0.1\nrun_dir: null\nresume: false\n"


def begin(path: Path | None, config: str = CONFIG, *, resume: bool = False, root: Path | None = None) -> RunDir:
    return RunDir.open(path, "words", config, resume=resume, root=root or Path("unused"))


def test_a_new_run_writes_its_config_and_status(tmp_path):
    run = begin(tmp_path / "a")
    run.describe(parameters=12)
    run.close()
    assert (tmp_path / "a" / "config.yaml").read_text() == CONFIG
    info = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (info["status"], info["parameters"]) == ("running", 12)
    assert info["machine"]["cores"] >= 1 and info["versions"]["jax"]


def test_folders_without_a_given_path_are_numbered(tmp_path):
    paths = []
    for _ in range(3):
        run = begin(None, root=tmp_path)
        paths.append(run.path.name)
        run.close()
    assert paths == ["words", "words-2", "words-3"]


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UpswingError, match=r"holds thesis\.tex, but no run; name an empty or new folder"):
        begin(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_fine(tmp_path):
    begin(tmp_path).close()


def test_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UpswingError, match="is a file; expected a folder"):
        begin(tmp_path / "x")


def test_a_begun_run_is_not_begun_again(tmp_path):
    run = begin(tmp_path / "a")
    run.status("interrupted")
    run.close()
    with pytest.raises(UpswingError, match=r"already holds a run \(interrupted\); continue it with resume=true"):
        begin(tmp_path / "a")


def test_resume_takes_the_newest_unfinished_run_with_this_config(tmp_path):
    for name, config, status in [("other", CONFIG.replace("0.1", "0.2"), "failed"), ("this", CONFIG, "running")]:
        run = begin(tmp_path / name, config)
        run.status(status)
        run.close()
    done = begin(tmp_path / "done")
    done.status("finished")
    done.close()
    resumed = begin(None, CONFIG.replace("resume: false", "resume: true"), resume=True, root=tmp_path)
    assert resumed.path == tmp_path / "this"
    resumed.close()


def test_nothing_to_resume_says_what_differs(tmp_path):
    run = begin(tmp_path / "a")
    run.status("interrupted")
    run.close()
    with pytest.raises(UpswingError, match=r"the newest unfinished one, .*a, differs in optimizer\.lr"):
        begin(None, CONFIG.replace("0.1", "0.3"), resume=True, root=tmp_path)
    with pytest.raises(UpswingError, match="no unfinished run below"):
        begin(None, resume=True, root=tmp_path / "nowhere")


def test_resuming_with_another_config_names_both_values(tmp_path):
    begin(tmp_path / "a").close()
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.1, now 0\.3"):
        begin(tmp_path / "a", CONFIG.replace("0.1", "0.3"), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_before_it_made_anything_begins_anew_with_mended_settings(tmp_path, resume):
    run = begin(tmp_path / "a")
    run.describe(parameters=12)
    run.status("failed", "no server at this address")
    run.close()
    mended = begin(tmp_path / "a", CONFIG.replace("0.1", "0.3"), resume=resume)
    assert "lr: 0.3" in (tmp_path / "a" / "config.yaml").read_text()
    mended.log("train", 1, {"reward": 1.0})
    mended.status("failed", "out of disk")
    mended.close()
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.3, now 0\.1"):
        begin(tmp_path / "a", resume=True)


def test_a_finished_run_is_not_resumed(tmp_path):
    run = begin(tmp_path / "a")
    run.status("finished")
    run.close()
    with pytest.raises(UpswingError, match=r"is finished; see it with: rl report"):
        begin(tmp_path / "a", resume=True)


def test_two_processes_cannot_write_to_one_run(tmp_path):
    run = begin(tmp_path / "a")
    script = (
        "import sys; from pathlib import Path; from rl.run_dir import RunDir; "
        f"RunDir.open(Path(sys.argv[1]), 'x', {CONFIG!r}, resume=True)"
    )
    other = subprocess.run([sys.executable, "-c", script, str(run.path)], capture_output=True, text=True)
    assert "is in use by another process (pid" in other.stderr
    run.close()


def test_what_will_be_done_again_is_forgotten_torn_line_included(tmp_path):
    run = begin(tmp_path / "a")
    for step in (1, 2, 3):
        run.log("warm_start", step, {"loss": 1.0 / step, "seconds": 0.5})
        run.log("train", step, {"reward": step, "seconds": 2.0})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "tr')
    run.forget("train", after=1)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("warm_start", 1),
        ("train", 1),
        ("warm_start", 2),
        ("warm_start", 3),
    ]
    assert (run.seconds("train"), run.seconds("warm_start")) == (2.0, 1.5)
    run.close()


def test_only_what_a_run_is_is_compared():
    assert same_config({"a": {"b": 1}, "run_dir": "x"}, {"a": {"b": 2}, "run_dir": "y"}) == ["a.b"]
    assert same_config({"a": 1}, {"a": 1, "new": None}) == ["new"]
