"""What `rl train --help` and its kind say: examples, choices found in `conf/`, and the settings most runs change."""

import re
import textwrap
from typing import Any

from rl.cli import conf
from rl.cli.launch import FLAGS
from rl.config import ChatConfig, EvalRunConfig, ParityConfig, ServeConfig, SftConfig, TrainConfig

PAGES = {
    "train": (TrainConfig, "Warm start, evaluate, reinforce, evaluate: one run directory with everything in it."),
    "sft": (SftConfig, "Supervised training on the demonstrations of an environment, or on pairs of answers."),
    "eval": (EvalRunConfig, "Evaluate a model in an environment: our own engine, or any OpenAI-compatible server."),
    "chat": (ChatConfig, "Talk to a model in the terminal. Ctrl-C stops an answer, Ctrl-D leaves."),
    "serve": (ServeConfig, "Serve a model over HTTP: SGLang's native routes and OpenAI's. docs/serving.md lists them."),
    "parity": (ParityConfig, "Score the same tokens with the engine that drew them and with the trainer."),
}

EXAMPLES = {
    "train": """\
        rl train experiment=reverse_text seed=1
        rl train env=reverse_text env.max_length=8 algorithm=rloo algorithm.clip_high=0.28 optimizer.lr=1e-4
        rl train env=./my_environment model.layers=6
        rl train -m algorithm=grpo,rloo optimizer.lr=1e-4,3e-4
        rl train experiment=reverse_text --cfg job
        """,
    "sft": """\
        rl sft env=reverse_text steps=300
        rl sft env=reverse_text env.clean_demonstrations=1.0 model.width=256 run_dir=runs/clean
        rl sft preference=dpo pairs=runs/NAME model.checkpoint=runs/NAME optimizer.lr=1e-5
        rl sft preference=bradley_terry pairs=pairs.jsonl run_dir=runs/judge
        """,
    "eval": """\
        rl eval run=runs/NAME
        rl eval env=reverse_text model=./my_model tasks=32
        rl eval env=wordle client=openai client.base_url=http://localhost:30000/v1 client.model=qwen tasks=50
        rl eval env=reverse_text,wordle client=openai client.base_url=http://localhost:30000/v1 client.model=x,y
        rl eval suite=bundled run=runs/NAME --fail-under 0.8
        """,
    "chat": """\
        rl chat model=smollm2_135m
        rl chat model=smollm2_135m prompt="What is the capital of France?" sampling.temperature=0
        rl chat run=runs/NAME prompt="Reverse: hello" sampling.temperature=0
        rl chat client=openai client.base_url=http://localhost:30000/v1 client.model=qwen
        """,
    "serve": """\
        rl serve model=tiny port=30000
        rl serve run=runs/NAME port=0 log_requests=true
        rl serve model=smollm2_135m
        rl serve model=tiny host=0.0.0.0 api_key_env=SERVE_KEY inference.slots=64
        """,
    "parity": """\
        rl parity model=tiny
        rl parity model=smollm2_135m tasks=8 max_tokens=32
        rl parity run=runs/NAME fail_above=1e-3
        """,
}

