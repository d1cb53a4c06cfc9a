"""How other libraries' policy losses, corrections and divergences are said in our parts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl.algorithms import losses
from rl.algorithms.aggregate import aggregation
from rl.algorithms.base import Loss, Tokens
from rl.algorithms.compose import kl_shaped
from rl.algorithms.corrections import importance_weights, kept, mis, opsm, tis
from rl.algorithms.covariance import covariances, largest
from rl.ops.kl import kl_estimate
from rl.ops.masked import masked_sum
from rl.ops.segments import segment_mean
from rl.ops.values import value_loss
from rl.types import Batch

Case = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Args = Mapping[str, Any]
INF = float("inf")


def tokens(case: Case, logprobs: jax.Array, *, old: str = "old_logprobs", advantages: str = "advantages") -> Tokens:
    """A row per sequence. The mismatch is that of the old policy and the sampler."""
    mask = jnp.asarray(case["mask"] > 0)
    credit = case[advantages] if case[advantages].ndim == 2 else np.broadcast_to(case[advantages][:, None], mask.shape)
    return Tokens(
        logprobs=logprobs,
        old_logprobs=jnp.asarray(case[old]),
        behaviour_logprobs=jnp.asarray(case["rollout_logprobs"]),
        advantages=jnp.asarray(credit),
        mask=mask,
        segment_ids=jnp.ones(mask.shape, jnp.int32),
        reference_logprobs=jnp.zeros_like(logprobs),
        mismatch=jnp.asarray(case["old_logprobs"] - case["rollout_logprobs"]),
        ages=jnp.zeros_like(logprobs),
        chosen=jnp.zeros_like(mask),
    )


def token_weights(case: Case, aggregate: str, empty_rows: bool) -> jax.Array:
    """`empty_rows`: sequences without a token count in means."""
    mask = jnp.asarray(case["mask"] > 0)
    zeros = jnp.zeros(mask.shape, jnp.int32)
    lengths = jnp.broadcast_to(mask.sum(axis=1, keepdims=True), mask.shape).astype(jnp.int32)
    floats = jnp.zeros(mask.shape)
    rollouts = jnp.int32(len(mask)) if empty_rows else mask.any(axis=1).sum().astype(jnp.int32)
    batch = Batch(
        zeros, zeros, zeros + 1, mask, floats, floats, floats, lengths, zeros, mask & False, floats, floats, rollouts
    )  # fmt: skip
    return aggregation(aggregate, mask.shape[1])(batch).astype(jnp.float64)  # type: ignore[arg-type]


def outcome(
    case: Case,
    loss: Loss,
    aggregate: str,
    *,
    empty_rows: bool = False,
    correction: Callable[[Tokens], jax.Array] | None = None,
    prepare: Callable[[Tokens], Tokens] = lambda x: x,
    added: Callable[[Tokens], jax.Array] | None = None,
    **of_tokens: str,
) -> Outputs:
    """Loss and gradient in the log-probabilities of `sum(weights * (loss * correction + added))`."""
    weights = token_weights(case, aggregate, empty_rows)

    def total(logprobs: jax.Array) -> jax.Array:
        x = prepare(tokens(case, logprobs, **of_tokens))
        value = loss(x).loss
        if correction is not None:
            value = value * jax.lax.stop_gradient(correction(x))
        if added is not None:
            value = value + added(x)
        return masked_sum(weights * value, x.mask)

    value, gradient = jax.value_and_grad(total)(jnp.asarray(case["logprobs"]))
    return {"loss": np.asarray(value), "grad_logprobs": np.asarray(gradient)}


def with_sequence_advantages(x: Tokens) -> Tokens:
    return x._replace(advantages=segment_mean(x.advantages, x.mask, x.segment_ids))


# verl

VERL_MEANS = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant",
    "token-sum": "token_sum",
}


def verl_weights(args: Args) -> Callable[[Tokens], jax.Array] | None:
    if "rollout_is" not in args:
        return None
    level, bounds = args["rollout_is"], args["rollout_is_threshold"]
    if isinstance(bounds, str) and "_" in bounds:
        low, high = map(float, bounds.split("_"))
        return partial(mis, mis_level=level, mis_low=low, mis_high=high)
    return partial(tis, tis_level=level, tis_high=float(bounds))


def verl_loss(args: Args, case: Case) -> Outputs:
    mode, aggregate = args.get("loss_mode", "reinforce"), VERL_MEANS[args["loss_agg_mode"]]
    low, high = args.get("clip_ratio_low"), args.get("clip_ratio_high")
    options: dict[str, Any] = {"correction": verl_weights(args)}
    if "weights" in args:  # of the policy itself over the sampler

        def drifted(x: Tokens) -> Tokens:
            return x._replace(mismatch=x.logprobs - x.behaviour_logprobs)

        options["prepare"] = drifted
    if mode == "geo_mean":
        aggregate, options["empty_rows"] = "sequence_mean", True
    if mode in ("kl_cov", "clip_cov"):
        options["prepare"] = partial(verl_choice, args)
    clip = partial(losses.clip, clip_low=low, clip_high=high)
    loss: Mapping[str, Callable[[], Loss]] = {
        "vanilla": lambda: partial(clip, dual_clip=args.get("clip_ratio_c", 3.0)),
        "gspo": lambda: partial(clip, level="sequence_token", log_ratio_limit=10.0),
        "sapo": lambda: partial(losses.sapo, sharpness_up=args["tau_pos"], sharpness_down=args["tau_neg"]),
        "gpg": lambda: losses.reinforce,
        "reinforce": lambda: losses.reinforce,
        "geo_mean": lambda: partial(losses.gmpo, log_clip_low=low, log_clip_high=high),
        "dro": lambda: partial(losses.dro, proximity=args["dro_beta"]),
        "cispo": lambda: partial(losses.cispo, weight_low=1 - low, weight_high=1 + high),
        "dppo_tv": lambda: partial(losses.dppo_tv, divergence_low=low, divergence_high=high),
        "dppo_kl": lambda: partial(losses.dppo_kl, divergence_low=low, divergence_high=high),
        "kl_cov": lambda: partial(losses.kl_cov, chosen_kl_weight=args["ppo_kl_coef"], log_ratio_limit=INF),
        "clip_cov": lambda: partial(losses.clip_cov, clip_low=low, clip_high=high, log_ratio_limit=INF),
    }
    chosen = loss[mode]()
    if mode.startswith("dppo"):
        chosen = partial(chosen, weight_high=args.get("clip_ratio_c", 20.0))
    return outcome(case, chosen, aggregate, **options)


def verl_choice(args: Args, x: Tokens) -> Tokens:
    """Tokens by covariance; verl judges by the policy itself, and leaves out of Clip-Cov what is clipped anyway."""
    covariance = covariances(x.advantages, jax.lax.stop_gradient(x.logprobs), x.mask)
    if args["loss_mode"] == "kl_cov":
        return x._replace(chosen=largest(covariance, x.mask, args["kl_cov_ratio"]))
    clipped = losses.clip(x, clip_low=args["clip_ratio_low"], clip_high=args["clip_ratio_high"]).metrics[
        "clip_fraction"
    ]
    inside = (covariance > args["clip_cov_lb"]) & (covariance < args["clip_cov_ub"]) & (clipped == 0)
    ranked = jnp.where(inside, covariance, -jnp.inf)
    return x._replace(chosen=largest(ranked, x.mask, args["clip_cov_ratio"]) & inside)


def verl_is(args: Args, case: Case) -> Outputs:
    x, weigh = tokens(case, jnp.asarray(case["logprobs"])), verl_weights(args)
    assert weigh is not None
    weights = jnp.where(x.mask, weigh(x), 0.0)
    if args["batch_normalize"]:
        weights = weights * x.mask.sum().astype(weights.dtype) / masked_sum(weights, x.mask)
    return {"weights": np.asarray(weights)}


def verl_rejection(args: Args, case: Case) -> Outputs:
    x = tokens(case, jnp.asarray(case["logprobs"]))
    keep = x.mask
    for option, bounds in zip(args["rollout_rs"].split(","), str(args["rollout_rs_threshold"]).split(","), strict=True):
        level, statistic = option.removeprefix("seq_").rsplit("_", 1)
        if statistic == "k1":  # verl bounds the sampler's probability over the trainer's
            low, high = (1 / float(bound) for bound in reversed(bounds.split("_")))
            keep = keep & kept(x, "ratio", level, low, high)  # type: ignore[arg-type]
        else:
            keep = keep & kept(x, statistic, level, -INF, float(bounds))  # type: ignore[arg-type]
    return {"mask": np.asarray(keep, np.float64)}


# TRL


def trl_loss(args: Args, case: Case) -> Outputs:
    kind, level = args["loss_type"], args.get("importance_sampling_level", "token")
    means = {"grpo": "sequence_mean", "sapo": "sequence_mean", "dr_grpo": "constant", "luspo": "sequence_sum"}
    high = args.get("epsilon_high", 0.2)
    clip = partial(losses.clip, clip_low=args.get("epsilon_low", 0.2), clip_high=high)
    loss: Loss = partial(clip, dual_clip=args.get("args_delta"), level=level, log_ratio_limit=INF)
    if kind == "cispo":
        loss = partial(losses.cispo, weight_high=high, log_ratio_limit=INF)
    elif kind == "sapo":
        loss = partial(losses.sapo, level=level, log_ratio_limit=INF)
    elif kind == "vespo":
        loss = losses.vespo
    options: dict[str, Any] = {}
    if "off_policy_mask_threshold" in args:

        def moved(x: Tokens) -> jax.Array:
            drift = jax.lax.stop_gradient(x.logprobs) - x.behaviour_logprobs
            return opsm(x._replace(mismatch=drift), opsm_kl=args["off_policy_mask_threshold"])

        options["correction"] = moved
    elif "vllm_is" in args and kind != "vespo":
        options["correction"] = partial(trl_weights, args["vllm_is"])
    if kind == "vespo":

        def sampler(x: Tokens) -> Tokens:
            weight = trl_weights(args["vllm_is"], x) if "vllm_is" in args else jnp.ones_like(x.mismatch)
            return x._replace(behaviour_logprobs=x.old_logprobs - jnp.log(weight))

        options["prepare"] = sampler
    if "beta" in args:
        unbiased = args.get("args_use_bias_correction_kl", True)

        def divergence(x: Tokens) -> jax.Array:
            kl = kl_estimate(x.logprobs, jnp.asarray(case["ref_logprobs"]), "k3")
            return args["beta"] * kl * (jnp.exp(x.logprobs - x.old_logprobs) if unbiased else 1.0)

        options["added"] = divergence
    return outcome(
        case,
        loss,
        means.get(kind, "token_mean"),
        empty_rows=True,
        advantages="advantages" if "(B,T)" in args["advantages"] else "seq_advantages",
        **options,
    )


def trl_weights(args: Args, x: Tokens) -> jax.Array:
    level, beyond = args["mode"].split("_")
    low = 0.0 if args["clip_min"] is None else args["clip_min"]
    if beyond == "truncate":
        return tis(x, tis_level=level, tis_low=low, tis_high=args["clip_max"])
    return mis(x, mis_level=level, mis_low=low, mis_high=args["clip_max"])


def trl_rloo(args: Args, case: Case) -> Outputs:
    loss = partial(losses.clip, clip_low=args["epsilon_low"], clip_high=args["epsilon_high"], level="sequence_sum")
    return trl_sequences(loss, case)


def trl_gmpo(args: Args, case: Case) -> Outputs:
    return trl_sequences(
        partial(losses.gmpo, log_clip_low=args["epsilon_low"], log_clip_high=args["epsilon_high"]), case
    )


def trl_sequences(loss: Loss, case: Case) -> Outputs:
    """A mean over all sequences, in which one without a token has a ratio of 1."""
    found = outcome(case, loss, "sequence_mean", empty_rows=True, advantages="seq_advantages")
    empty = ~(case["mask"] > 0).any(axis=1)
    return {**found, "loss": found["loss"] - (case["seq_advantages"] * empty).sum() / len(empty)}


# AReaL


def areal_ppo(args: Args, case: Case) -> Outputs:
    low = args["eps_clip"]
    level = args.get("importance_sampling_level", "token")
    loss = partial(
        losses.clip,
        clip_low=low,
        clip_high=args.get("eps_clip_higher", low),
        dual_clip=args.get("c_clip"),
        level=level,
        log_ratio_limit=INF,
    )
    rules = args["rejection_sampling"]
    return outcome(
        case,
        loss,
        "token_mean",
        correction=None if rules is None else partial(areal_weights, rules),
        prepare=with_sequence_advantages if level == "sequence" else lambda x: x,
    )


def areal_weights(rules: Args, x: Tokens) -> jax.Array:
    """AReaL's "sequence" is the geometric mean."""
    by, low, high = rules.get("metric", "ratio").removeprefix("kl_"), rules.get("lower"), rules["upper"]
    level = "token" if rules["level"] == "token" else "geometric"
    if rules["action"] == "clamp":
        return tis(x, tis_level=level, tis_low=low or 0.0, tis_high=high)  # type: ignore[arg-type]
    over = "token" if level == "token" else rules.get("agg", "mean")
    weight = importance_weights(x, level if by == "ratio" else "token")  # type: ignore[arg-type]
    by = {"k3": "k3_reverse"}.get(by, by)
    low = -INF if low is None else low
    if by == "k1":  # of the other sign
        low, high = -high, -low
    return jnp.where(kept(x, by, over, low, high), weight, 0.0)  # type: ignore[arg-type]


