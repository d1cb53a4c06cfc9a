"""Losses that pull a student towards a teacher, per token, from the logits or log-probabilities of both."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl.types import Number

Tail = Literal["bucket", "drop"]
Divergence = Literal["forward", "reverse", "jensen_shannon"]


def divergence(
    student: Float[Array, "*tokens V"], teacher: Float[Array, "*tokens V"], *, mixture: float = 0.5
) -> Float[Array, "*tokens"]:
    """Generalised Jensen-Shannon divergence of two distributions given as log-probabilities (GKD, arXiv:2306.13649).

    Args:
        student: log-probabilities that are trained.
        teacher: the target's.
        mixture: 0 is the forward KL(teacher || student), 1 the reverse KL(student || teacher); between them, the
            divergence of both from `mixture * teacher + (1 - mixture) * student`.
    """
    if mixture == 0.0:
        return _kl(teacher, student)
    if mixture == 1.0:
        return _kl(student, teacher)
    return jensen_shannon(student, teacher, mixture)


def jensen_shannon(
    student: Float[Array, "*tokens V"], teacher: Float[Array, "*tokens V"], mixture: Number
) -> Float[Array, "*tokens"]:
    """`divergence` for a mixture, perhaps traced, between 0 and 1, both excluded."""
    middle = jnp.logaddexp(student + jnp.log1p(-mixture), teacher + jnp.log(mixture))
    return mixture * _kl(teacher, middle) + (1.0 - mixture) * _kl(student, middle)


def _kl(p: Float[Array, "*tokens V"], q: Float[Array, "*tokens V"]) -> Float[Array, "*tokens"]:
    """KL(p || q) of log-probabilities; what has none under p counts nothing."""
    return jnp.where(jnp.isneginf(p), 0.0, jnp.exp(p) * (jnp.where(jnp.isneginf(p), 0.0, p) - q)).sum(axis=-1)


def distil(
    student_logits: Float[Array, "*tokens V"],
    teacher_logits: Float[Array, "*tokens V"],
    *,
    mixture: float = 1.0,
    temperature: Number = 1.0,
) -> Float[Array, "*tokens"]:
    """`divergence` over the whole vocabulary."""
    student = jax.nn.log_softmax(student_logits / temperature)
    return divergence(student, jax.nn.log_softmax(teacher_logits / temperature), mixture=mixture)


def distil_top(
    student_logits: Float[Array, "*tokens V"],
    teacher_logits: Float[Array, "*tokens V"],
    *,
    count: int,
    support: Literal["student", "teacher"] = "student",
    mixture: float = 1.0,
    tail: Tail = "bucket",
) -> Float[Array, "*tokens"]:
    """`divergence` over the `count` likeliest tokens (SDFT and SDPO in TRL and Tinker's cookbook; arXiv:2601.19897).

    Args:
        student_logits: logits that are trained.
        teacher_logits: the target's.
        count: how many tokens are compared.
        support: whose likeliest these are.
        mixture: as in `divergence`.
        tail: the other tokens together are one more (`bucket`), or those compared are made to sum to 1 (`drop`).
    """
    student, teacher = jax.nn.log_softmax(student_logits), jax.nn.log_softmax(teacher_logits)
    _, chosen = jax.lax.top_k(student if support == "student" else teacher, count)
    student, teacher = (jnp.take_along_axis(logprobs, chosen, axis=-1) for logprobs in (student, teacher))
    return divergence(completed(student, tail), completed(teacher, tail), mixture=mixture)


def apart_on_top(
    student: Float[Array, "*tokens K"],
    teacher: Float[Array, "*tokens K"],
    *,
    kind: Divergence,
    mixture: Number,
    tail: Tail,
) -> Float[Array, "*tokens"]:
    """The divergence of two models from the log-probabilities that they give to the same few tokens.

    Args:
        student: log-probabilities that are trained.
        teacher: the target's.
        kind: KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon divergence.
        mixture: the teacher's share of what both are compared with in the last.
        tail: as in `distil_top`.
    """
    p, q = completed(student, tail), completed(teacher, tail)
    if kind == "jensen_shannon":
        return jensen_shannon(p, q, mixture)
    return _kl(q, p) if kind == "forward" else _kl(p, q)


def completed(logprobs: Float[Array, "*tokens K"], tail: Tail) -> Float[Array, "*tokens K1"]:
    """A distribution of the log-probabilities of some tokens: see `distil_top`."""
    return _with_tail(logprobs) if tail == "bucket" else jax.nn.log_softmax(logprobs)


def _with_tail(logprobs: Float[Array, "*tokens K"]) -> Float[Array, "*tokens K1"]:
    """One more entry, with the probability that is left."""
    inside = jnp.minimum(jax.nn.logsumexp(logprobs, axis=-1, keepdims=True), -1e-7)
    return jnp.concatenate([logprobs, jnp.log(-jnp.expm1(inside))], axis=-1)


def policy_gradient_of_kl(
    student: Float[Array, "*tokens"], teacher: Float[Array, "*tokens"]
) -> Float[Array, "*tokens"]:
    """`sg(log student - log teacher) * log student` of sampled tokens: the gradient of the reverse KL, as on-policy
    distillation estimates it (Thinking Machines 2025; TRL's `sampled_token`)."""
    return jax.lax.stop_gradient(student - teacher) * student


def reverse_kl_score(
    student_logits: Float[Array, "*tokens V"], teacher_logits: Float[Array, "*tokens V"], *, count: int
) -> Float[Array, "*tokens"]:
    """`sum_v p_v sg(log p_v - log q_v)` over the teacher's `count` likeliest tokens, both made to sum to 1.

    It has value and gradient of the reverse KL, since `sum p` has none (Tinker's cookbook)."""
    _, chosen = jax.lax.top_k(teacher_logits, count)
    p = jax.nn.log_softmax(jnp.take_along_axis(student_logits, chosen, axis=-1))
    q = jax.nn.log_softmax(jnp.take_along_axis(teacher_logits, chosen, axis=-1))
    return (jnp.exp(p) * jax.lax.stop_gradient(p - q)).sum(axis=-1)
