"""The algorithms people know, each a choice of parts. Every argument of their parts is an argument of theirs."""

from collections.abc import Callable, Mapping

from rl.algorithms.base import Algorithm
from rl.algorithms.compose import named

grpo = named(
    "grpo",
    """GRPO (Shao et al. 2024, arXiv:2402.03300) with DAPO's separate clip bounds (arXiv:2503.14476).

    Differs from the paper in two defaults: tokens, not sequences, are averaged, and there is no KL term.""",
)

dr_grpo = named(
    "dr_grpo",
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): GRPO without the two normalisations that bias it.""",
    normalise_std=False,
    aggregate="constant",
)

dapo = named(
    "dapo",
    """DAPO (Yu et al. 2025, arXiv:2503.14476): GRPO that clips higher above than below, over all tokens alike.

    Its dynamic sampling is a choice of groups and no part of the loss: `selection=differ`; its
    penalty of overlong answers is `length_penalty=overlong`, off unless asked for, since its limit depends on
    `sampling.max_tokens`.""",
    clip_high=0.28,
)

rloo = named(
    "rloo",
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740) on the clipped surrogate.

    On policy the ratio is 1 and the gradient is plain REINFORCE; the clip matters once data are reused.""",
    credit="leave_one_out",
)

reinforce = named(
    "reinforce",
    """REINFORCE (Williams 1992; for language models Ahmadian et al. 2024, arXiv:2402.14740): no ratio, no clip, no
    baseline. Rewards that are all of one sign make it slow: a baseline (`credit=leave_one_out`) costs nothing.""",
    credit="no_baseline",
    loss="reinforce",
    aggregate="sequence_sum",
)

reinforce_pp = named(
    "reinforce_pp",
    """REINFORCE++ (Hu 2025, arXiv:2501.03262): one baseline and one scale for the whole batch.

    `group_baseline` takes off the group's mean first, the paper's variant for several rollouts per task. The paper's KL
    in the reward is `kl_in=reward`.""",
    credit="batch_mean",
)

opo = named(
    "opo",
    """OPO (Hao et al. 2025, arXiv:2505.23585): exactly on policy, with the baseline of least variance.""",
    credit="length_weighted",
    loss="reinforce",
)

gpg = named(
    "gpg",
    """GPG (Chu et al. 2025, arXiv:2504.02546): the policy gradient itself, larger where few rollouts have a reward.""",
    credit="success_scaled",
    loss="reinforce",
)

maxrl = named(
    "maxrl",
    """MaxRL (Tajwar et al. 2026, arXiv:2602.02710): hard tasks weigh more, as in maximising the likelihood of success.

    Rewards must not be negative.""",
    credit="mean_normalised",
    loss="reinforce",
)

pass_at_k = named(
    "pass_at_k",
    """Pass@k training (Tang et al. 2025, arXiv:2503.19595): only the best rollout of a group learns, from its lead.""",
    credit="best_of_group",
)

gdpo = named(
    "gdpo",
    """GDPO (Liu et al. 2026, arXiv:2601.05242): several rewards, each normalised in its group, then summed.""",
    credit="several_rewards",
)

gspo = named(
    "gspo",
    """GSPO (Zheng et al. 2025, arXiv:2507.18071): ratios of whole sequences (their geometric mean per token).

    The bounds are the paper's and narrow. `level=sequence_token` is GSPO-token.""",
    level="sequence",
    clip_low=3e-4,
    clip_high=4e-4,
    aggregate="sequence_mean",
)

cispo = named(
    "cispo",
    """CISPO of MiniMax-M1 (2025, arXiv:2506.13585): clips importance weights and keeps every token's gradient.

    The bounds are those of ScaleRL (arXiv:2510.13786) and TRL.""",
    loss="cispo",
)

sapo = named(
    "sapo",
    """SAPO (Gao et al. 2025, arXiv:2511.20347): a sigmoid gate in place of the clip.""",
    loss="sapo",
    aggregate="sequence_mean",
)