def areal_sapo(args: Args, case: Case) -> Outputs:
    level = args["importance_sampling_level"]
    loss = partial(losses.sapo, sharpness_up=args["tau_pos"], sharpness_down=args["tau_neg"], level=level)
    prepare = with_sequence_advantages if level == "sequence" else lambda x: x
    return outcome(case, loss, "token_mean", prepare=prepare)


# OpenRLHF


def openrlhf_ppo(args: Args, case: Case) -> Outputs:
    low, high = args.get("clip_eps_low", 0.2), args.get("clip_eps_high", 0.2)
    loss = partial(losses.clip, clip_low=low, clip_high=high, dual_clip=args.get("dual_clip"))
    by_sequence = args.get("policy_loss_type") == "gspo"
    if by_sequence:
        loss = partial(loss, level="sequence", log_ratio_limit=INF)
    correction = partial(openrlhf_weights, args) if "is_correction_level" in args else None
    over_tokens = args.get("token_level_loss", True) and not by_sequence
    return outcome(case, loss, "token_mean" if over_tokens else "sequence_mean", correction=correction)


def openrlhf_weights(args: Args, x: Tokens) -> jax.Array:
    low, high = args["is_correction_threshold"]
    if args["is_correction_mode"] == "clip":
        return tis(x, tis_low=low, tis_high=high)
    level = "mean" if args["is_correction_level"] == "seq" else "token"
    keep = kept(x, args["is_correction_gating"], level, low, high)  # type: ignore[arg-type]
    return jnp.where(keep, importance_weights(x, "token"), 0.0)


