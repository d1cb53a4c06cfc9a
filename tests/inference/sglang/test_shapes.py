import json
from dataclasses import replace
from pathlib import Path

import pytest

from envs.errors import ConfigError
from rl.inference.sglang.publish.shapes import check_shape
from rl.models.base import DecoderConfig, Rope
from rl.models.llama import FAMILY

OURS = DecoderConfig(vocab_size=264, layers=2, width=32, heads=4, kv_heads=2, ffn=48, context=64)
URL = "http://there:30000"


def served(folder: Path, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps({**FAMILY.write_config(OURS), **changes}))
    return folder


def test_the_same_model_may_have_more_context(tmp_path: Path) -> None:
    check_shape(FAMILY, OURS, served(tmp_path), URL)
    check_shape(FAMILY, replace(OURS, context=32, compute_dtype="bfloat16"), served(tmp_path), URL)


def test_what_cannot_be_seen_is_not_judged(tmp_path: Path) -> None:
    check_shape(FAMILY, OURS, tmp_path / "elsewhere", URL)
    check_shape(FAMILY, OURS, Path("some-lab/some-model"), URL)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (
            replace(OURS, ffn=64),
            "at http://there:30000 serves .* not the model that is trained: ffn is 48, not 64. Start",
        ),
        (replace(OURS, ropes=(Rope(5.0),)), r"ropes is \(Rope\(theta=10000\.0.*, not \(Rope\(theta=5\.0"),
        (replace(OURS, kv_heads=4, tie_embeddings=False), "kv_heads is 2, not 4, tie_embeddings is True, not False"),
    ],
)
def test_every_difference_is_named(ours: DecoderConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_shape(FAMILY, ours, served(tmp_path), URL)


def test_what_the_family_does_not_compute_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"which is no llama as it is trained: .*hidden_act"):
        check_shape(FAMILY, OURS, served(tmp_path, hidden_act="relu"), URL)
