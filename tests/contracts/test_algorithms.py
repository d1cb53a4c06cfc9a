"""What every algorithm keeps to. New ones are found by listing."""

import inspect
import re

import jax
import numpy as np
import pytest
import yaml

from rl.algorithms import ALGORITHMS, Outcomes
from rl.cli.conf import CONF
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores

FILES = {path.stem: path for path in (CONF / "algorithm").glob("*.yaml")}


def test_every_algorithm_has_a_config_and_every_config_an_algorithm() -> None:
    assert FILES.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_config_lists_every_argument_with_its_default_and_what_it_is(name: str) -> None:
    text = FILES[name].read_text()
    settings = yaml.safe_load(text)
    assert settings.pop("name") == name
    arguments = inspect.signature(ALGORITHMS[name]).parameters
    assert list(settings) == list(arguments)
    for key, value in settings.items():
        if not (isinstance(value, str) and value.startswith("${")):
            assert value == arguments[key].default, f"{key}: the file and the function say different things"
        assert re.search(rf"^{key}: .* # \S", text, re.MULTILINE), f"{key}: say what it is, and its unit"


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
    rewards, valid = rng.random((6, 4)), rng.random((6, 4)) < 0.7
    valid[0], valid[1], valid[2] = False, [True, False, False, False], True
    rewards[2] = 1.0
    rewards[~valid] = np.nan
    tokens = rng.integers(1, 9, (6, 4))
    credit = ALGORITHMS[name]().credit
    advantages = credit(Outcomes(rewards, valid, tokens))
    assert advantages.shape == (6, 4) and np.isfinite(advantages).all()
    assert (advantages[~valid] == 0).all()
    if name != "opd":  # what teaches there is no reward
        assert (advantages[3:] != 0).any(axis=1).all()
    order = rng.permutation(4)
    moved = credit(Outcomes(rewards[:, order], valid[:, order], tokens[:, order]))
    untied = [0, 1, 3, 4, 5]  # of equals, the first may count as the best
    np.testing.assert_allclose(moved[untied], advantages[untied][:, order], atol=1e-12)
    nothing = credit(Outcomes(rewards, np.zeros_like(valid), tokens))
    np.testing.assert_array_equal(nothing, 0.0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_good_tokens_become_likelier_and_bad_ones_less_so(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    parts = [Segment([1, 2, 3], [False, True, True], [0.0, -1.0, -2.0], advantage, 2) for advantage in (1.5, -0.5)]
    batch = jax.device_put(pack(parts, row_length=6, rows_multiple=1))
    batch = batch._replace(reference_logprobs=batch.behaviour_logprobs)  # a teacher has nothing to add

    def loss(logprobs: jax.Array) -> jax.Array:
        token = algorithm.loss(TokenScores(logprobs, logprobs), batch, {**algorithm.hyper, "version": 0})
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
    assert factory().needs_reference == factory().needs_teacher == (name == "opd")
    if "kl_weight" in inspect.signature(factory).parameters:
        assert factory(kl_weight=0.1).needs_reference