# SkyRL, Tinker, ART

SKYRL_MEANS = {"token_mean": "token_mean", "sequence_mean": "sequence_mean", "seq_mean_token_sum_norm": "constant"}


def skyrl_loss(name: str, args: Args, case: Case) -> Outputs:
    config = args["config"]
    options: dict[str, Any] = {"correction": partial(skyrl_weights, config["o"])} if "o" in config else {}
    loss: Loss = losses.clip
    if config.get("lt") == "dual_clip":
        loss = partial(losses.clip, dual_clip=3.0)
    elif name == "sapo":
        loss = losses.sapo
    elif name == "gspo":
        loss = partial(losses.clip, clip_low=config["lo"], clip_high=config["hi"], level="sequence_token")
        loss = partial(loss, log_ratio_limit=10.0)
    elif name == "cispo":
        loss = partial(losses.cispo, weight_low=1 - config["clo"], weight_high=1 + config["chi"])
    elif name == "rollout_is":
        loss, low, high = losses.reinforce, 1 - config["lo"], 1 + config["hi"]
        options["prepare"] = lambda x: x._replace(mismatch=x.logprobs - x.behaviour_logprobs)
        options["correction"] = partial(mis, mis_low=low, mis_high=high)
    elif name.startswith("dppo"):
        loss = losses.dppo_kl if config.get("dt") == "binary_kl" else losses.dppo_tv
        low, high = config.get("dl", 0.15), config.get("dh", 0.15)
        loss = partial(loss, divergence_low=low, divergence_high=high, weight_high=None)
        options["old"] = "rollout_logprobs"
    return outcome(case, loss, SKYRL_MEANS[args["loss_reduction"]], empty_rows=True, **options)


