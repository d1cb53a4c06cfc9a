"""`rl algorithms`: which there are. `rl algorithms NAME`: what one is made of. `--docs`: all of it as Markdown."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.errors import unknown_name
from rl.algorithms import ALGORITHMS, preference
from rl.algorithms import distillation as distil
from rl.algorithms.compose import TABLES, arguments_in, compose, parts_of, settings_of
from rl.algorithms.covariance import CHOICES
from rl.algorithms.pairs import PREFERENCES
from rl.cli import conf
from rl.cli.launch import Parser

HELP = """\
List the algorithms, or tell what one is made of and what it takes.

usage: rl algorithms [NAME]

  NAME     an algorithm's name
  --docs   print docs/algorithms.md, which is made from the docstrings and conf/algorithm

examples:
  rl algorithms
  rl algorithms gspo
  rl train algorithm=gspo algorithm.clip_high=1e-3 --cfg job
"""

PEERS: Mapping[str, str] = {
    "grpo": "verl, TRL, SkyRL, AReaL, OpenRLHF, ART, Tinker",
    "dr_grpo": "verl, TRL",
    "dapo": "verl, TRL",
    "rloo": "verl, SkyRL, TRL",
    "reinforce": "verl",
    "reinforce_pp": "verl",
    "opo": "verl",
    "gpg": "verl",
    "maxrl": "SkyRL",
    "pass_at_k": "verl",
    "gdpo": "verl, TRL",
    "gspo": "verl, TRL, SkyRL, AReaL, OpenRLHF",
    "cispo": "verl, TRL, SkyRL, ART, Tinker",
    "sapo": "verl, TRL, SkyRL, AReaL",
    "gmpo": "verl, TRL",
    "dppo_tv": "verl, SkyRL",
    "dppo_kl": "verl, SkyRL",
    "dro": "verl",
    "vespo": "TRL",
    "clip_cov": "verl",
    "kl_cov": "verl",
    "importance": "Tinker",
    "decoupled_ppo": "verl, TRL, SkyRL, AReaL, OpenRLHF",
    "icepop": "verl, TRL, AReaL",
    "ppo": "verl, SkyRL, AReaL, OpenRLHF",
    "remax": "verl",
    "otb": "verl",
}
"""Whose numbers tests/golden compares the parts of an algorithm with."""


LEARNING = conf.CONF.parent / "benchmarks" / "results" / "learning.md"
"""What benchmarks/learning.py measured; of a working copy."""

INTRODUCTION = """\
# Algorithms

<!-- made by `rl algorithms --docs` (make docs) from docstrings and conf/algorithm; do not edit -->

`rl train algorithm=NAME` chooses one, `algorithm.KEY=VALUE` sets any of its settings, `rl algorithms NAME` lists
them, and `rl train algorithm=NAME --cfg job` shows all of them with their values. An algorithm is a choice of parts,
and each part can be exchanged: `algorithm=grpo algorithm.loss=sapo algorithm.correction=[reject,opsm]`, or
`algorithm.loss=my_module:my_loss` for a function of your own.

`A` is the advantage of a token, `p` its probability, `r` its ratio to the policy that sampled it, `sg` stops the
gradient. The last column says with whose own numbers (value and gradient) the parts are compared in `tests/golden`.
"""


MIXED = """\
## Several environments in one batch: `mix.NAME.ce=…`

Beside the rollouts, which have the policy loss of the algorithm with a weight of 1, every update of `rl train` learns
from demonstrations of the environments that `mix` names, with a weight `ce` of the cross-entropy and `ref_kl` of the
divergence (k3) from the policy that RL starts with (`conf/mix/alphabet_sort.yaml` is an example). Each of the three has
its own denominator over the whole batch, whatever there is of the others. Metrics: `cross_entropy`, `ref_kl`,
`share/*`.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl algorithms", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(arguments)
    if given.help:
        print(HELP, end="")
    elif given.docs:
        print(document(), end="")
    elif given.name is None:
        Console().print(listing())
    elif given.name not in ALGORITHMS:
        raise unknown_name("algorithm", given.name, ALGORITHMS)
    else:
        describe(given.name, Console())
    return 0


def listing() -> Table:
    """A table of the algorithms."""
    table = Table(header_style="bold", border_style="dim")
    for column in ("name", "what it is", "credit", "loss", "source"):
        table.add_column(column, no_wrap=column == "name")
    for name in ALGORITHMS:
        parts = _choices(name)
        table.add_row(name, escape(conf.headline("algorithm", name)), parts["credit"], parts["loss"], _source(name))
    return table


def describe(name: str, console: Console) -> None:
    """Prints what an algorithm is, and its settings with their defaults."""
    console.print(f"[bold]{name}[/bold]\n{escape(_about(name))}\n")
    console.print(f"made of: {escape(_made_of(name))}\n", highlight=False)
    table = Table(header_style="bold", border_style="dim")
    for column in ("algorithm.…", "default", "what it is"):
        table.add_column(column)
    meanings = arguments_in(inspect.getdoc(ALGORITHMS[name]) or "")
    for key, parameter in inspect.signature(ALGORITHMS[name]).parameters.items():
        table.add_row(key, _said(parameter.default), escape(meanings[key]))
    console.print(table)


