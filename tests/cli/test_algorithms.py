"""`rl algorithms`, its page in docs/, and an algorithm of somebody else's."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from rl.algorithms import ALGORITHMS
from rl.cli import conf
from rl.cli.algorithms import PEERS, document
from rl.cli.build import make_algorithm
from rl.cli.compose import compose
from rl.cli.main import main

DOCS = Path(__file__).parents[2] / "docs" / "algorithms.md"


def test_the_page_is_what_docstrings_and_configs_say() -> None:
    assert DOCS.read_text() == document(), "docs/algorithms.md is out of date; write it with `make docs`"
    assert PEERS.keys() <= ALGORITHMS.keys()


def test_all_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["algorithms"]) == 0
    listed = capsys.readouterr().out
    assert all(f" {name} " in listed for name in ALGORITHMS) and "arXiv:2507.18071" in listed


def test_one_is_described(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["algorithms", "gspo"]) == 0
    page = capsys.readouterr().out
    assert "`level=sequence`" in page and "log-ratios (nats) are clamped to ± this." in page
    assert main(["algorithms", "gpso"]) == 2
    assert "unknown algorithm 'gpso'; did you mean 'gspo'" in capsys.readouterr().err


def test_the_composed_config_says_what_every_setting_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "algorithm=gspo", "algorithm.clip_high=1e-3", "--cfg", "job"]) == 0
    text = capsys.readouterr().out
    assert "\n  clip_high: 0.001 # and above at `1 + clip_high`\n" in text
    assert "\n  log_ratio_limit: 20.0 # log-ratios (nats) are clamped to ± this\n" in text
    section = yaml.safe_load(text)["algorithm"]
    assert list(section) == list(yaml.safe_load((conf.CONF / "algorithm" / "gspo.yaml").read_text()))


def test_parts_are_exchanged_on_the_command_line() -> None:
    settings = compose("train", ["algorithm=grpo", "algorithm.loss=sapo", "algorithm.correction=[reject,opsm]"]).config
    algorithm = make_algorithm(settings.algorithm)
    assert algorithm.hyper.keys() >= {"sharpness_up", "reject_high", "opsm_kl"} and "clip_low" not in algorithm.hyper


def test_a_setting_of_a_part_that_is_replaced_is_refused() -> None:
    with pytest.raises(Exception, match="clip_low belongs to a part that loss=sapo replaces"):
        make_algorithm({"name": "grpo", "loss": "sapo", "clip_low": 0.3})


TOY = '''
import jax.numpy as jnp
from rl.algorithms.base import TokenLoss

def bounded(x, *, reach: float = 2.0):
    """`-A reach tanh(log r / reach)`.

    Args:
        reach: nats.
    """
    return TokenLoss(-x.advantages * reach * jnp.tanh((x.logprobs - x.old_logprobs) / reach), {})
'''


def test_an_algorithm_is_one_function_and_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function in anybody's module, the file anywhere: nothing of ours is touched."""
    import jax

    from rl.data.pack import Segment, pack
    from rl.ops.logprobs import TokenScores

    (tmp_path / "toy_losses.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text("name: custom\nloss: toy_losses:bounded\nreach: 0.5\naggregate: token_sum\n")
    monkeypatch.syspath_prepend(tmp_path)
    algorithm = make_algorithm(yaml.safe_load((tmp_path / "toy.yaml").read_text()))
    assert algorithm.hyper == {"reach": 0.5, "kl_weight": 0.0, "entropy_weight": 0.0}
    batch = jax.device_put(pack([Segment([1, 2], [False, True], [0.0, -1.0], 2.0, 1)], 2, 1))

    def loss(logprobs: jax.Array) -> jax.Array:
        token = algorithm.loss(TokenScores(logprobs, logprobs), batch, dict(algorithm.hyper))
        return (token.loss * algorithm.weights(batch)).sum()

    value, slope = jax.value_and_grad(loss)(batch.behaviour_logprobs + 0.5)
    assert value == pytest.approx(-2 * 0.5 * np.tanh(1.0), rel=1e-6)
    np.testing.assert_allclose(slope, [[0.0, -2 / np.cosh(1.0) ** 2]], rtol=1e-6)


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(Exception, match=r"algorithm\.loss is 'nowhere:loss', but No module named 'nowhere'"):
        make_algorithm({"name": "custom", "loss": "nowhere:loss"})