def skyrl_weights(config: Args, x: Tokens) -> jax.Array:
    if "tis_ratio_type" in config:
        level = config["tis_ratio_type"]
        return tis(x, tis_level=level, tis_high=2.0 if level == "token" else 5.0)
    if config.get("sequence_mask_metric") == "geometric":
        return kept(x, "ratio", "mean", config["geo_mask_low"], config["geo_mask_high"]).astype(x.mismatch.dtype)
    kind, level = ("token_mask", "token") if "token_mask_is_threshold_low" in config else ("outlier_token", "all")
    low, high = config[f"{kind}_is_threshold_low"], config[f"{kind}_is_threshold_high"]
    return kept(x, "ratio", level, low, high).astype(x.mismatch.dtype)  # type: ignore[arg-type]


def tinker_loss(name: str, args: Args, case: Case) -> Outputs:
    low, high = args["clip_low_threshold"], args["clip_high_threshold"]
    loss: Loss = partial(losses.clip, clip_low=1 - low, clip_high=high - 1, log_ratio_limit=INF)
    if name == "importance_sampling":
        loss = partial(losses.importance, log_ratio_limit=INF)
    elif name == "cispo":
        loss = partial(losses.cispo, weight_low=low, weight_high=high, log_ratio_limit=INF)
    return outcome(case, loss, "token_sum", old=args["old"])