gmpo = named(
    "gmpo",
    """GMPO (Zhao et al. 2025, arXiv:2507.20673): a geometric mean of ratios, clipped token by token.""",
    loss="gmpo",
    aggregate="sequence_mean",
)

dppo_tv = named(
    "dppo_tv",
    """DPPO (2026, arXiv:2602.04879) with total variation: masks tokens by how much probability they moved.""",
    loss="dppo_tv",
)

dppo_kl = named(
    "dppo_kl",
    """DPPO (2026, arXiv:2602.04879) with the KL divergence of "this token or another".""",
    loss="dppo_kl",
)

ipo_mask = named(
    "ipo_mask",
    """The loss of prime-rl (INTELLECT-3, arXiv:2512.16144): masked by the change of probability, and a square.""",
    loss="ipo",
    normalise_std=False,
)

dro = named(
    "dro",
    """DRO (Richemond et al. 2024, arXiv:2405.19107) with the group's mean in place of a learned value.""",
    loss="dro",
    normalise_std=False,
)

kimi_k15 = named(
    "kimi_k15",
    """Kimi K1.5's mirror descent (2025, arXiv:2501.12599): a square in the log-ratio of the whole sequence.""",
    loss="dro",
    level="sequence_sum",
    log_ratio_limit=20.0,
    normalise_std=False,
)

topr = named(
    "topr",
    """TOPR (Le Roux et al. 2025, arXiv:2503.14286): no weight on what was good, tapered weights on what was bad.""",
    loss="topr",
    normalise_std=False,
)

vespo = named(
    "vespo",
    """VESPO (Shen et al. 2026, arXiv:2602.10693): a soft kernel over the weight of the whole sequence.""",
    loss="vespo",
)

clip_cov = named(
    "clip_cov",
    """Clip-Cov (Cui et al. 2025, arXiv:2505.22617): a few tokens that would cost much entropy do not learn.

    Takes the tokens of largest covariance in the band, where the authors draw at random.""",
    loss="clip_cov",
)

kl_cov = named(
    "kl_cov",
    """KL-Cov (Cui et al. 2025, arXiv:2505.22617): those tokens are held by the absolute log-ratio instead.""",
    loss="kl_cov",
)

importance = named(
    "importance",
    """The policy gradient with unclipped importance weights (Tinker's `importance_sampling`; on policy REINFORCE with a
    group baseline, arXiv:2402.14740).""",
    loss="importance",
    normalise_std=False,
)

decoupled_ppo = named(
    "decoupled_ppo",
    """Decoupled PPO (AReaL, arXiv:2505.24298; Hilton et al. 2021, arXiv:2110.00641): the trust region is around the
    policy of the update, and what an older one sampled is weighed by truncated importance weights.

    With one step per batch that policy is the one being trained, and nothing is ever clipped: it takes `minibatches=4`
    or `epochs=2`.""",
    correction="tis",
)

icepop = named(
    "icepop",
    """IcePop (Ring-1T 2025, arXiv:2510.18855): leaves out tokens on which trainer and sampler disagree.""",
    correction="mis",
)

opd = named(
    "opd",
    """On-policy distillation (Agarwal et al. 2023, arXiv:2306.13649; in this form Thinking Machines 2025): the policy
    samples, and every token earns the log of the teacher's over the policy's probability of it. The policy gradient is
    that of the reverse KL divergence from the teacher, estimated by the sampled tokens alone.

    The teacher, `teacher=runs/NAME` or another model, reads the same tokens; temperature divides both models' logits.
    `teacher=http://HOST:PORT` is one that SGLang or `rl serve` serves, at temperature 1. With `credit=group_mean`
    rewards count, too.""",
    credit="nothing",
    loss="distil",
)

gkd = named(
    "gkd",
    """Generalised knowledge distillation (GKD; Agarwal et al. 2023, arXiv:2306.13649) on what the policy samples: in
    the place of every sampled token, the divergence of both models' distributions, forward, reverse or between them.

    The teacher, `teacher=runs/NAME` or another model, reads the same tokens; temperature divides both models' logits.
    Differs from the paper in that only the teacher's `top` likeliest tokens are told apart (top=V compares all), and
    in that no answers of the teacher are mixed in: `mix` adds demonstrations. With `credit=group_mean` rewards count,
    too.""",
    credit="nothing",
    loss="distil_top",
    divergence="jensen_shannon",
)

