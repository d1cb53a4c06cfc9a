"""Our losses, KL terms and advantages against numbers that other libraries' own code computed, in float64.

`peer_values.json` holds the records that are compared here. `GOLDEN_VALUES=/path/to/file.json pytest tests/golden`
reads another file of the same format; what it holds beyond this is counted in the table `NOT_YET`.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import Algorithm, grpo, rloo, supervised
from rl.ops.advantages import group_mean_baseline, leave_one_out_baseline
from rl.ops.kl import kl_estimate
from rl.ops.logprobs import TokenScores
from rl.types import Batch

Case = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Record = Mapping[str, Any]

OTHER_FILE = os.environ.get("GOLDEN_VALUES") or None
FILE = json.loads(Path(OTHER_FILE or Path(__file__).with_name("peer_values.json")).read_text())
RECORDS: list[Record] = FILE["records"]
CASES: dict[str, Case] = {
    name: {field: np.asarray(values, np.float64) for field, values in case.items()}
    for name, case in FILE["cases"].items()
}

NOT_YET = {
    "policy_loss": "dual clip, importance weights beside the ratio, GSPO, CISPO, SAPO, GMPO, DPPO, VESPO and others",
    "advantage": "GAE, REINFORCE++, ReMax, OPO, pass@k, several rewards, normalisation over the batch",
    "kl": "absolute value, straight-through estimators",
    "is_weights": "all",
    "rejection_mask": "all",
    "value_loss": "all",
    "preference": "all",
    "distillation": "all",
    "reward_model": "all",
}
"""What is not compared, by kind."""


def batch_of(case: Case, *, advantages: np.ndarray, old: str = "old_logprobs", empty_rows: bool = False) -> Batch:
    """A row per rollout. `empty_rows`: rollouts without a trainable token count in means."""
    mask = case["mask"] > 0
    tokens = np.broadcast_to(mask.sum(axis=1, keepdims=True), mask.shape)
    zeros = np.zeros(mask.shape, np.int32)
    rollouts = len(mask) if empty_rows else int(mask.any(axis=1).sum())
    return Batch(
        tokens=zeros,
        positions=zeros,
        segment_ids=zeros + 1,
        mask=mask,
        behaviour_logprobs=case[old],
        reference_logprobs=case["ref_logprobs"],
        advantages=np.broadcast_to(advantages if advantages.ndim == 2 else advantages[:, None], mask.shape),
        rollout_tokens=tokens.astype(np.int32),
        rollouts=np.int32(rollouts),
        versions=zeros,
        chosen=zeros > 0,
    )


def outcome(algorithm: Algorithm, case: Case, batch: Batch) -> Outputs:
    """Loss and gradient in the log-probabilities."""
    batch = jax.tree.map(jnp.asarray, batch)
    weights = algorithm.weights(batch).astype(jnp.float64)

    def loss(logprobs: jax.Array) -> jax.Array:
        token = algorithm.loss(TokenScores(logprobs, logprobs), batch, dict(algorithm.hyper))
        return jnp.where(batch.mask, weights * token.loss, 0.0).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(case["logprobs"]))
    return {"loss": np.asarray(value), "grad_logprobs": np.asarray(gradient)}


# How each peer says what we call by other names. None: a variant we do not have.

MEANS = {"token_mean": "token_mean", "sequence_mean": "sequence_mean", "seq_mean_token_sum_norm": "constant"}


def trl_loss(args: Record, case: Case) -> Outputs | None:
    means = {"grpo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "dr_grpo": "constant"}
    ours = {"loss_type", "advantages", "epsilon_high", "beta", "args_use_bias_correction_kl"}
    if args.get("loss_type") not in means or not set(args) <= ours:
        return None
    if "beta" in args and args.get("args_use_bias_correction_kl", True):
        return None
    algorithm = grpo(
        clip_high=args.get("epsilon_high", 0.2),
        aggregate=means[args["loss_type"]],  # type: ignore[arg-type]
        horizon=case["mask"].shape[1],
        kl_weight=args.get("beta", 0.0),
    )
    advantages = case["advantages" if "(B,T)" in args["advantages"] else "seq_advantages"]
    return outcome(algorithm, case, batch_of(case, advantages=advantages, empty_rows=True))


def areal_loss(args: Record, case: Case) -> Outputs | None:
    ours = {"eps_clip", "eps_clip_higher", "rejection_sampling", "proximal", "behave"}
    if not set(args) <= ours or args.get("rejection_sampling") is not None or args.get("behave") != "=proximal":
        return None
    low = args["eps_clip"]
    algorithm = grpo(clip_low=low, clip_high=args.get("eps_clip_higher", low))
    return outcome(algorithm, case, batch_of(case, advantages=case["advantages"]))


def openrlhf_loss(args: Record, case: Case) -> Outputs | None:
    if not set(args) <= {"token_level_loss"}:
        return None
    algorithm = grpo(aggregate="token_mean" if args.get("token_level_loss", True) else "sequence_mean")
    return outcome(algorithm, case, batch_of(case, advantages=case["advantages"], empty_rows=True))


def skyrl_loss(args: Record, case: Case) -> Outputs | None:
    algorithm = rloo(aggregate=MEANS[args["loss_reduction"]], horizon=case["mask"].shape[1])  # type: ignore[arg-type]
    return outcome(algorithm, case, batch_of(case, advantages=case["advantages"], empty_rows=True))


def tinker_loss(args: Record, case: Case) -> Outputs | None:
    low, high = 1 - args["clip_low_threshold"], args["clip_high_threshold"] - 1
    algorithm = grpo(clip_low=low, clip_high=high, aggregate="constant", horizon=1)
    batch = batch_of(case, advantages=case["advantages"], old=args["old"])
    return outcome(algorithm, case, batch._replace(rollouts=np.int32(1)))


def art_loss(args: Record, case: Case) -> Outputs | None:
    return outcome(grpo(), case, batch_of(case, advantages=case["advantages"]))


def sft_loss(args: Record, case: Case) -> Outputs | None:
    if args.get("reduce") == "sum":
        algorithm, rollouts = supervised("constant", horizon=1), 1
    else:
        algorithm, rollouts = (
            supervised("token_mean" if args["token_level_loss"] else "sequence_mean"),
            len(case["mask"]),
        )
    batch = batch_of(case, advantages=np.zeros(case["mask"].shape))
    return outcome(algorithm, case, batch._replace(rollouts=np.int32(rollouts)))


def kl_term(args: Record, case: Case) -> Outputs | None:
    estimator = args.get("kl_penalty") or args.get("kl_estimator")
    if estimator not in ("k1", "k2", "k3"):
        return None

    def mean(logprobs: jax.Array) -> jax.Array:
        kl = kl_estimate(logprobs, jnp.asarray(case["ref_logprobs"]), estimator)
        return (kl * case["mask"]).sum() / case["mask"].sum()

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(case["logprobs"]))
    return {"loss": np.asarray(value), "grad_logprobs": np.asarray(gradient)}


def in_groups(baseline: Callable[..., np.ndarray], case: Case, groups: np.ndarray, tokens: bool) -> Outputs:
    """Advantages of rewards in groups of any size, per rollout or for every token of the mask."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    valid = np.zeros((len(members), max(map(len, members))), bool)
    rewards = np.zeros(valid.shape)
    for row, group in enumerate(members):
        valid[row, : len(group)], rewards[row, : len(group)] = True, case["rewards"][group]
    found = baseline(rewards, valid)
    advantages = np.zeros(len(groups))
    for row, group in enumerate(members):
        advantages[group] = found[row, : len(group)]
    return {"advantages": advantages[:, None] * case["mask"] if tokens else advantages}


