"""How other libraries' losses over pairs, reward models and teachers are said in our functions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl.algorithms import distillation, preference

Case = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Args = Mapping[str, Any]
Pairwise = Callable[[jax.Array, jax.Array], jax.Array]


def margins(case: Case, loss: Pairwise, per_token: bool = False) -> Outputs:
    """Mean loss and its gradients, of `log policy - log reference` of chosen and rejected answers."""
    lengths = (case["chosen_len"], case["rejected_len"]) if per_token else (1.0, 1.0)

    def mean(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        better = (chosen - case["ref_chosen_logps"]) / lengths[0]
        worse = (rejected - case["ref_rejected_logps"]) / lengths[1]
        return loss(better, worse).mean()

    return two_gradients(mean, case, "logps")


def two_gradients(mean: Pairwise, case: Case, what: str) -> Outputs:
    inputs = jnp.asarray(case[f"chosen_{what}"]), jnp.asarray(case[f"rejected_{what}"])
    value, (chosen, rejected) = jax.value_and_grad(mean, argnums=(0, 1))(*inputs)
    found = {"loss": value, f"grad_chosen_{what}": chosen, f"grad_rejected_{what}": rejected}
    return {name: np.asarray(each) for name, each in found.items()}


def trl_dpo(args: Args, case: Case) -> Outputs:
    kind, beta, smoothing = args["loss_type"], args["beta"], args["label_smoothing"]
    if kind == "aot":  # sorts the policy's and the reference's preferences

        def paired(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
            reference = jnp.asarray(case["ref_chosen_logps"] - case["ref_rejected_logps"])
            return preference.aot(chosen - rejected, reference, beta=beta, label_smoothing=smoothing).mean()

        return two_gradients(paired, case, "logps")
    ours: Mapping[str, Pairwise] = {
        "sigmoid": partial(preference.dpo, beta=beta, label_smoothing=smoothing),
        "sigmoid_norm": partial(preference.dpo, beta=beta),
        "exo_pair": partial(preference.exo_pair, beta=beta, label_smoothing=smoothing),
        "robust": partial(preference.robust_dpo, beta=beta, label_smoothing=smoothing),
        "aot_unpaired": partial(preference.aot, beta=beta, label_smoothing=smoothing),
    }
    loss = ours[kind] if kind in ours else partial(preference.PAIRWISE[kind], beta=beta)
    return margins(case, loss, per_token=kind in ("ipo", "sigmoid_norm"))


def trl_kto(args: Args, case: Case) -> Outputs:
    apart = jnp.asarray(case["kl_logps"] - case["ref_kl_logps"]).mean()
    kl = jnp.maximum(apart, 0.0) if args["loss_type"] == "kto" else jnp.zeros(())

    def mean(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        each = jnp.concatenate([chosen - case["ref_chosen_logps"], rejected - case["ref_rejected_logps"]])
        good = jnp.concatenate([jnp.ones(len(chosen)), jnp.zeros(len(rejected))])
        weights = {"weight_good": args["desirable_weight"], "weight_bad": args["undesirable_weight"]}
        return preference.kto(each, good, kl, beta=args["beta"], **weights).mean()

    return two_gradients(mean, case, "logps")


def openrlhf_dpo(args: Args, case: Case) -> Outputs:
    if args.get("ipo"):
        return margins(case, partial(preference.ipo, beta=args["beta"]))
    smoothing = args.get("label_smoothing", 0.0)
    return margins(case, partial(preference.dpo, beta=args["beta"], label_smoothing=smoothing))


def plain_dpo(args: Args, case: Case) -> Outputs:
    return margins(case, partial(preference.dpo, beta=args.get("beta", args.get("dpo_beta"))))


def reward_model(args: Args, case: Case) -> Outputs:
    return two_gradients(lambda good, bad: preference.bradley_terry(good, bad).mean(), case, "rewards")


# Teachers


def from_teacher(case: Case, loss: Pairwise, *, total: bool = False) -> Outputs:
    """Mean (or sum) over the mask of a loss of both logits, and its gradient in the student's."""
    mask = jnp.asarray(case["mask"])
    teacher = jnp.asarray(case["teacher_logits"])

    def mean(student: jax.Array) -> jax.Array:
        return (loss(student, teacher) * mask).sum() / (1.0 if total else mask.sum())

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(case["student_logits"]))
    return {"loss": np.asarray(value), "grad_student_logits": np.asarray(gradient)}


def trl_sdft(args: Args, case: Case) -> Outputs:
    mixture = args["distillation_alpha"]
    if "distillation_topk" not in args:
        return from_teacher(case, partial(distillation.distil, mixture=mixture))
    tail = "bucket" if args["distillation_add_tail"] else "drop"
    loss = partial(distillation.distil_top, count=args["distillation_topk"], mixture=mixture, tail=tail)
    return from_teacher(case, loss)


def trl_sampled(args: Args, case: Case) -> Outputs:
    sampled = jnp.asarray(case["ids"], jnp.int32)[..., None]

    def loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
        own, other = (jnp.take_along_axis(jax.nn.log_softmax(x), sampled, -1)[..., 0] for x in (student, teacher))
        return distillation.policy_gradient_of_kl(own, other)

    return from_teacher(case, loss)


def trl_gold(args: Args, case: Case) -> Outputs:
    return from_teacher(case, partial(distillation.distil, mixture=args["beta"], temperature=args["temperature"]))


def tinker_sdft(args: Args, case: Case) -> Outputs:
    return from_teacher(case, partial(distillation.reverse_kl_score, count=args["topk_teacher"]), total=True)
