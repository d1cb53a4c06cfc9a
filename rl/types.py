"""The arrays that cross from rollouts to updates."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

Number = float | Float[Array, ""]
"""A hyper-parameter: constant, or traced."""
Hyper = Mapping[str, Number]
"""Traced scalars of an update by name (learning rate, clip bounds …): a sweep over them compiles nothing new."""


class Batch(NamedTuple):
    """Packed token arrays, `R` rows of `L` tokens. Index `t` always speaks about token `t`, given those before it.

    The packer leaves numpy arrays here; the compiled update takes them as they are.

    Attributes:
        tokens: token ids.
        positions: position of the token within its segment.
        segment_ids: 0 is padding; equal positive ids within a row belong to one sequence.
        mask: tokens the policy sampled and that are trained on.
        behaviour_logprobs: log-probability the token had when it was sampled.
        reference_logprobs: the same under the reference policy; zeros where no reference is used.
        advantages: credit of the token.
        rollout_tokens: trainable tokens of the token's whole rollout, which may span several segments.
        versions: the policy version that sampled the token; 0 for what no policy sampled.
        chosen: tokens that the algorithm singles out, looking at the whole batch (`Algorithm.prepare`); none at first.
        values: what the critic said of the state before the token, when credit was given; zeros where there is none.
        returns: what the critic should have said.
        rollouts: how many rollouts have any trainable token.
        proximal_logprobs: log-probability under the policy that the batch found, where it is scored first.
        pairs: number of the pair that a token's answer belongs to, negative in the worse answer; 0 belongs to none.
        top_ids: the tokens that a teacher finds likeliest in the token's place; 8 K bytes a token with the next.
        top_logprobs: and their log-probabilities under the teacher.
        observed: values to observe that `Algorithm.prepare` found.
        components: the token's weight in each component of the loss (`rl.algorithms.components`); empty: there is one.
        experts: those that the sampler sent the token through, in each layer that has any, and that the policy is to
            send it through again; -1 where that is not known, and it chooses anew. None: of no token.
    """

    tokens: Int[Array, "R L"]
    positions: Int[Array, "R L"]
    segment_ids: Int[Array, "R L"]
    mask: Bool[Array, "R L"]
    behaviour_logprobs: Float[Array, "R L"]
    reference_logprobs: Float[Array, "R L"]
    advantages: Float[Array, "R L"]
    rollout_tokens: Int[Array, "R L"]
    versions: Int[Array, "R L"]
    chosen: Bool[Array, "R L"]
    values: Float[Array, "R L"]
    returns: Float[Array, "R L"]
    rollouts: Int[Array, ""]
    proximal_logprobs: Float[Array, "R L"] | None = None
    pairs: Int[Array, "R L"] | None = None
    top_ids: Int[Array, "R L K"] | None = None
    top_logprobs: Float[Array, "R L K"] | None = None
    observed: Mapping[str, Float[Array, "R L"]] = {}
    components: Mapping[str, Float[Array, "R L"]] = {}
    experts: Int[Array, "R L layers k"] | None = None