def verl_grpo(args: Record, case: Case) -> Outputs | None:
    def baseline(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
        std, epsilon = args["norm_adv_by_std_in_grpo"], args["epsilon"]
        return group_mean_baseline(rewards, valid, normalise_std=std, epsilon=epsilon)

    return in_groups(baseline, case, case["group_index"], tokens=True)


def group_rloo(args: Record, case: Case) -> Outputs | None:
    return in_groups(leave_one_out_baseline, case, case["group_index"], tokens=True)


def trl_group(args: Record, case: Case) -> Outputs | None:
    if args["scale_rewards"] == "batch":
        return None

    def baseline(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
        std = args["scale_rewards"] == "group"
        return group_mean_baseline(rewards, valid, normalise_std=std, epsilon=args["eps"])

    return in_groups(baseline, case, np.arange(len(case["rewards"])) // args["num_generations"], tokens=False)


PEERS: Mapping[str, Callable[[Record, Case], Outputs | None]] = {
    "policy_loss/trl.": trl_loss,
    "policy_loss/areal.ppo": areal_loss,
    "policy_loss/openrlhf.": openrlhf_loss,
    "policy_loss/skyrl.regular.": skyrl_loss,
    "policy_loss/skyrl.tinker.ppo": tinker_loss,
    "policy_loss/art.ppo": art_loss,
    "sft/": sft_loss,
    "kl/": kl_term,
    "advantage/verl.grpo!": verl_grpo,
    "advantage/verl.dr_grpo_adv!": verl_grpo,
    "advantage/verl.rloo": group_rloo,
    "advantage/skyrl.rloo": group_rloo,
    "advantage/trl.grpo_adv": trl_group,
}
"""By the beginning of `kind/id`; the whole of it where it ends in "!"."""


@cache
def ours(index: int) -> Outputs | None:
    """What we say to a record; None if we do not have it."""
    record = RECORDS[index]
    name = f"{record['kind']}/{record['id']}!"
    match = next((function for beginning, function in PEERS.items() if name.startswith(beginning)), None)
    if match is None:
        return None
    with jax.enable_x64(True):
        return match(record["args"], CASES[record["case"]])


def tolerance(record: Record) -> float:
    """Some peers compute in float32 on the way."""
    single = record["peer"] == "skyrl" or (record["kind"] == "kl" and record["peer"] in ("areal", "openrlhf"))
    return 2e-5 if single else 1e-6


@pytest.mark.parametrize("index", range(len(RECORDS)), ids=[f"{r['kind']}/{r['id']}/{r['case']}" for r in RECORDS])
def test_record(index: int) -> None:
    record, found = RECORDS[index], ours(index)
    if found is None:
        assert OTHER_FILE is not None and record["kind"] in NOT_YET
        return
    for name, value in found.items():
        expected = np.asarray(record["outputs"][name], np.float64)
        np.testing.assert_allclose(value, expected, rtol=tolerance(record), atol=1e-9, err_msg=name)


def test_how_much_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    total = Counter(record["kind"] for record in RECORDS)
    compared = Counter(record["kind"] for index, record in enumerate(RECORDS) if ours(index) is not None)
    with capsys.disabled():
        for kind, count in total.items():
            if compared[kind] < count:
                print(f"\n{kind}: {compared[kind]} of {count} records compared; not yet: {NOT_YET[kind]}", end="")
    if OTHER_FILE is None:
        assert compared == total == {"policy_loss": 38, "kl": 18, "advantage": 14, "sft": 6}
    assert compared.keys() >= {"policy_loss", "advantage"}
