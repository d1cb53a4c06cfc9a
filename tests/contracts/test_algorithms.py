"""What every algorithm keeps to. New ones are found by listing."""

import inspect
import re

import jax
import numpy as np
import pytest
import yaml

from rl.algorithms import ALGORITHMS
from rl.cli.conf import CONF
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores

FILES = {path.stem: path for path in (CONF / "algorithm").glob("*.yaml")}


def test_every_algorithm_has_a_config_and_every_config_an_algorithm() -> None:
    assert FILES.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_config_names_arguments_and_keeps_their_defaults(name: str) -> None:
    settings = yaml.safe_load(FILES[name].read_text())
    assert settings.pop("name") == name
    arguments = inspect.signature(ALGORITHMS[name]).parameters
    assert settings.keys() <= arguments.keys()
    for key, value in settings.items():
        if not (isinstance(value, str) and value.startswith("${")):
            assert value == arguments[key].default, f"{key}: the file and the function say different things"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_docstring_names_a_source_and_every_argument(name: str) -> None:
    text = inspect.getdoc(ALGORITHMS[name]) or ""
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    _, _, listed = text.partition("Args:\n")
    documented = re.findall(r"^    (\w+): \S", listed, re.MULTILINE)
    assert documented == list(inspect.signature(ALGORITHMS[name]).parameters)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_credit_is_finite_and_only_for_what_has_a_reward(name: str) -> None:
    rng = np.random.default_rng(0)
    rewards, valid = rng.normal(size=(6, 4)), rng.random((6, 4)) < 0.7
    valid[0], valid[1], valid[2] = False, [True, False, False, False], True
    rewards[2] = 1.0
    rewards[~valid] = np.nan
    advantages = ALGORITHMS[name]().credit(rewards, valid)
    assert advantages.shape == (6, 4) and np.isfinite(advantages).all()
    assert (advantages[~valid] == 0).all() and (advantages[3:][valid[3:]] != 0).all()
    order = rng.permutation(4)
    np.testing.assert_allclose(
        ALGORITHMS[name]().credit(rewards[:, order], valid[:, order]), advantages[:, order], atol=1e-12
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_good_tokens_become_likelier_and_bad_ones_less_so(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    parts = [Segment([1, 2, 3], [False, True, True], [0.0, -1.0, -2.0], advantage, 2) for advantage in (1.5, -0.5)]
    batch = jax.device_put(pack(parts, row_length=6, rows_multiple=1))

    def loss(logprobs: jax.Array) -> jax.Array:
        token = algorithm.loss(TokenScores(logprobs, logprobs), batch, dict(algorithm.hyper))
        assert token.loss.shape == batch.tokens.shape and all(
            v.shape == batch.tokens.shape for v in token.metrics.values()
        )
        return (algorithm.weights(batch) * token.loss).sum()

    gradient = np.asarray(jax.grad(loss)(batch.behaviour_logprobs))
    assert (np.sign(gradient) == [[0, -1, -1, 0, 1, 1]]).all()
    assert all(isinstance(value, float) for value in algorithm.hyper.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_reference_is_asked_for_only_where_it_counts(name: str) -> None:
    factory = ALGORITHMS[name]
    assert not factory().needs_reference
    if "kl_weight" in inspect.signature(factory).parameters:
        assert factory(kl_weight=0.1).needs_reference
