"""`rl parity`."""

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from envs.errors import ConfigError, UpswingError
from rl.cli.launch import composed_or_shown, parse
from rl.config import ParityConfig


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    flags = parse("parity", arguments)
    if flags.multirun:
        raise ConfigError("rl parity compares one engine with one model; it takes no -m")
    composed = composed_or_shown("parity", flags)
    if composed is not None:
        parity(composed.config)
    return 0


def parity(config: ParityConfig) -> None:
    """Scores what an engine samples with the trainer's forward pass, and shows how far the two are from each other.

    Raises:
        ConfigError: for sampling that cannot be compared.
        UpswingError: when the largest difference is above `fail_above`.
    """
    from rich.console import Console

    from rl.report.parity import parity_table, write_page

    if config.temperature <= 0 or config.tasks < 1 or config.max_tokens < 1:
        raise ConfigError(
            f"temperature={config.temperature:g} tasks={config.tasks} max_tokens={config.max_tokens}; "
            "expected all above 0 (the greedy tokens are compared as well)"
        )
    folder = Path(config.out or f"runs/parity-{datetime.now():%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    found, name = _measured(config, folder)
    title = f"{name}: {config.inference['name']} beside the trainer"
    note = f"{config.tasks} prompts, temperature {config.temperature:g}, {config.max_tokens} tokens each at most"
    html, png = write_page(folder, found, title, note)
    asked = {"model": name, "engine": config.inference["name"], "temperature": config.temperature, "seed": config.seed}
    (folder / "parity.json").write_text(json.dumps({**asked, **found.summary()}, indent=2) + "\n", "utf-8")
    Console().print(parity_table(found, title))
    print(f"numbers: {folder / 'parity.json'}\nplot:    {html}, {png}")
    if config.fail_above is not None and found.max_abs > config.fail_above:
        raise UpswingError(
            f"the largest difference is {found.max_abs:.3g} nats, above fail_above={config.fail_above:g}: the engine "
            "does not sample from what is trained, or computes it with less precision (dtype, attention backend, "
            "quantisation)"
        )


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measured(config: ParityConfig, folder: Path) -> tuple[Any, str]:
    """The comparison, and what the model is called; `folder` gets the engine's logs."""
    from rl.cli.build import make_environment, make_policy
    from rl.cli.engine import engine_config, open_engine
    from rl.cli.model import model_name, model_of_run
    from rl.inference.engine import TokenSampling
    from rl.inference.parity import measure
    from rl.models.lora import dense

    inference = engine_config(config.inference)
    environment = make_environment(config.env)
    model = config.model if config.run is None else model_of_run(Path(config.run))
    policy = make_policy(model, config.hardware, config.seed)
    tasks = environment.tasks.split(config.split).head(config.tasks)
    prompts = [policy.renderer.prompt(task.prompt) for task in tasks]
    sampling = TokenSampling(
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        stop_ids=tuple(policy.renderer.stop_ids),
        seed=config.seed,
    )

    async def main() -> Any:
        async with open_engine(inference, policy, folder / "sglang", _note) as engine:
            return await measure(engine, policy.model, dense(policy.params), prompts, sampling)

    return asyncio.run(main()), config.run or model_name(model)


if __name__ == "__main__":
    from rl.cli.main import main

    sys.exit(main(["parity", *sys.argv[1:]]))
