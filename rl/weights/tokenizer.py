"""A tokenizer as the files that Hugging Face's tools read."""

import json
from pathlib import Path

from envs.tokenizer import Tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Writes `tokenizer.json`, its configuration with the chat templates, and which tokens end what a model says.

    Returns:
        The names of the files.
    """
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    templates = dict(tokenizer.templates)
    default = templates.pop("default", None)
    named = [{"name": name, "template": template} for name, template in tokenizer.templates.items()]
    special = ("bos_token", "eos_token", "unk_token", "pad_token")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: getattr(tokenizer, name) for name in special if getattr(tokenizer, name)},
        **({"chat_template": named if templates else default} if tokenizer.templates else {}),
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "generation_config.json", {"eos_token_id": list(tokenizer.end_ids)})
    return ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
