"""`-m`: every combination of the values given, through Hydra's own sweepers and launchers, plug-ins included."""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from envs.errors import UpswingError
from rl.cli import overrides
from rl.cli.compose import SCHEMAS, as_trained, convert, register, sweep_directory, with_named
from rl.cli.conf import CONF, choice
from rl.cli.explain import explained
from rl.cli.launch import experiment


def sweep(verb: str, settings: Sequence[str]) -> int:
    """Run every combination, each in a directory of its own, and print how they compare.

    Args:
        verb: "train", "sft" or "eval".
        settings: the overrides; those with several values are varied.

    Returns:
        The exit code: 1 if a run failed.

    Raises:
        ConfigError: if a combination does not fit, before any is run.
    """
    settings = as_trained(verb, settings)
    shared = overrides.fixed(settings)
    directory = sweep_directory(verb, shared)
    unnamed = ",".join(
        override.key_or_group for override in overrides.parse(shared) if not override.is_hydra_override()
    )
    hydra_settings = [
        f"hydra.sweep.dir='{directory}'",
        "hydra.output_subdir=null",  # each run writes its own config
        f"hydra.job.config.override_dirname={{exclude_keys:[{unnamed}],item_sep:' '}}",  # a run's name: what is varied
    ]
    try:
        _multirun(verb, [*settings, *hydra_settings])
    finally:  # after Ctrl-C too: what is done is done
        failed = _show(directory)
    return 1 if failed else 0


def _multirun(verb: str, settings: Sequence[str]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, instead of printing and leaving the process
    register(verb)
    entry = hydra.main(config_path=str(CONF), config_name=verb, version_base="1.3")(job)
    with explained(verb, SCHEMAS), _command_line([f"rl {verb}", "--multirun", *settings]):
        with_named(entry)


def job(settings: DictConfig) -> None:
    """One run of a sweep. If it fails, its directory says so and the others go on."""
    this = HydraConfig.get()
    verb, directory = this.job.config_name, Path(os.path.relpath(this.runtime.output_dir))
    assert verb is not None
    print(f"\nrun {this.job.num} of the sweep: {this.job.override_dirname}", flush=True)
    OmegaConf.update(settings, "run_dir", str(directory))
    try:
        config, text = convert(verb, settings)
        experiment(verb)(config, text)
    except Exception as error:  # noqa: BLE001 - recorded and shown; the exit code of the sweep tells
        _record_failure(directory, OmegaConf.to_yaml(settings), error)


def _record_failure(directory: Path, text: str, error: Exception) -> None:
    """Print an error and write it to the run directory, as status "failed" in `run.json`."""
    if isinstance(error, UpswingError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    config, info = directory / "config.yaml", directory / "run.json"
    if not config.exists():
        config.write_text(text, "utf-8")
    known = json.loads(info.read_text("utf-8")) if info.exists() else {}
    failure = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    info.write_text(json.dumps({**known, **failure}, indent=2), "utf-8")


def _show(directory: Path) -> bool:
    """Print the table of a sweep and write its report; tells whether a run failed."""
    if not any(directory.glob("*/run.json")):
        _remove_empty(directory)
        return False

    from rich.console import Console

    from rl.report import compare_table, find_runs, read_run, write_sweep_report

    runs = find_runs(directory)
    console = Console()
    console.print(compare_table(runs, choice))
    console.print(f"report: {write_sweep_report(directory, choice).html}", soft_wrap=True)
    failed = [run for run in runs if read_run(run, rollouts=False).status == "failed"]
    for run in failed:
        console.print(f"[red]failed:[/red] {run}", soft_wrap=True)
    return bool(failed)


def _remove_empty(directory: Path) -> None:
    """Remove the directory of a sweep that did not begin: it holds nothing but Hydra's record of the command."""
    if [file.name for file in directory.glob("*")] == ["multirun.yaml"]:
        (directory / "multirun.yaml").unlink()
        directory.rmdir()


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Let `hydra.main` read these arguments in place of the process's own."""
    given = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = given
