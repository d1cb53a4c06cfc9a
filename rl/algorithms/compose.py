"""An algorithm is a composition of parts, each one function in a table:

| part | table | what it says |
|---|---|---|
| credit | `credit.CREDITS` | rewards of a step -> an advantage per rollout |
| length_penalty | `credit.LENGTH_PENALTIES` | what is added to the rewards before that |
| loss | `losses.LOSSES` | log-probabilities, old ones, advantages -> a loss per token |
| correction | `corrections.CORRECTIONS` | what that is multiplied with, for tokens another policy sampled |
| aggregate | `aggregate.aggregation` | which weight every token has in the sum |

and two regularisers, a divergence from the reference policy and the entropy. A part's keyword arguments are the
algorithm's: those annotated `float` become traced hyper-parameters, others are choices. `named` makes a factory with a
signature of its own out of a choice of parts; `rl.algorithms.named` has the ones people know.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl.algorithms.aggregate import Aggregate, aggregation
from rl.algorithms.base import Algorithm, Ask, Critic, Outcomes, TokenLoss, Tokens
from rl.algorithms.corrections import CORRECTIONS, WEIGHTS
from rl.algorithms.covariance import CHOICES
from rl.algorithms.credit import CREDITS, KEEPS, LENGTH_PENALTIES
from rl.algorithms.losses import COMPARING, LOSSES, SELF_TAUGHT, TAUGHT
from rl.algorithms.privileged import Privilege
from rl.algorithms.token_credit import CRITICS, CriticParts, Kind
from rl.ops.kl import KL_ESTIMATORS, KLEstimator, kl_estimate
from rl.ops.logprobs import TokenScores
from rl.ops.masked import clamp
from rl.types import Batch, Hyper, Number

Part = str | Callable[..., Any]
"""A name in a table, or a function."""
RatioTo = Literal["behaviour", "current"]

TABLES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "credit": CREDITS,
    "length_penalty": LENGTH_PENALTIES,
    "loss": LOSSES,
    "correction": CORRECTIONS,
}


def compose(
    *,
    credit: Part = "group_mean",
    length_penalty: Part | None = None,
    loss: Part = "clip",
    ratio_to: RatioTo | None = None,
    correction: Part | Sequence[Part] | None = None,
    aggregate: Aggregate = "token_mean",
    horizon: int = 1024,
    kl_weight: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_in: Literal["loss", "reward"] = "loss",
    kl_unbiased: bool = False,
    entropy_weight: float = 0.0,
    **settings: Any,
) -> Algorithm:
    """An algorithm of parts by name; `settings` are the parts' own arguments.

    Args:
        credit: how rewards become advantages.
        length_penalty: overlong or per_token; null leaves rewards as they are.
        loss: what is made of a token's log-probabilities and its advantage.
        ratio_to: behaviour or current, the policy that ratios are taken to; null: current if a correction weighs.
        correction: tis, mis, reject, opsm, staleness, or a list of them; null trusts the sampler.
        aggregate: token_mean, sequence_mean, constant, sequence_sum or token_sum.
        horizon: tokens per rollout that "constant" divides by.
        kl_weight: of the divergence from the policy that RL starts with; 0 needs no reference.
        kl_estimator: k1, k2, k3, abs, k1+ or k3+ (+: the gradient of k2).
        kl_in: loss, or reward: taken off the advantages of its tokens, relative to the batch's mean (GAE: off rewards).
        kl_unbiased: multiply the estimate in the loss by the ratio (DeepSeek-V3.2, arXiv:2512.02556).
        entropy_weight: of the entropy (nats) that the loss rewards.

    Raises:
        ValueError: for an unknown part, argument or choice, a correction that would count twice, or a divergence from a
            reference beside a teacher that stands in its place.
    """
    chosen = Parts.of(credit=credit, length_penalty=length_penalty, loss=loss, correction=correction)
    numbers, choices = chosen.bind(settings)
    weighs = any(function in WEIGHTS.values() for function in chosen.corrections)
    ratio_to = ratio_to or ("current" if weighs else "behaviour")
    if weighs and ratio_to == "behaviour":
        raise ValueError(
            "correction weighs by the ratio to the sampler, and so does the loss with ratio_to=behaviour: it would "
            "count twice; set ratio_to=current, or take a correction that only leaves out (reject, opsm, staleness)"
        )
    if kl_estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimator is {kl_estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}")
    with_kl, with_teacher = kl_weight > 0, chosen.loss in TAUGHT
    if with_kl and chosen.privilege is not None:
        raise ValueError("kl_weight is of the divergence from a reference, and the teacher stands in its place; set 0")
    regularisers = _Regularisers(
        kl_estimator if with_kl and kl_in == "loss" else None, kl_unbiased, entropy_weight != 0
    )
    in_reward = with_kl and kl_in == "reward"
    in_credit = in_reward and chosen.critic is not None
    hosted = _Hosted(chosen, {**numbers, **choices}, kl_weight if in_credit else 0.0)
    asked: frozenset[Ask] = getattr(chosen.credit, "asks", frozenset())
    return Algorithm(
        credit=hosted.of(chosen.credit),
        loss=_loss(chosen, choices, ratio_to, regularisers),
        weights=aggregation(aggregate, horizon),
        hyper={**chosen.traced(numbers), "kl_weight": kl_weight, "entropy_weight": entropy_weight},
        needs_reference=with_kl or with_teacher,
        needs_teacher=with_teacher,
        prepare=_prepare(chosen, choices, in_reward and not in_credit),
        asks=asked | {"behaviour_logprobs", "reference_logprobs"} if in_credit else asked,
        critic=hosted.critic(),
        keep=None if chosen.credit not in KEEPS else hosted.of(KEEPS[chosen.credit]),
        privilege=None
        if chosen.privilege is None
        else chosen.privilege(**_arguments(chosen.privilege, numbers, choices)),
        top=_compared(numbers, choices) if chosen.loss in COMPARING else 0,
    )


def _compared(numbers: Mapping[str, float], choices: Mapping[str, Any]) -> int:
    """How many of a teacher's tokens are compared."""
    if choices["top"] < 1:
        raise ValueError(f"top is {choices['top']}; expected at least 1 of the teacher's tokens to compare with")
    if not 0.0 < numbers["mixture"] < 1.0:
        raise ValueError(
            f"mixture is {numbers['mixture']:g}; expected a share above 0 and below 1; what it would be at the ends is "
            "divergence=forward and divergence=reverse"
        )
    count: int = choices["top"]
    return count