def art_loss(args: Args, case: Case) -> Outputs:
    config = args["experimental_config"]
    level = config.get("importance_sampling_level", "token")
    if config.get("ppo"):
        return outcome(case, partial(losses.clip, level=level, log_ratio_limit=INF), "token_mean")
    loss: Loss = partial(losses.cispo, proximity=config.get("kimi_k2_tau", 0.0), level=level, log_ratio_limit=INF)
    options: dict[str, Any] = {}
    if "mask_prob_ratio" in config:  # what is masked has a ratio of 0, and is then clipped to 1 - epsilon
        low, high = 1 - config["epsilon"], 1 + config["epsilon_high"]
        loss = losses.reinforce
        options["prepare"] = lambda x: x._replace(mismatch=x.logprobs - x.old_logprobs)
        options["correction"] = lambda x: jnp.clip(mis(x, mis_low=low, mis_high=high), low, high)
    if "kl_penalty_coef" in config:

        def shaped(x: Tokens) -> Tokens:
            inside = x.mask.astype(x.logprobs.dtype)
            reference = jnp.asarray(case["ref_logprobs"])
            return x._replace(
                advantages=kl_shaped(x.advantages, x.logprobs, reference, inside, config["kl_penalty_coef"])
            )

        options["prepare"] = shaped
    return outcome(case, loss, "token_mean", **options)


# Cross-entropy, divergences, values


def sft_loss(args: Args, case: Case) -> Outputs:
    ones = {**case, "advantages": np.ones_like(case["mask"])}
    aggregate = "token_sum" if args.get("reduce") == "sum" else None
    aggregate = aggregate or ("token_mean" if args["token_level_loss"] else "sequence_mean")
    return outcome(ones, losses.reinforce, aggregate)


def kl_term(peer: str, args: Args, case: Case) -> Outputs:
    estimator = args.get("kl_penalty") or args.get("kl_estimator")
    is_k3 = estimator in ("k3", "k3+")
    limits: Mapping[str, Any] = {
        "verl": {"difference_limit": 20.0, "value_limit": 10.0} if is_k3 else {},
        "areal": {"value_limit": 10.0},
        "openrlhf": {"difference_limit": 10.0, "value_limit": 10.0},
    }[peer]
    weights = token_weights(case, "token_mean", False)

    def mean(logprobs: jax.Array) -> jax.Array:
        kl = kl_estimate(logprobs, jnp.asarray(case["ref_logprobs"]), estimator, **limits)  # type: ignore[arg-type]
        return masked_sum(weights * kl, jnp.asarray(case["mask"] > 0))

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(case["logprobs"]))
    return {"loss": np.asarray(value), "grad_logprobs": np.asarray(gradient)}


def critic_loss(args: Args, case: Case) -> Outputs:
    clip = args.get("cliprange_value", args.get("value_eps_clip", args.get("clip_eps")))
    kind = "huber" if args.get("loss_fn_type") == "huber" else "square"
    weights = token_weights(case, "token_mean", False)

    def mean(values: jax.Array) -> jax.Array:
        old, returns = jnp.asarray(case["old_values"]), jnp.asarray(case["returns"])
        return masked_sum(
            weights * value_loss(values, old, returns, clip=clip, kind=kind), jnp.asarray(case["mask"] > 0)
        )

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(case["values"]))
    return {"loss": np.asarray(value), "grad_values": np.asarray(gradient)}
