"""Who teaches in `algorithm=opd`."""

from pathlib import Path

import pytest

from envs.errors import ConfigError
from rl.cli.main import main

SMALL = ["env=reverse_text", "model.layers=1", "model.width=16", "model.heads=1", "model.kv_heads=1", "model.ffn=16"]
RUN = [*SMALL, "model.context=32", "sampling.max_tokens=8", "pack.row_length=32", "prompts=2", "group_size=2"]
RUN += ["steps=1", "eval.tasks=2", "pack.rows_per_microbatch=4", "inference.slots=4"]


def test_a_student_learns_from_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *RUN, "algorithm=opd"]) != 0
    assert (
        "algorithm=opd learns from a teacher, and there is none; name one with teacher.run" in capsys.readouterr().err
    )
    assert main(["sft", *SMALL, "model.context=64", "steps=1", "batch=2", "run_dir=wise", "seed=5"]) == 0
    assert main(["train", *RUN, "algorithm=opd", "teacher.run=wise", "run_dir=run"]) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"kl_teacher": ' in rows and '"nonfinite": 0.0' in rows


def test_only_one_teacher_and_only_of_the_same_tokens(tmp_path: Path) -> None:
    from rl.cli.build import make_policy, make_teacher
    from rl.config import HardwareConfig, ModelConfig, TeacherConfig

    small = ModelConfig(name="llama", layers=1, width=16, heads=1, kv_heads=1, ffn=16, context=8)
    policy = make_policy(small, HardwareConfig(), seed=0)
    assert make_teacher(TeacherConfig(), policy, HardwareConfig()) is None
    with pytest.raises(ConfigError, match=r"teacher\.run=a and teacher\.source=b; leave one of them out"):
        make_teacher(TeacherConfig(run="a", source="b"), policy, HardwareConfig())
