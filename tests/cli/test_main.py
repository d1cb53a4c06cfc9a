"""What the command line answers: pages that teach, errors that name the key, the value, the type and the way out."""

import subprocess
import sys
from pathlib import Path

import pytest

from envs.resolve import list_environments
from rl.cli import conf
from rl.cli.main import VERBS, main

TRAIN_KEYS = (
    "algorithm, checkpoint, env, epochs, eval, experiment, group_size, hardware, inference, lockstep, max_staleness, "
    "minibatches, mix, model, optimizer, pack, prompts, resume, run_dir, sampling, seed, selection, step_timeout, "
    "steps, teacher, warm_start"
)
OPTIMIZER_KEYS = (
    "optimizer.b1, optimizer.b2, optimizer.decay, optimizer.eps, optimizer.expert_bias_rate, optimizer.final_lr, "
    "optimizer.groups, optimizer.lr, optimizer.max_grad_norm, optimizer.momentum, optimizer.name, optimizer.nesterov, "
    "optimizer.rms, optimizer.schedule, optimizer.warmup, optimizer.weight_decay"
)

ENVIRONMENTS = ", ".join(info.name for info in list_environments())

CONFIG_ERRORS = {
    "optimizer.lrr=1": "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr' or 'optimizer.rms' or "
    f"'optimizer.b2'?; known: {OPTIMIZER_KEYS}",
    "+optimizer.z=1": "unknown key 'optimizer.z'; did you mean 'optimizer.lr' or 'optimizer.b2' or 'optimizer.b1'?; "
    f"known: {OPTIMIZER_KEYS}",
    "lr=1": f"unknown key 'lr'; known: {TRAIN_KEYS}; there is optimizer.lr and warm_start.lr",
    "client=openai": "unknown key 'client'; did you mean 'experiment' or 'checkpoint'?; "
    f"known: {TRAIN_KEYS}; it is a setting of rl eval and rl chat",
    "algoritm=grpo": f"unknown key 'algoritm'; did you mean 'algorithm'?; known: {TRAIN_KEYS}",
    "algorithm=gpro": "unknown algorithm 'gpro'; did you mean 'gspo' or 'grpo' or 'gmpo'?; "
    f"known: {', '.join(conf.options('algorithm'))}; see rl train --help",
    "model=huge": "unknown model 'huge'; known: smollm2_135m, tiny, tiny_qwen3; see rl train --help",
    "hardware=cpu9": "unknown hardware 'cpu9'; did you mean 'cpu' or 'cpu8'?; "
    "known: cpu, cpu8, gpu_1, gpu_8, tpu_v5e_8; see rl train --help",
    "optimizer=3": "unknown optimizer '3'; known: adamw, muon, sgd, sign",
    "env=revrse_text": "unknown environment 'revrse_text'; did you mean 'reverse_text'?; "
    f"known: {ENVIRONMENTS}; a folder is given as a path, like ./my_environment",
    "optimizer.lr=abc": "optimizer.lr is 'abc'; expected a number, for example optimizer.lr=0.0003",
    "optimizer.lr=null": "optimizer.lr is null; expected a number, for example optimizer.lr=0.0003",
    "optimizer.lr.x=1": "optimizer.lr has no keys of its own; expected a number, for example optimizer.lr=0.0003",
    "steps=1.5": "steps is 1.5; expected a whole number, for example steps=100",
    "resume=maybe": "resume is 'maybe'; expected true or false, for example resume=false",
    "hardware.mesh.data=x": "hardware.mesh.data is 'x'; expected a whole number, for example hardware.mesh.data=1",
    "~optimizer.lr": "cannot delete 'optimizer.lr': every run has it; give it another value",
    "steps=${foo}": "steps: Interpolation key 'foo' not found",
    "reverse_text": "cannot read the argument 'reverse_text'; expected KEY=VALUE, for example env=reverse_text",
    "run_dir=a=b": "cannot read the argument 'run_dir=a=b': unexpected '='; "
    "a text with special characters needs quotes inside quotes: 'run_dir=\"a=b\"'",
    "seed=1,2": "'seed=1,2' lists several values; add -m to run them all, or write a list as [a,b] "
    "or a text as 'seed=\"a,b\"'",
    "--seed=1": "unknown flag '--seed=1'; settings are written KEY=VALUE without dashes, for example seed=1; "
    "see rl train --help",
}


@pytest.mark.parametrize("setting", CONFIG_ERRORS)
def test_a_setting_that_does_not_fit_is_explained(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", setting]) == 2
    assert capsys.readouterr().err == f"error: {CONFIG_ERRORS[setting]}\n"


EXPERIMENTS = {
    "optimizer: {lr: abc}": "optimizer.lr is 'abc'; expected a number, for example optimizer.lr=0.0003; "
    "in experiment/mine.yaml",
    "optimizer: {bs: 1}": "unknown key 'optimizer.bs'; did you mean 'optimizer.b2' or 'optimizer.b1' or "
    f"'optimizer.rms'?; known: {OPTIMIZER_KEYS}; in experiment/mine.yaml",
    "defaults: [{override /algorithm: gpro}]": "unknown algorithm 'gpro'; did you mean 'gspo' or 'grpo' or 'gmpo'?; "
    f"known: {', '.join(conf.options('algorithm'))}; see rl train --help",
    "defaults: [{env: wordle}]": "an experiment chooses from a group with a slash: "
    "`- override /env: NAME` under `defaults:`",
    "defaults: [{override env: wordle}]": "an experiment chooses from a group with a slash: "
    "`- override /env: NAME` under `defaults:`",
}


@pytest.mark.parametrize("content", EXPERIMENTS)
def test_a_mistake_in_a_file_is_explained(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    assert main(["train", "experiment=mine", "--config-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {EXPERIMENTS[content]}\n"


def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsteps: [\n")
    assert main(["train", "experiment=mine", "--config-dir", str(tmp_path)]) == 2
    assert f'in "{tmp_path}/experiment/mine.yaml", line 3' in capsys.readouterr().err


def test_a_config_dir_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config-dir", "nowhere"]) == 2
    expected = "error: --config-dir nowhere is no folder; expected one with groups in it, like experiment/\n"
    assert capsys.readouterr().err == expected


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    known = ", ".join(sorted(VERBS))
    expected = f"error: unknown verb 'trian'; did you mean 'train'?; known: {known}; see rl --help\n"
    assert capsys.readouterr().err == expected


def test_the_help_page_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == page
    for verb in VERBS:
        assert f"\n  {verb} " in page


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"usage: rl {verb}" in page and f"\n  rl {verb}" in page


HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "pyarrow", "scipy", "numpy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["chat", "--help"],
        ["train", "experiment=reverse_text", "seed=2", "--cfg", "job"],
        ["report", "--help"],
    ],
)
def test_help_and_config_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = f"""if True:
        import sys
        from rl.cli.main import main
        assert main({arguments!r}) == 0
        heavy = {HEAVY!r} & {{name.partition(".")[0] for name in sys.modules}}
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_same_command_anywhere(tmp_path: Path) -> None:
    """Also where a folder `conf` of someone else lies in the way; and nothing is left behind."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("foreign: true\n")
    command = [sys.executable, "-m", "rl.cli.train", "seed=3", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed: 3\n" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