KNOBS = {  # key -> what it is, with its unit
    "train": {
        "steps": "updates",
        "prompts": "tasks per update",
        "group_size": "rollouts per task",
        "minibatches": "optimizer steps per pass over an update's rollouts",
        "epochs": "passes over them",
        "optimizer.lr": "learning rate",
        "optimizer.schedule": "constant, linear, cosine or wsd",
        "sampling.temperature": "divides the logits",
        "sampling.max_tokens": "tokens per completion, at most",
        "step_timeout": "seconds that the rollouts of an update may take; null is for ever",
        "max_staleness": "updates that rollouts may lag behind; 0 is synchronous",
        "lockstep": "sampling and updates take turns: no token lags less than max_staleness",
        "mix": "demonstrations of other environments in the same updates: mix.wordle.ce=0.2",
        "teacher": "a run, or a model as in model.source, that algorithm=opd learns from",
        "warm_start.steps": "supervised updates before RL; 0 leaves it out",
        "warm_start.env": "what its environment has otherwise: warm_start.env={corpus: invented}",
        "eval.tasks": "held-out tasks before and after",
        "model.checkpoint": "folder of weights to start from",
        "pack.row_length": "tokens per row",
        "pack.rows_per_microbatch": "rows in memory at once",
        "checkpoint.every": "updates",
        "seed": "decides everything random",
        "run_dir": "folder of the run; null makes a new one under runs/",
        "resume": "continue the newest unfinished run with this config",
    },
    "sft": {
        "steps": "updates",
        "pairs": "with a preference: JSONL of prompt, chosen, rejected, or a run's folder",
        "held_out": "share of the prompts of pairs that are measured with",
        "batch": "demonstrations, or pairs, per update",
        "demonstrations": "tasks demonstrated per pass",
        "optimizer.lr": "learning rate",
        "model.checkpoint": "folder of weights to start from",
        "pack.row_length": "tokens per row",
        "checkpoint.every": "updates",
        "seed": "decides everything random",
        "run_dir": "folder of the run; null makes a new one under runs/",
        "resume": "continue the newest unfinished run with this config",
    },
    "eval": {
        "run": "folder of a run whose newest weights are evaluated, in its environment",
        "client.base_url": "address of a server, ending in /v1",
        "client.model": "the name the server knows the model by",
        "client.api_key_env": "environment variable that holds the key",
        "client.concurrency": "rollouts at once",
        "client.prompt_price": "US dollars per million tokens; client.completion_price likewise",
        "sampling.temperature": "divides the logits; 0 is greedy",
        "sampling.max_tokens": "tokens per completion, at most",
        "tasks": "how many; null takes all",
        "samples": "rollouts per task; with several, pass@k and pass^k",
        "retries": "of a rollout, after a failure of server or judge",
        "fail_under": "exit code 1 if the mean reward is lower; also --fail-under 0.8",
        "split": "eval or train",
        "seed": "decides everything random",
        "resume": "continue the newest unfinished run with this config",
    },
    "chat": {
        "prompt": "one question, one answer; null begins a conversation",
        "system": "what the conversation begins with",
        "run": "folder of a run whose newest weights answer",
        "client.base_url": "address of a server, ending in /v1",
        "client.model": "the name the server knows the model by",
        "client.api_key_env": "environment variable that holds the key",
        "sampling.temperature": "divides the logits; 0 is greedy",
        "sampling.top_p": "keeps the likeliest tokens of this total probability",
        "sampling.max_tokens": "tokens per answer, at most",
        "inference.context": "tokens a conversation may have; null takes the model's context",
        "seed": "decides everything random",
    },
    "serve": {
        "run": "folder of a run whose newest weights are served",
        "model.checkpoint": "the same, with the model's settings given here",
        "host": "0.0.0.0 listens on every network interface",
        "port": "0 takes any free one, and prints it",
        "name": "what requests call the model; null: the name of its run or its family",
        "api_key_env": "environment variable that holds the key clients must send",
        "inference.slots": "sequences decoded at once",
        "max_requests": "completions under way at once, waiting ones included; more get 503",
        "drain": "seconds that requests under way get when the server is told to end",
        "log_requests": "print a line per request",
        "score": "score prompts, logprob_start_len; keeps the weights a second time",
    },
    "parity": {
        "run": "folder of a run whose newest weights are compared, in its environment",
        "tasks": "prompts",
        "temperature": "divides the logits, in both",
        "max_tokens": "tokens per completion, at most",
        "fail_above": "nats; a larger difference is a failure",
        "out": "folder of the numbers and the plot; null makes a new one under runs/",
        "seed": "decides everything random",
    },
}


OTHERS = {  # group -> what it takes besides the files in conf/
    "env": "or a folder (./my_environment), a package, an installed plug-in",
    "model": "or a Hugging Face folder (./my_model), a GGUF file",
}


def experiment_help(verb: str) -> str:
    """The help page of a verb that runs an experiment."""
    schema, summary = PAGES[verb]
    parts = [
        summary,
        f"usage: rl {verb} [flags] [GROUP=CHOICE …] [KEY=VALUE …]",
        "examples:\n" + textwrap.indent(textwrap.dedent(EXAMPLES[verb]), "  "),
        "choices:\n" + "\n".join(_choices(verb)),
        "settings most runs change:\n" + "\n".join(_knobs(verb, schema())),
        f"All settings: rl {verb} --cfg job. Arguments of an environment, env.KEY=VALUE: rl envs NAME.",
        "flags:\n" + FLAGS,
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _choices(verb: str) -> list[str]:
    lines = []
    for group, default in defaults(verb).items():
        lines.append(f"  {group}=")
        for option in conf.options(group):
            mark = "*" if option == default else " "
            lines.append(f"   {mark} {option:<13} {conf.headline(group, option)}")
        if group in OTHERS:
            lines.append(f"     …             {OTHERS[group]}")
    return [*lines, "  (* is chosen if you say nothing)"]


def _knobs(verb: str, config: Any) -> list[str]:
    lines = []
    for key, meaning in KNOBS[verb].items():
        value = config
        for name in key.split("."):
            value = _section(verb, key)[name] if isinstance(value, dict) else getattr(value, name)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"  {f'{key}={shown}':<30}{meaning}")
    return lines


def _section(verb: str, key: str) -> dict[str, Any]:
    """The settings beside a key whose section is open: those of the group's default choice, and the root's own."""
    group = key.partition(".")[0]
    choice = defaults(verb)[group]
    assert choice is not None
    return {**conf.settings(group, choice), **conf.settings("", verb).get(group, {})}


def defaults(verb: str) -> dict[str, str | None]:
    """The groups of a root config and what each of them is unless chosen otherwise, in order."""
    text = (conf.CONF / f"{verb}.yaml").read_text("utf-8")
    found = re.findall(r"^  - (\w+): (\w+)", text, re.MULTILINE)
    return {group: None if choice == "null" else choice for group, choice in found}
