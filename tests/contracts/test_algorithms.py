"""What every algorithm keeps to. New ones are found by listing."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from rl.algorithms import ALGORITHMS, Algorithm, Outcomes
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


def outcomes(order: np.ndarray, *, valid: bool = True) -> Outcomes:
    """Six tasks, four rollouts each in this order: with some that failed, all that failed, one left, all alike."""
    rng = np.random.default_rng(0)
    rewards, there = rng.random((6, 4)), rng.random((6, 4)) < 0.7
    there[0], there[1], there[2] = False, [True, False, False, False], True
    rewards[2] = 1.0
    rewards[~there] = np.nan
    tokens = rng.integers(2, 9, (6, 4))
    logprobs = -rng.random((6, 4, 8))
    return Outcomes(
        rewards[:, order],
        there[:, order] & valid,
        tokens[:, order],
        turn_rewards=rng.random((6, 4, 2))[:, order] / 9,
        turn_tokens=np.stack([tokens - 1, tokens * 0 + 1], axis=2)[:, order],
        environments=["one", "two"] * 3,
        kept={"one": 0.3, "two": 0.1},
        greedy=np.array([np.nan, 0.2, 0.5, 0.1, 0.2, 0.3]),
        per_token={
            "values": rng.random((6, 4, 8))[:, order],
            "logprobs": logprobs[:, order],
            "squared_probs": np.exp(2 * logprobs)[:, order],
        },
    )


def taught(algorithm: Algorithm) -> bool:
    return algorithm.needs_teacher or algorithm.privilege is not None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_credit_is_finite_and_only_for_what_has_a_reward(name: str) -> None:
    credit, order = ALGORITHMS[name]().credit, np.random.default_rng(1).permutation(4)
    ended = outcomes(np.arange(4))
    advantages = credit(ended)
    assert advantages.shape in ((6, 4), (6, 4, 8)) and np.isfinite(advantages).all()
    assert (advantages[~ended.valid] == 0).all()
    if not taught(ALGORITHMS[name]()):  # what teaches there is no reward
        assert advantages[3:].reshape(3, -1).any(axis=1).all()
    if advantages.ndim == 3:
        assert (advantages[np.arange(8) >= ended.tokens[..., None]] == 0).all()
    moved = credit(outcomes(order))
    untied = [0, 1, 3, 4, 5]  # of equals, the first may count as the best
    np.testing.assert_allclose(moved[untied], advantages[untied][:, order], atol=1e-12)
    np.testing.assert_array_equal(credit(outcomes(order, valid=False)), 0.0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_good_tokens_become_likelier_and_bad_ones_less_so(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    parts = [Segment([1, 2, 3], [False, True, True], [0.0, -1.0, -2.0], advantage, 2) for advantage in (1.5, -0.5)]
    batch = jax.device_put(pack(parts, row_length=6, rows_multiple=1))
    batch = batch._replace(reference_logprobs=batch.behaviour_logprobs)  # a teacher has nothing to add
    top = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.25])), (1, 6, 2)) if algorithm.top else None
    batch = batch._replace(top_logprobs=top)

    def loss(logprobs: jax.Array) -> jax.Array:
        values = None if algorithm.critic is None else 0.0 * logprobs
        scores = TokenScores(logprobs, logprobs, values=values, top_logprobs=top)
        token = algorithm.loss(scores, batch, {**algorithm.hyper, "version": 0})
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
    assert factory().needs_reference == factory().needs_teacher == (name in ("opd", "gkd"))
    if factory().privilege is not None:
        with pytest.raises(ValueError, match="the teacher stands in its place"):
            factory(kl_weight=0.1)
    elif "kl_weight" in inspect.signature(factory).parameters:
        assert factory(kl_weight=0.1).needs_reference