def document() -> str:
    """docs/algorithms.md."""
    return "\n".join(_document()) + "\n"


def _document() -> Iterator[str]:
    yield INTRODUCTION
    yield "| algorithm | what it is | source | compared with |"
    yield "|---|---|---|---|"
    for name in ALGORITHMS:
        source = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", _source(name))
        yield f"| [{name}](#{name}) | {conf.headline('algorithm', name)} | {source} | {PEERS.get(name, '')} |"
    yield ""
    for name in ALGORITHMS:
        yield from (f"### {name}", "", *_about(name).splitlines(), "", f"Made of: {_made_of(name)}.", "")
    yield from _settings_section()
    titles = {"credit": "Credit", "length_penalty": "Length penalties", "loss": "Losses", "correction": "Corrections"}
    for kind, title in titles.items():
        yield from _parts_section(f"{title}: `algorithm.{kind}`", TABLES[kind])
    yield from _parts_section("Tokens chosen over the whole batch", CHOICES)
    yield MIXED
    yield from _preferences_section()
    pairs = {**preference.PAIRWISE, "kto": preference.kto}
    yield from _parts_section("Losses over pairs (functions of `rl.algorithms.preference`)", pairs)
    teachers = (distil.divergence, distil.distil, distil.distil_top, distil.policy_gradient_of_kl)
    named = {function.__name__: function for function in (*teachers, distil.reverse_kl_score)}
    yield from _parts_section("Teachers (functions of `rl.algorithms.distillation`; nothing trains by them)", named)
    if LEARNING.is_file():
        yield from ("## Learning", "", LEARNING.read_text("utf-8").rstrip())


def _preferences_section() -> Iterator[str]:
    yield from ("## Preferences: `rl sft preference=NAME pairs=…`", "")
    yield "Pairs are JSONL with `prompt`, `chosen`, `rejected`, or the best and worst rollouts of a run's groups; the"
    yield "reference is the model that training begins with. Metrics: `pairs/loss`, `pairs/margin`, `pairs/accuracy`;"
    yield "the same of `held_out=0.1` of the prompts, which are not learned from, are in summary.json. What"
    yield "`bradley_terry` made is a reward function: `rl.cli.reward.load_reward_model(RUN)`, in a rubric or, in a file"
    yield from ("`judge.py`, as `env.rubric.metrics=[judge.py:reward_model] env.rubric.weights.reward_model=1`.", "")
    yield from ("| preference | what it is | settings |", "|---|---|---|")
    for name, factory in PREFERENCES.items():
        settings = inspect.signature(factory).parameters.values()
        shown = ", ".join(f"`{each.name}={_said(each.default)}`" for each in settings)
        yield f"| {name} | {conf.headline('preference', name)} | {shown} |"
    yield ""


def _settings_section() -> Iterator[str]:
    yield from ("## Settings of every algorithm", "", "| `algorithm.…` | unless set | what it is |", "|---|---|---|")
    meanings = arguments_in(inspect.getdoc(compose) or "")
    for name, parameter in settings_of(compose).items():
        yield f"| {name} | {_said(parameter.default)} | {meanings[name]} |"
    yield ""


def _parts_section(title: str, table: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    yield from (f"## {title}", "")
    for name, function in table.items():
        docstring = inspect.getdoc(function) or ""
        yield from (f"**{name}**: {' '.join(docstring.partition('Args:')[0].split())}", "")
        settings, meanings = settings_of(function), arguments_in(docstring)
        for key, parameter in settings.items():
            meaning = f": {meanings[key]}" if key in meanings else ""
            yield f"* `{key}={_said(parameter.default)}`{meaning}"
        if settings:
            yield ""


def _about(name: str) -> str:
    return (inspect.getdoc(ALGORITHMS[name]) or "").partition("\n\nArgs:\n")[0]


def _source(name: str) -> str:
    return ", ".join(dict.fromkeys(re.findall(r"arXiv:\d{4}\.\d{5}", _about(name))))


def _chosen(name: str) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = ALGORITHMS[name].chosen  # type: ignore[attr-defined]
    return chosen


def _choices(name: str) -> dict[str, Any]:
    """The parts of an algorithm, by kind; those it has none of are left out."""
    found = {kind: _chosen(name).get(kind, settings_of(compose)[kind].default) for kind in TABLES}
    return {kind: part for kind, part in found.items() if part is not None}


def _made_of(name: str) -> str:
    """Its parts, and what it sets of theirs."""
    own = {**settings_of(compose), **parts_of(_chosen(name)).parameters()}
    changed = {key: value for key, value in _chosen(name).items() if key in own and key not in TABLES}
    return ", ".join(f"`{key}={_said(value)}`" for key, value in {**_choices(name), **changed}.items())


def _said(value: Any) -> str:
    """A value as a config says it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "" if value is inspect.Parameter.empty else f"{value:g}" if isinstance(value, float) else str(value)
