"""How other libraries' advantages are said in our functions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rl.ops import advantages as ops
from rl.ops.returns import discounted_returns, generalised_advantages, optimal_token_baseline

Case = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Args = Mapping[str, Any]
Table = np.ndarray


def in_groups(
    credit: Callable[[Table, Table, Callable[[np.ndarray], Table]], Table], case: Case, groups: np.ndarray
) -> np.ndarray:
    """Advantages per rollout of rewards in groups of any size: `credit(rewards, valid, table)`, where `table` lays out
    anything else that there is per rollout."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    shape = len(members), max(map(len, members))

    def table(values: np.ndarray) -> Table:
        laid_out = np.zeros(shape, values.dtype)
        for row, group in enumerate(members):
            laid_out[row, : len(group)] = values[group]
        return laid_out

    found = credit(table(case["rewards"]), table(np.ones(len(groups), bool)), table)
    result = np.zeros(len(groups))
    for row, group in enumerate(members):
        result[group] = found[row, : len(group)]
    return result


def verl_advantage(name: str, args: Args, case: Case) -> Outputs:
    mask, lengths = case["mask"], case["mask"].sum(axis=1)
    std = bool(args.get("norm_adv_by_std_in_grpo"))
    epsilon = args.get("epsilon", 1e-6)
    named: Mapping[str, Callable[..., Table]] = {
        "grpo": lambda r, v, t: ops.group_mean_baseline(r, v, normalise_std=std, epsilon=epsilon, lone="reward"),
        "dr_grpo_adv": lambda r, v, t: ops.group_mean_baseline(r, v, normalise_std=std, epsilon=epsilon, lone="reward"),
        "rloo": lambda r, v, t: ops.leave_one_out_baseline(r, v, lone="reward"),
        "rloo_vectorized": lambda r, v, t: ops.leave_one_out_baseline(r, v),
        "reinforce_plus_plus_baseline": lambda r, v, t: ops.whiten(
            ops.group_mean_baseline(r, v, normalise_std=False, lone="reward"), t(lengths)
        ),
        "opo": lambda r, v, t: ops.optimal_reward_baseline(r, v, t(lengths), lone="reward"),
        "gpg": lambda r, v, t: ops.group_policy_gradient(r, v, scale=args["f_norm"], lone="reward"),
        "grpo_passk.std": lambda r, v, t: ops.best_of_group(r, v, normalise_std=True),
        "grpo_passk.nostd": lambda r, v, t: ops.best_of_group(r, v, normalise_std=False),
    }
    if name == "gdpo":
        return verl_gdpo(args, case)
    return {"advantages": in_groups(named[name], case, case["group_index"])[:, None] * mask}


def verl_gdpo(args: Args, case: Case) -> Outputs:
    """Rewards in float32; the record's mask is all ones."""
    weights = dict(zip(args["reward_keys"], args["weights"], strict=True))
    single = {name: case[name].astype(np.float32).astype(np.float64) for name in weights}

    def credit(r: Table, valid: Table, table: Callable[[np.ndarray], Table]) -> Table:
        components = {name: table(values) for name, values in single.items()}
        summed = ops.several_rewards(components, valid, weights=weights, lone="reward")
        return ops.whiten(summed, valid * case["mask"].shape[1])

    return {"advantages": in_groups(credit, case, case["group_index"])[:, None] * np.ones_like(case["mask"])}


def verl_reinforce_pp(args: Args, case: Case) -> Outputs:
    returns = discounted_returns(case["token_level_rewards"], case["mask"], discount=args["gamma"])
    return {"advantages": ops.whiten(returns, case["mask"]), "returns": returns}


def verl_remax(args: Args, case: Case) -> Outputs:
    rewards = (case["token_level_rewards"] * case["mask"]).sum(axis=1)
    valid = np.ones((len(rewards), 1), bool)
    return {"advantages": ops.greedy_baseline(rewards[:, None], valid, case["reward_baselines"]) * case["mask"]}


def verl_otb(args: Args, case: Case) -> Outputs:
    returns = discounted_returns(case["token_level_rewards"], case["mask"])
    found = optimal_token_baseline(
        returns, case["old_logprobs"], case["sum_pi_squared"], case["mask"], case["group_index"]
    )
    return {"advantages": found, "returns": returns}


def gae(args: Args, case: Case, *, skip_masked: bool) -> Outputs:
    advantages, returns = generalised_advantages(
        case["token_level_rewards"],
        case["old_values"],
        case["mask"],
        discount=args["gamma"],
        trace=args.get("lam", args.get("lambd")),
        skip_masked=skip_masked,
    )
    return {"advantages": ops.whiten(advantages, case["mask"]), "returns": returns}


def skyrl_maxrl(args: Args, case: Case) -> Outputs:
    binary = {**case, "rewards": case["rewards_binary"]}

    def credit(r: Table, valid: Table, table: Callable[[np.ndarray], Table]) -> Table:
        return ops.mean_normalised(r, valid, epsilon=args["epsilon"], lone="reward")

    return {"advantages": in_groups(credit, binary, case["group_index"])[:, None] * case["mask"]}


def skyrl_rloo(args: Args, case: Case) -> Outputs:
    return verl_advantage("rloo", args, case)


def trl_advantage(args: Args, case: Case) -> Outputs:
    scale = args["scale_rewards"]

    def credit(r: Table, valid: Table, table: Callable[[np.ndarray], Table]) -> Table:
        over = "batch" if scale == "batch" else "group"
        return ops.group_mean_baseline(r, valid, normalise_std=scale != "none", epsilon=args["eps"], std_over=over)

    return {"advantages": in_groups(credit, case, np.arange(len(case["rewards"])) // args["num_generations"])}


def trl_gdpo(args: Args, case: Case) -> Outputs:
    weights = dict(zip(args["rewards"], args["reward_weights"], strict=True))

    def credit(r: Table, valid: Table, table: Callable[[np.ndarray], Table]) -> Table:
        components = {name: table(case[name]) for name in weights}
        summed = ops.several_rewards(components, valid, weights=weights, epsilon=1e-4)
        return ops.whiten(summed, valid, epsilon=1e-4, epsilon_in_root=False)

    return {"advantages": in_groups(credit, case, np.arange(len(case["rewards"])) // args["num_generations"])}


def areal_normalisation(args: Args, case: Case) -> Outputs:
    whitened = ops.whiten(
        case["advantages"], case["mask"], epsilon=args["eps"], unbiased=args["unbiased"], epsilon_in_root=False
    )
    return {"advantages": whitened}
