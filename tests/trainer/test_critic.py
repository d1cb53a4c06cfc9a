"""The critic beside the policy: what it is told, what it learns, where it lies, and that nobody else ever sees it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs import Completion, Task, Trajectory, Turn, UpswingError
from rl.algorithms import ALGORITHMS
from rl.checkpoint import Checkpoints, load_critic, load_params
from rl.data.pack import Segment, pack
from rl.models.base import Model, Params
from rl.models.lora import adapt, lora, split
from rl.parallel.mesh import batch_constraint, make_mesh, parameter_shardings, replicated
from rl.trainer.credit import Credited, credit
from rl.trainer.critic import explained_variance, init_critic, whole
from rl.trainer.optimizer import adamw
from rl.trainer.reference import Look, make_look
from rl.trainer.state import TrainState, init_state
from rl.trainer.update import make_score, make_update

ROWS, LENGTH = 4, 16


def rollout(
    reward: float, *turns: list[int], turn_rewards: list[float] | None = None, splits: bool = False
) -> Trajectory:
    """A rollout with a token of somebody else between its turns; with `splits`, every turn starts a segment anew."""
    record = Trajectory(Task.ask("a", "?"), reward=reward, turn_rewards=turn_rewards or [])
    ids = [1, 2]
    for n, sampled in enumerate(turns):
        prompt = [7, *ids] if splits and n else [*ids]
        completion = Completion(
            {"role": "assistant", "content": ""}, "stop", prompt, sampled, [-1.0] * len(sampled), [0] * len(sampled)
        )
        record.turns.append(Turn((), completion, fresh=n == 0))
        ids += [*sampled, 3]
    return record


GROUPS = [
    [rollout(1.0, [4, 5], [6]), rollout(0.0, [8], [9, 4, 5], splits=True)],
    [rollout(0.5, [5, 6, 7], turn_rewards=[0.25]), rollout(2.0, [4], [5], turn_rewards=[1.0, 1.0])],
]


def told(parts: list[Any], values: float) -> dict[str, list[np.ndarray]]:
    return {"values": [np.full(sum(part.mask), values) for part in parts]}


def test_advantages_and_targets_by_hand() -> None:
    """`delta = r + V' - V` at each sampled token, the next one being whatever was sampled next, in any segment."""
    algorithm = ALGORITHMS["ppo"](trace=0.5, discount=0.9, value_trace=1.0, whitened=False)
    parts = credit(algorithm, GROUPS, per_token=lambda parts: told(parts, 0.2)).segments
    assert [part.tokens for part in parts[:3]] == [[1, 2, 4, 5, 3, 6], [1, 2, 8], [7, 1, 2, 8, 3, 9, 4, 5]]
    # Going back from the end: 1 - 0.2; then 0.9 * 0.2 - 0.2 + 0.45 * what follows.
    np.testing.assert_allclose(parts[0].advantage, [0, 0, 0.133, 0.34, 0, 0.8])
    np.testing.assert_allclose(parts[0].values, [0, 0, 0.2, 0.2, 0, 0.2])
    np.testing.assert_allclose(parts[0].returns, [0, 0, 0.81, 0.9, 0, 1.0])
    # The reward is 0, and a rollout of two segments is one chain.
    last = [-0.02 - 0.45 * 0.11, -0.02 - 0.45 * 0.2, -0.2]
    np.testing.assert_allclose(parts[2].advantage, [0, 0, 0, 0, 0, *last])
    np.testing.assert_allclose(parts[1].advantage, [0, 0, -0.02 + 0.45 * last[0]])
    # Turns that earned something are rewarded at their own end.
    np.testing.assert_allclose(parts[4].returns, [0, 0, 1.0 + 0.9 * 1.0, 0, 1.0])


def test_advantages_are_whitened_over_tokens_and_divergence_is_a_cost() -> None:
    settled = {"trace": 1.0, "value_trace": 1.0}
    parts = credit(ALGORITHMS["ppo"](**settled), GROUPS, per_token=lambda parts: told(parts, 0.0)).segments
    found = np.concatenate([np.array(part.advantage)[part.mask] for part in parts])
    assert found.mean() == pytest.approx(0, abs=1e-9) and found.std(ddof=1) == pytest.approx(1)

    def with_logprobs(parts: list[Any]) -> dict[str, list[np.ndarray]]:
        sampled = told(parts, 0.0)["values"]
        apart = {"behaviour_logprobs": [v - 1.0 for v in sampled], "reference_logprobs": [v - 1.5 for v in sampled]}
        return {"values": sampled, **apart}

    costly = ALGORITHMS["ppo"](kl_weight=0.1, kl_in="reward", whitened=False, **settled)
    assert costly.needs_reference and costly.asks == {"values", "behaviour_logprobs", "reference_logprobs"}
    parts = credit(costly, GROUPS, per_token=with_logprobs).segments
    np.testing.assert_allclose(parts[0].advantage, [0, 0, 1 - 0.15, 1 - 0.10, 0, 1 - 0.05])


def test_how_much_is_explained() -> None:
    returns = jnp.array([[0.0, 1.0, 2.0, jnp.nan]] * 3 + [[1.0, 1.0, 1.0, 1.0]])
    values = jnp.array([[5.0, 6.0, 7.0, 0.0], [1.0, 1.0, 1.0, 9.0], [0.0, 0.5, 1.0, 9.0], [0.0, 1.0, 2.0, 3.0]])
    found = jax.jit(jax.vmap(explained_variance))(values, returns, jnp.array([[True, True, True, False]] * 4))
    np.testing.assert_allclose(found, [1.0, 0.0, 0.75, 0.0], atol=1e-6)


# With the decoder


@pytest.fixture(scope="module")
def batch(model: Model) -> Any:
    credited = credit(ALGORITHMS["ppo"](), GROUPS, per_token=lambda parts: told(parts, 0.3))
    return pack(credited.segments, LENGTH, ROWS)


def compiled(function: Any) -> Any:
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


PPO, ADAMW = ALGORITHMS["ppo"](critic_lr=3.0), adamw(lr=1e-2, steps=9)
HYPER = {**PPO.hyper, **ADAMW.hyper, "temperature": 1.0}


def first(model: Model, params: Params, place: Any = lambda tree: tree) -> TrainState:
    """A critic that says something already."""
    trained, _ = split(params)
    critic = init_critic("separate", model.config.width, trained, place)
    head = {"weight": critic.params["weight"] + 0.1, "bias": critic.params["bias"]}
    return init_state(trained, ADAMW, critic._replace(params={**critic.params, **head}))


@pytest.fixture(scope="module")
def after(model: Model, params: Params, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    return compiled(make_update(make_score(model), PPO, ADAMW, ROWS))(first(model, params), batch, HYPER)


def test_both_learn_and_each_from_its_own_part(model: Model, params: Params, after: Any) -> None:
    state, metrics = after
    before = first(model, params)
    assert metrics["value_loss"] > 0.1 and metrics["critic_grad_norm"] > 0.01 and metrics["nonfinite"] == 0
    moved = jnp.abs(state.critic.params["weight"] - before.critic.params["weight"])
    np.testing.assert_allclose(moved, 3e-2, rtol=1e-2)  # Adam's first step is its learning rate
    trunk = optax.tree.norm(jax.tree.map(jnp.subtract, state.critic.params["trunk"], before.critic.params["trunk"]))
    assert trunk > 0.1 and state.params.keys() == params.keys()


def test_what_prompts_tell_is_learned(model: Model, params: Params) -> None:
    """Returns that hang on the first token of the prompt, which no later token repeats."""
    rng, parts = np.random.default_rng(0), []
    for _ in range(16):
        tokens = rng.integers(0, 250, 8).tolist()
        told = [0.0] * 3 + [float(tokens[0] > 125)] * 5
        parts.append(Segment(tokens, [False] * 3 + [True] * 5, [-5.0] * 8, 0.0, 5, True, [0] * 8, [0.0] * 8, told))
    seen = pack(parts, LENGTH, ROWS)
    update = compiled(make_update(make_score(model), PPO, ADAMW, ROWS * 2))
    state = init_state(params, ADAMW, init_critic("separate", model.config.width, params))
    errors = []
    for _ in range(25):
        state, metrics = update(state, seen, HYPER)
        errors.append(float(metrics["value_loss"]))
    assert errors[0] > 0.15 and errors[-1] < 0.02


def test_neither_mesh_nor_packing_nor_cut_matters(model: Model, params: Params, after: Any) -> None:
    mesh, rules = make_mesh({"data": 2, "fsdp": 4}), {"batch": "data", "embed": "fsdp"}
    sharded = jax.device_put(params, parameter_shardings(mesh, model.axes, rules))
    state = first(model, sharded, lambda tree: replicated(mesh, tree))
    credited = credit(ALGORITHMS["ppo"](), GROUPS[::-1], per_token=lambda parts: told(parts, 0.3))
    moved = pack(credited.segments, 21, ROWS)
    update = make_update(make_score(model), PPO, ADAMW, 2, batch_constraint(mesh, rules))
    found, metrics = compiled(update)(state, moved, HYPER)
    expected = jax.device_get(after[1])
    assert jax.device_get(metrics) == {n: pytest.approx(value, rel=1e-4, abs=1e-6) for n, value in expected.items()}
    # The first moment is the gradient, times a constant.
    for ours, theirs in ((found.opt_state, after[0].opt_state), (found.critic.opt_state, after[0].critic.opt_state)):
        one, two = (optax.tree.get(state, "mu") for state in (ours, theirs))
        assert optax.tree.norm(
            jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), one, two)
        ) < 4e-6 * optax.tree.norm(two)


@pytest.fixture(scope="module")
def look(model: Model) -> Look:
    return make_look(make_score(model, squares=True), ["values", "logprobs", "squared_probs"], 2, 1.0)


def test_values_are_of_the_state_before_each_token(model: Model, params: Params, batch: Any, look: Look) -> None:
    """Whatever the token itself and those after it are; and they are those that the loss is taken of."""
    state = first(model, params)
    values = look(state, batch)["values"]
    assert np.abs(values[batch.mask]).min() > 1e-4
    r, t = np.argwhere(batch.mask[:, :-1] & batch.mask[:, 1:])[0]
    other = batch.tokens.copy()
    other[r, t] += 1
    again = look(state, batch._replace(tokens=other))["values"]
    changed = (np.abs(again - values) > 1e-6) & batch.mask  # nobody reads what stands elsewhere
    same = batch.segment_ids[r] == batch.segment_ids[r, t]
    assert changed[r, t + 1] and not changed[r, : t + 1].any() and not changed[r, ~same].any()
    assert not np.delete(changed, r, axis=0).any()


def test_what_credit_is_told_is_what_the_update_finds(
    model: Model, params: Params, batch: Any, look: Look, after: Any
) -> None:
    told = look(first(model, params), batch)
    assert told["values"][batch.mask].mean() == pytest.approx(float(after[1]["value"]), rel=1e-4)
    apart = np.abs(told["logprobs"] - batch.behaviour_logprobs)[batch.mask].mean()
    assert apart == pytest.approx(float(after[1]["mismatch/abs"]), rel=1e-4)
    # A sum of squares over the vocabulary is above that of the token alone, and above that of all alike.
    assert (told["squared_probs"] > np.exp(2 * told["logprobs"]))[batch.mask].all()
    assert (told["squared_probs"] > 1 / model.config.vocab_size)[batch.mask].all()


def test_beside_an_adapter_the_critic_is_an_adapter(model: Model, params: Params, batch: Any, look: Look) -> None:
    made = lora(model, 2, 4.0, "attention/(q|v)")
    adapted = adapt(params, made.init(jax.random.key(0)), made.scale)
    trained, frozen = split(adapted)
    state = first(model, adapted)
    assert jax.tree.structure(state.critic.params["trunk"]) == jax.tree.structure(trained)
    beside = make_look(make_score(model), ["values"], ROWS, 1.0, frozen)(state, batch)["values"]
    plain = look(first(model, params), batch)["values"]  # an adapter adds nothing at first
    np.testing.assert_allclose(beside[batch.mask], plain[batch.mask], atol=1e-5)
    trunk = whole(state.critic.params, adapted, frozen)["trunk"]
    assert trunk["embed"] is params["embed"]


def test_a_state_with_a_critic_comes_back_bit_for_bit_and_weights_come_without(
    model: Model, params: Params, after: Any, tmp_path: Any
) -> None:
    state = after[0]._replace(kept={"shop": jnp.float32(0.1)})
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "train", every=1, keep=1)
    checkpoints.save(state)
    checkpoints.wait()
    like = first(model, params)._replace(kept={"shop": jnp.float32(0)})
    found = checkpoints.load(like)
    assert found is not None and jax.tree.structure(found) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True))
    loaded = load_params(tmp_path, params)
    assert loaded.keys() == params.keys() and np.array_equal(loaded["embed"], state.params["embed"])
    judge = load_critic(tmp_path, state.critic.params)
    assert np.array_equal(judge["weight"], state.critic.params["weight"])
    alone = Checkpoints(tmp_path / "policy" / "checkpoints" / "train", every=1, keep=1)
    alone.save(init_state({"embed": jnp.zeros(2)}, ADAMW))
    alone.wait()
    with pytest.raises(UpswingError, match=r"'critic/params/weight' has shape none \(it is missing\)"):
        load_critic(tmp_path / "policy", {"weight": jnp.zeros(2)})


# Other credit that needs more than rewards


def test_a_moving_baseline_is_kept() -> None:
    algorithm = ALGORITHMS["rae"](baseline_decay=0.5)
    one = credit(algorithm, GROUPS, environments=["shop", "maze"], kept={"shop": 1.0, "maze": 0.0})
    assert one.kept == {"shop": 0.5 + 0.5 * 0.5, "maze": 0.5 * 1.25}
    assert [part.advantage for part in one.segments] == [0.25, -0.75, -0.75, -0.125, 1.375]
    again = credit(algorithm, GROUPS, environments=["shop", "maze"], kept=one.kept)
    assert again.kept == {"shop": 0.625, "maze": 0.5 * 0.625 + 0.625}
    assert credit(ALGORITHMS["grpo"](), GROUPS).kept == {}


def test_a_greedy_rollout_is_a_baseline_and_not_trained_on() -> None:
    greedy = rollout(0.75, [9, 9])
    greedy.sample = -1
    failed = Trajectory(Task.ask("a", "?"), sample=-1)
    parts = credit(ALGORITHMS["remax"](), [[*GROUPS[0], greedy], [*GROUPS[1], failed]]).segments
    assert [part.advantage for part in parts] == [0.25, -0.75, -0.75, 0.0, 0.0]  # nothing to compare with
    with pytest.raises(ValueError, match="no greedy rollouts were made"):
        credit(ALGORITHMS["remax"](), GROUPS)


def test_turns_are_credited_with_what_they_lead_to() -> None:
    groups = [[rollout(3.0, [4, 5], [6], turn_rewards=[2.0, 0.0]), rollout(1.0, [4], [5, 6], turn_rewards=[0.0, 1.0])]]
    parts = credit(ALGORITHMS["turn_level"](turn_discount=0.5, normalise_std=False), groups).segments
    # Returns: 2 + 0.5 * 1 and 1 (what no turn got, the last one did); 0.5 * 1 and 1.
    np.testing.assert_allclose(parts[0].advantage, [0, 0, 1.0, 1.0, 0, 0.0])
    np.testing.assert_allclose(parts[1].advantage, [0, 0, -1.0, 0, 0.0, 0.0])
    single = [[rollout(1.0, [4]), rollout(0.0, [5, 6])]]

    def advantages(credited: Credited) -> list[float]:
        return [float(np.max(np.abs(part.advantage))) for part in credited.segments]

    assert advantages(credit(ALGORITHMS["turn_level"](), single)) == pytest.approx(
        advantages(credit(ALGORITHMS["grpo"](), single))
    )


def test_the_baseline_of_least_variance_is_the_heavier_rollouts() -> None:
    groups = [[rollout(1.0, [4]), rollout(0.0, [5])], [rollout(1.0, [4])]]

    def told(parts: list[Any]) -> dict[str, list[np.ndarray]]:
        probs, squares = ([0.5], [0.25], [0.5]), ([0.5], [0.75], [0.5])
        return {"logprobs": [np.log(p) for p in probs], "squared_probs": [np.array(s) for s in squares]}

    parts = credit(ALGORITHMS["otb"](), groups[:1], per_token=lambda parts: {n: v[:2] for n, v in told(parts).items()})
    # Weights are 1 - 2 p + sum p^2: 0.5 and 1.25. The baseline is 0.5 / 1.75.
    found = [part.advantage[2] for part in parts.segments]  # type: ignore[index]
    np.testing.assert_allclose(found, [1 - 0.5 / 1.75, -0.5 / 1.75], atol=1e-6)