sdft = named(
    "sdft",
    """Self-distillation from demonstrations (SDFT; Shenfeld et al. 2026, arXiv:2601.19897): the policy samples an
    answer, and every token earns what the policy itself, shown a demonstration in its prompt, thinks better or worse of
    it.

    As in `opd`, the reverse KL divergence is estimated by the sampled tokens alone; `loss=distil_top_self` compares the
    distributions. The teacher has the policy's own weights at each update, the first, or, as in the paper, a moving
    average of them (`teacher_weights=average`). A model that does not answer better when it is shown how learns
    nothing. Prompts have to be those of the tasks, without tools, and turns to continue each other's tokens.""",
    credit="nothing",
    loss="distil_self",
)

sdpo = named(
    "sdpo",
    """Self-distillation from one's own successes (SDPO; Hübotter et al. 2026, arXiv:2601.20802): as `sdft`, but what
    the teacher is shown is the best rollout of the group; those that are the best, or as good, learn nothing.

    Differs from the paper as `sdft` does, and is not told why an answer failed. With `credit=group_mean` rewards count,
    too.""",
    credit="nothing",
    loss="distil_self",
    privileged="best",
)

ppo = named(
    "ppo",
    """PPO (Schulman et al. 2017, arXiv:1707.06347): a critic learns what each token is worth, and advantages are
    generalised (arXiv:1506.02438) over the tokens of a rollout.

    Advantages and the critic's targets are compared with what came in the end (`trace=1`, as in verl and OpenRLHF;
    `value_trace=1`, VC-PPO, arXiv:2503.01491): a critic that has learned little biases neither. Differs from verl and
    TRL in that values are not clipped unless `value_clip` says so. `critic=separate` costs a second model and its
    optimizer's state; `critic=shared` a head. Groups are not needed: `group_size=1` will do.""",
    credit="gae",
)

remax = named(
    "remax",
    """ReMax (Li et al. 2023, arXiv:2310.10505): the baseline is the reward of the greedy answer to the same task.

    It costs one more rollout per task, and `group_size=1` will do.""",
    credit="greedy_baseline",
    loss="reinforce",
)

rae = named(
    "rae",
    """Role-conditioned advantages of SPIRAL (Liu et al. 2025, arXiv:2506.24119): each environment's own moving average
    of rewards is the baseline, so that a group needs no second rollout.""",
    credit="moving_baseline",
    loss="reinforce",
)

turn_level = named(
    "turn_level",
    """Turn-level credit (MT-GRPO; Zeng et al. 2025, arXiv:2505.11821): each turn is credited with what it leads to,
    beside the same turns of the group.

    Differs from the paper, which adds a share of the outcome to each turn's own reward: here returns to go, discounted
    per turn. Rewards per turn come from reward functions that return a list, one number per turn; without any, what
    came at the end counts for all turns.""",
    credit="turn_level",
)

otb = named(
    "otb",
    """Optimal token baseline (Li et al. 2026, arXiv:2602.07078): the baseline of least variance at every token.

    Asks the policy once more about the batch before the update, for the norm of each token's score.""",
    credit="optimal_token",
    loss="reinforce",
)

custom = named(
    "custom",
    """Any parts by name: `credit`, `loss`, `correction` … (the defaults are those of GRPO, arXiv:2402.03300).""",
)

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {
    factory.__name__: factory
    for factory in (
        grpo, dr_grpo, dapo, rloo, reinforce, reinforce_pp, opo, gpg, maxrl, pass_at_k, gdpo, gspo, cispo, sapo, gmpo,
        dppo_tv, dppo_kl, ipo_mask, dro, kimi_k15, topr, vespo, clip_cov, kl_cov, importance, decoupled_ppo, icepop,
        opd, gkd, sdft, sdpo, ppo, remax, rae, turn_level, otb, custom,
    )
}  # fmt: skip
"""By the name in a config."""