class Parts(NamedTuple):
    """The functions an algorithm is made of."""

    credit: Callable[..., Any]
    length_penalty: Callable[..., Any] | None
    loss: Callable[..., Any]
    choice: Callable[..., Any] | None
    corrections: tuple[Callable[..., Any], ...]
    critic: CriticParts | None
    privilege: Callable[..., Privilege] | None

    @classmethod
    def of(cls, *, credit: Part, length_penalty: Part | None, loss: Part, correction: Any) -> "Parts":
        listed = [] if correction is None else [correction] if isinstance(correction, str) else correction
        listed = [listed] if callable(listed) else listed
        function, loss_function = look_up("credit", credit), look_up("loss", loss)
        return cls(
            function,
            None if length_penalty is None else look_up("length_penalty", length_penalty),
            loss_function,
            CHOICES.get(loss) if isinstance(loss, str) else None,
            tuple(look_up("correction", each) for each in listed),
            CRITICS.get(function),
            SELF_TAUGHT.get(loss_function),
        )

    @property
    def functions(self) -> list[Callable[..., Any]]:
        found = [self.credit, *(self.critic or ()), self.length_penalty, self.loss, self.choice, *self.corrections]
        found.append(self.privilege)
        return [function for function in found if function is not None]

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments of all parts, which have to differ in name; a critic may share those of its credit.

        Raises:
            ValueError: if two parts have one of the same name.
        """
        result: dict[str, inspect.Parameter] = {}
        for function in self.functions:
            for name, parameter in settings_of(function).items():
                if name in result and function not in (self.critic or ()):
                    raise ValueError(f"two parts of the algorithm have an argument '{name}'; rename one of them")
                result[name] = parameter
        return result

    def bind(self, settings: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers and choices, defaults filled in.

        Raises:
            ValueError: for an argument that no part has.
        """
        known = self.parameters()
        if unknown := [name for name in settings if name not in known]:
            takes = ", ".join(known) or "none"
            raise ValueError(f"no part of the algorithm takes {', '.join(unknown)}; those chosen take: {takes}")
        values = {name: settings.get(name, parameter.default) for name, parameter in known.items()}
        numbers = {n: float(v) for n, v in values.items() if is_number(known[n].annotation) and v is not None}
        return numbers, {name: value for name, value in values.items() if name not in numbers}

    def traced(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Those of the numbers that the update sees."""
        inside = [self.loss, *self.corrections, *([self.choice] if self.choice else [])]
        inside += [self.critic.error, self.critic.rate] if self.critic else []
        inside += [self.privilege] if self.privilege else []
        return {n: v for n, v in numbers.items() if any(n in settings_of(function) for function in inside)}


def look_up(kind: str, part: Part) -> Callable[..., Any]:
    """The function of a part.

    Raises:
        ValueError: if the table has no such name.
    """
    if callable(part):
        return part
    if part not in TABLES[kind]:
        raise ValueError(f"{kind} is {part!r}; expected one of {', '.join(TABLES[kind])}")
    return TABLES[kind][part]


def settings_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a part."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def is_number(annotation: Any) -> bool:
    """Whether an argument is a hyper-parameter: `float` or `Number`, perhaps `| None`."""
    return float in (annotation, *get_args(annotation))


def plain(annotation: Any) -> Any:
    """An annotation as a config sees it: a number is a float."""
    if not is_number(annotation):
        return annotation
    return float | None if type(None) in get_args(annotation) else float


def _arguments(function: Callable[..., Any], *sources: Mapping[str, Any]) -> dict[str, Any]:
    return {name: source[name] for name in settings_of(function) for source in sources if name in source}


class _Hosted(NamedTuple):
    """The parts that work on the host, bound to their settings; they see rewards after the penalties.

    Attributes:
        parts: all of them.
        settings: theirs.
        token_cost: of a nat of divergence from the reference, off the reward of its token.
    """

    parts: Parts
    settings: Mapping[str, Any]
    token_cost: float

    def of(self, function: Callable[..., Any]) -> Callable[[Outcomes], Any]:
        return lambda outcomes: function(self._penalised(outcomes), **_arguments(function, self.settings))

    def critic(self) -> Critic | None:
        if self.parts.critic is None:
            return None
        kind, targets, _, rate = self.parts.critic
        chosen = kind(**_arguments(kind, self.settings))
        if chosen not in get_args(Kind):
            raise ValueError(f"critic is {chosen!r}; expected one of {', '.join(get_args(Kind))}")
        return Critic(chosen, self.of(targets), lambda lr, hyper: rate(lr, **_arguments(rate, hyper)))

    def _penalised(self, outcomes: Outcomes) -> Outcomes:
        penalty = self.parts.length_penalty
        if penalty is not None:
            off = penalty(outcomes, **_arguments(penalty, self.settings))
            outcomes = outcomes._replace(rewards=outcomes.rewards + off)
        if self.token_cost:
            told = outcomes.per_token
            divergence = told["behaviour_logprobs"] - told["reference_logprobs"]
            outcomes = outcomes._replace(per_token={**told, "costs": self.token_cost * divergence})
        return outcomes


class _Regularisers(NamedTuple):
    kl: KLEstimator | None
    kl_unbiased: bool
    entropy: bool


def _loss(
    parts: Parts, choices: Mapping[str, Any], ratio_to: RatioTo, regularisers: _Regularisers
) -> Callable[[TokenScores, Batch, Hyper], TokenLoss]:
    """The composed loss.

    The metrics `mismatch/*` say how far the trainer's log-probabilities are from the sampler's (k1 and k3 estimate the
    divergence of the sampler from it): on policy they are rounding, and anything more is a bug in one of the two.
    """
    by_age = any("max_age" in settings_of(correction) for correction in parts.corrections)

    def loss(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
        x = tokens_of(scores.logprobs, batch, ratio_to)
        if by_age:
            ages = jnp.asarray(hyper["version"], jnp.int32) - batch.versions
            x = x._replace(ages=ages.astype(x.logprobs.dtype))
        if batch.top_logprobs is not None and scores.top_logprobs is not None:
            there = batch.mask[..., None]
            uniform = -jnp.log(1.0 + batch.top_logprobs.shape[-1])
            ours, theirs = (jnp.where(there, each, uniform) for each in (scores.top_logprobs, batch.top_logprobs))
            x = x._replace(top_logprobs=ours, teacher_top_logprobs=theirs)
        policy = parts.loss(x, **_arguments(parts.loss, hyper, choices))
        total = policy.loss
        apart = jnp.abs(x.mismatch)
        metrics = {
            **policy.metrics,
            "mismatch/abs": apart,
            "mismatch/k1": -x.mismatch,
            "mismatch/k3": jnp.expm1(x.mismatch) - x.mismatch,
        }
        if parts.corrections:
            weight = jnp.ones_like(total)
            for correction in parts.corrections:
                weight = weight * correction(x, **_arguments(correction, hyper, choices))
            weight = jax.lax.stop_gradient(weight)
            total = total * weight
            metrics["correction/weight"] = weight
            metrics["correction/left_out"] = (weight == 0).astype(jnp.float32)
        if parts.critic is not None:
            if scores.values is None:
                raise ValueError("the loss has a critic's part, but scores have no values; score with the critic")
            told = (jnp.where(batch.mask, each, 0.0) for each in (scores.values, batch.values, batch.returns))
            metrics["value"], old, returns = told
            weighted, error = parts.critic.error(
                metrics["value"], old, returns, **_arguments(parts.critic.error, hyper, choices)
            )
            total = total + weighted
            metrics["value_loss"] = error
        if regularisers.kl is not None:
            kl = kl_estimate(x.logprobs, x.reference_logprobs, regularisers.kl)
            if regularisers.kl_unbiased:
                kl = kl * jnp.exp(clamp(x.logprobs - x.old_logprobs, 20.0))
            total = total + hyper["kl_weight"] * kl
            metrics["kl_reference"] = kl
        if regularisers.entropy:
            assert scores.entropy is not None
            total = total - hyper["entropy_weight"] * jnp.where(batch.mask, scores.entropy, 0.0)
        return TokenLoss(total, metrics, {**policy.maxima, "mismatch/max": apart})

    return loss


def tokens_of(logprobs: Float[Array, "R L"], batch: Batch, ratio_to: RatioTo) -> Tokens:
    """What losses and corrections look at; whatever stands outside the mask is replaced by 0."""
    inside = jnp.where(batch.mask, logprobs, 0.0)
    behaviour = jnp.where(batch.mask, batch.behaviour_logprobs, 0.0)
    current = jax.lax.stop_gradient(inside)
    if batch.proximal_logprobs is not None:
        current = jnp.where(batch.mask, batch.proximal_logprobs, 0.0)
    return Tokens(
        logprobs=inside,
        old_logprobs=behaviour if ratio_to == "behaviour" else current,
        behaviour_logprobs=behaviour,
        advantages=batch.advantages,
        mask=batch.mask,
        segment_ids=batch.segment_ids,
        reference_logprobs=jnp.where(batch.mask, batch.reference_logprobs, 0.0),
        mismatch=current - behaviour,
        ages=jnp.zeros_like(inside),
        chosen=batch.chosen,
    )


def kl_shaped(
    advantages: Float[Array, "R L"],
    logprobs: Float[Array, "R L"],
    reference: Float[Array, "R L"],
    mask: Float[Array, "R L"],
    weight: Number,
) -> Float[Array, "R L"]:
    """Advantages with the divergence from the reference in the reward: each token pays `weight * (log p - log ref)`,
    less what tokens pay on average (Tinker, ART)."""
    paid = jnp.where(mask > 0, jax.lax.stop_gradient(logprobs - reference), 0.0)
    mean = paid.sum() / jnp.maximum(mask.sum(), 1.0)
    return jnp.where(mask > 0, advantages + weight * (mean - paid), advantages)


def _prepare(parts: Parts, choices: Mapping[str, Any], kl_in_reward: bool) -> Callable[[Batch, Hyper], Batch]:
    def prepare(batch: Batch, hyper: Hyper) -> Batch:
        if kl_in_reward:
            shaped = kl_shaped(
                batch.advantages,
                batch.behaviour_logprobs,
                batch.reference_logprobs,
                batch.mask.astype(batch.advantages.dtype),
                hyper["kl_weight"],
            )
            batch = batch._replace(advantages=shaped)
        if parts.choice is not None:
            batch = parts.choice(batch, **_arguments(parts.choice, hyper, choices))
        return batch

    return prepare


# Factories with a name and a signature


def named(name: str, about: str, **chosen: Any) -> Callable[..., Algorithm]:
    """A factory `f(**settings) -> Algorithm` with the arguments that these parts have.

    Args:
        name: what configs call it.
        about: a docstring: what it is, its paper, what differs from it; the parts' arguments are added.
        chosen: parts by name, and defaults that differ from those of `compose` and of the parts.
    """
    parts = parts_of(chosen)
    parameters = {**settings_of(compose), **parts.parameters()}
    parameters = {
        n: p.replace(default=chosen.get(n, p.default), annotation=plain(p.annotation)) for n, p in parameters.items()
    }

    def factory(**settings: Any) -> Algorithm:
        return compose(**{**chosen, **settings})

    factory.__name__ = factory.__qualname__ = name
    factory.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    factory.__annotations__ = {n: p.annotation for n, p in parameters.items()}
    meanings = meanings_of(parts)
    listed = "\n".join(f"    {n}: {meanings[n]}" for n in parameters)
    factory.__doc__ = f"{inspect.cleandoc(about)}\n\nArgs:\n{listed}"
    factory.chosen = chosen  # type: ignore[attr-defined]
    return factory


def specialised(
    factory: Callable[..., Algorithm], settings: Mapping[str, Any]
) -> tuple[Callable[..., Algorithm], dict[str, Any]]:
    """A factory of `named` with the parts that `settings` choose in place of its own, and the settings it then takes.

    What was said about a part that is replaced is left out, if it was the default.

    Raises:
        ValueError: for an unknown part, or a setting other than the default of a part that is replaced.
    """
    chosen: dict[str, Any] = factory.chosen  # type: ignore[attr-defined]
    other = {kind: settings[kind] for kind in TABLES if kind in settings}
    before = inspect.signature(factory).parameters
    known = parts_of(chosen | other).parameters()
    kept = {n: value for n, value in chosen.items() if n in known or n in settings_of(compose)}
    about = (factory.__doc__ or "").partition("\n\nArgs:\n")[0]
    special = named(factory.__name__, about, **{**kept, **other})
    taken = {}
    for name, value in settings.items():
        if name in before and name not in inspect.signature(special).parameters:
            if value != before[name].default:
                raise ValueError(
                    f"{name} belongs to a part that {' '.join(f'{k}={v}' for k, v in other.items())} replaces"
                )
        else:
            taken[name] = value
    return special, taken


def parts_of(chosen: Mapping[str, Any]) -> Parts:
    """The functions that a choice of parts by name stands for."""
    defaults = settings_of(compose)
    return Parts.of(**{kind: chosen.get(kind, defaults[kind].default) for kind in TABLES})


def meanings_of(parts: Parts) -> dict[str, str]:
    """What every argument means, from the docstrings."""
    result: dict[str, str] = {}
    for function in [compose, *parts.functions]:
        result |= arguments_in(inspect.getdoc(function) or "")
    return result


def arguments_in(docstring: str) -> dict[str, str]:
    """The section `Args:` of a docstring, each argument's text in one line."""
    _, _, section = docstring.partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
