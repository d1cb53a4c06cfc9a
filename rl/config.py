"""The typed surface of an experiment. Plain dataclasses: importable without jax or hydra.

`rl.cli` composes them from `conf/` and the command line, and hands their *values* to the functions that need them; no
function below `rl.cli` takes a config object. `env`, `algorithm` and `inference` are open dictionaries on purpose:
`name` picks a factory (of an engine: its dataclass below) and the other keys are its arguments, checked against the
factory's own signature.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoraConfig:
    """Which weights are trained: all (rank 0), or a low-rank adapter beside frozen ones."""

    rank: int = 0  # of the adapter; 0 trains all weights
    alpha: float = 16.0  # what the adapter adds is scaled by alpha / rank
    rslora: bool = False  # scale by alpha / sqrt(rank) instead
    targets: str = "attention/(q|k|v|o)|ffn/(gate|up|down)"  # weights that get one: regular expression for paths
    quantize: str | None = None  # int8 | nf4: how the frozen weights are kept; None: as they are
    adapter: str | None = None  # begin with this one, its rank, alpha and targets: a run, or a directory of PEFT


@dataclass
class ModelConfig:
    """A decoder: with fresh weights, or out of a checkpoint. Width and depth in units, `context` in tokens."""

    source: str | None = None  # Hugging Face folder, GGUF file or package:NAME/FILE; None: fresh weights, sized below
    name: str | None = None  # family
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn: int | None = None
    context: int | None = None  # None: all that the source has
    rope_theta: float | None = None
    vocabulary: int | None = None  # tokens, learned from the environment's demonstrations; None: bytes
    options: dict[str, Any] = field(default_factory=dict)  # other keys of config.json (num_experts, rope_scaling …)
    renderer: dict[str, Any] = field(default_factory=dict)  # how `source` speaks, where it is not found out by itself:
    # name, retention, template, enable_thinking … (see envs.render.load_renderer); of fresh weights: describe_tools
    dtype: str = "float32"  # of the weights: float32 | bfloat16
    checkpoint: str | None = None  # a folder written by `rl sft` or `rl train`, for the newest weights of this model
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class OptimizerConfig:
    """A rule with a warm-up and a schedule; everything numeric is traced, so a sweep over it compiles nothing new.

    What not every rule has is null where the rule's own default counts, and refused by the others.
    """

    name: str = "adamw"  # adamw | muon | sgd | sign
    lr: float = 3e-4
    schedule: str = "constant"  # constant | linear | cosine | wsd
    warmup: int = 0  # updates
    final_lr: float = 0.0  # fraction of lr at the last update
    decay: float = 0.2  # fraction of the updates over which wsd lets the rate fall
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    rms: float | None = None  # muon: of a matrix's step, in units of lr
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    expert_bias_rate: float = 0.0  # moves the biases that balance experts (GLM); 0 leaves them as they are
    groups: dict[str, float] = field(default_factory=dict)  # expression for parameters -> factor of their lr


@dataclass
class HardwareConfig:
    """Where the trainer runs: a mesh, and which logical axis of the model lies on which axis of the mesh."""

    platform: str = "cpu"  # cpu | gpu | tpu
    mesh: dict[str, int] = field(
        default_factory=lambda: {"data": 1, "fsdp": 1}
    )  # axis -> devices; -1 = all that remain
    rules: dict[str, str | None] = field(default_factory=dict)  # logical axis -> mesh axis (None = replicated)
    compute_dtype: str = "float32"
    remat: bool = False


@dataclass
class InferenceConfig:
    """What every engine that samples is told. What the keys mean, and the others, says conf/inference/NAME.yaml."""

    name: str
    slots: int | None = None
    context: int | None = None
    max_waiting: int | None = None
    mismatch_limit: float | None = 0.05


@dataclass
class JaxInference(InferenceConfig):
    """The engine in this process."""

    name: str = "jax"
    tokens_per_dispatch: int | None = None
    chunk: int = 256
    exact: bool | None = None
    routing_replay: bool = False


@dataclass
class SglangInference(InferenceConfig):
    """SGLang's servers: started on this machine, or found at `urls`."""

    name: str = "sglang"
    urls: list[str] = field(default_factory=list)
    servers: int = 1
    port: int = 0
    platform: str = "cpu"
    environment: str | None = None
    dtype: str = "float32"
    tensor_parallel: int = 1
    data_parallel: int = 1
    memory_fraction: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    publish: str = "disk"
    publish_folder: str | None = None
    publish_address: str = "127.0.0.1"
    pause: str = "retract"
    in_flight: int = 1024
    timeout: float = 1800.0
    load_timeout: float = 600.0
    ready_timeout: float = 600.0
    restarts: int = 5


@dataclass
class SamplingConfig:
    """Tokens drawn during training. No truncation: the trainer scores under exactly the sampled distribution."""

    temperature: float = 1.0
    max_tokens: int = 16


@dataclass
class PackConfig:
    """How trajectories become rows of tokens."""

    row_length: int = 128  # tokens per row
    rows_per_microbatch: int = 16  # rows whose activations are in memory at once


@dataclass
class WarmStartConfig:
    """Supervised training on the environment's own demonstrations, before RL. 0 steps = none."""

    steps: int = 0
    demonstrations: int = 4096  # tasks demonstrated per pass
    batch: int = 64  # demonstrations per step
    optimizer: str = "adamw"  # as optimizer.name; the rate rises for 20 updates and falls to 0 in a straight line
    lr: float = 1e-3
    env: dict[str, Any] = field(default_factory=dict)  # what its environment has otherwise than `env`


@dataclass
class MixConfig:
    """Demonstrations of an environment in every update of `rl train`, beside the rollouts; those have a weight of 1."""

    env: dict[str, Any] = field(default_factory=dict)  # as `env` of the run; without a name, the key in `mix` is it
    ce: float = 1.0  # weight of the cross-entropy, whose denominator all demonstrations of the mix share
    ref_kl: float = 0.0  # of the divergence (k3) from the policy that RL starts with, on the same tokens
    batch: int = 16  # demonstrations per update
    demonstrations: int = 4096  # tasks demonstrated per pass


@dataclass
class EvalConfig:
    """Held-out evaluation before and after training."""

    tasks: int = 256
    samples: int = 1  # rollouts per task
    temperature: float = 1.0
    split: str = "eval"
    metric: str = "reward"  # what the before/after table leads with: reward, or the name of a reward or metric


@dataclass
class CheckpointConfig:
    every: int = 20  # updates
    keep: int = 2


@dataclass
class TrainConfig:
    """`rl train`: warm start, evaluate, reinforce, evaluate."""

    env: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    inference: dict[str, Any] = field(default_factory=dict)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    selection: dict[str, Any] = field(default_factory=dict)  # groups and tasks: rl.rollout.select.selection; {}: all
    mix: dict[str, Any] = field(default_factory=dict)  # name -> MixConfig: demonstrations in the same updates
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    teacher: str | None = None  # of algorithm=opd: a run, as model.source, or a URL; kl_weight holds to it, too
    seed: int = 0
    steps: int = 100  # updates
    prompts: int = 32  # tasks per update
    group_size: int = 8  # rollouts per task
    minibatches: int = 1  # parts that an update's rollouts are cut into, with an optimizer step for each
    epochs: int = 1  # passes over an update's rollouts
    step_timeout: float | None = 3600.0  # seconds the rollouts of one update may take; null: for ever
    max_staleness: int = 0  # updates a token may lag behind the policy it trains; 0 = synchronous
    lockstep: bool = False  # no token lags less either (but in the first updates): sampling and updates take turns
    run_dir: str | None = None  # None: a new folder under runs/
    resume: bool = False  # continue the newest unfinished run with this very config (or the one in run_dir)


@dataclass
class SftConfig:
    """`rl sft`: supervised training on the environment's own demonstrations, or on pairs of answers."""

    env: dict[str, Any] = field(default_factory=dict)
    preference: dict[str, Any] = field(
        default_factory=dict
    )  # dpo | ipo | kto | orpo | simpo | bradley_terry, and its numbers
    pairs: str | None = None  # JSONL with prompt, chosen, rejected, or a run: best and worst of its groups
    held_out: float = 0.1  # share of the prompts of pairs that are measured with, and not learned from
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
    steps: int = 300  # updates
    batch: int = 64  # demonstrations, or pairs, per update
    demonstrations: int = 4096  # tasks demonstrated per pass
    run_dir: str | None = None  # None: a new folder under runs/
    resume: bool = False  # continue the newest unfinished run with this very config (or the one in run_dir)


@dataclass
class ClientConfig:
    """Who answers during `rl eval`: our own engine, or a server."""

    name: str = "engine"  # engine | openai
    base_url: str | None = None  # for example http://localhost:30000/v1
    model: str | None = None  # the name the server knows the model by
    api_key_env: str | None = None  # variable that holds the key; None takes OPENAI_API_KEY if it is set
    timeout: float = 600.0  # seconds for one completion
    retries: int = 3  # after a failed request
    concurrency: int = 256  # rollouts at once
    prompt_price: float | None = None  # US dollars per million tokens read; with it, the cost is reckoned
    completion_price: float | None = None  # US dollars per million tokens sampled


@dataclass
class EvalSamplingConfig:
    """Tokens drawn during `rl eval`."""

    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0  # 1 = all tokens
    top_k: int = 0  # 0 = all tokens
    max_tokens: int = 16  # per completion


@dataclass
class ChatSamplingConfig:
    """Tokens drawn during `rl chat`."""

    temperature: float = 0.7  # 0 = greedy
    top_p: float = 0.95  # 1 = all tokens
    top_k: int = 0  # 0 = all tokens
    max_tokens: int = 512  # per answer


@dataclass
class ChatConfig:
    """`rl chat`: one model, one conversation."""

    prompt: str | None = None  # one question, one answer; None: a conversation
    system: str | None = None  # what the conversation begins with
    client: ClientConfig = field(default_factory=ClientConfig)
    model: ModelConfig = field(default_factory=ModelConfig)  # for client=engine
    hardware: HardwareConfig = field(default_factory=HardwareConfig)  # for client=engine
    inference: dict[str, Any] = field(default_factory=dict)  # for client=engine
    sampling: ChatSamplingConfig = field(default_factory=ChatSamplingConfig)
    run: str | None = None  # for client=engine: a run directory whose model, with its newest weights, answers
    seed: int = 0


@dataclass
class EvalRunConfig:
    """`rl eval`: one environment, one model, one table."""

    env: dict[str, Any] = field(default_factory=dict)
    client: ClientConfig = field(default_factory=ClientConfig)
    model: ModelConfig = field(default_factory=ModelConfig)  # for client=engine
    hardware: HardwareConfig = field(default_factory=HardwareConfig)  # for client=engine
    inference: dict[str, Any] = field(default_factory=dict)  # for client=engine
    sampling: EvalSamplingConfig = field(default_factory=EvalSamplingConfig)
    run: str | None = None  # for client=engine: a run directory whose model, with its newest weights, is evaluated
    split: str = "eval"
    tasks: int | None = None  # None: all of the split
    samples: int = 1  # rollouts per task
    retries: int = 2  # of a rollout, after a failure of server or judge
    success: str | None = None  # the reward or metric that is 1 for a success, for pass@k; None: the reward
    fail_under: float | None = None  # a mean reward below this is a failure of the command; also --fail-under X
    seed: int = 0
    run_dir: str | None = None  # None: a new folder under runs/
    resume: bool = False  # continue the newest unfinished run with this very config (or the one in run_dir)


@dataclass
class ServeConfig:
    """`rl serve`: the engine behind SGLang's and OpenAI's HTTP routes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    inference: dict[str, Any] = field(default_factory=dict)
    run: str | None = None  # a run directory whose model, with its newest weights, is served
    host: str = "127.0.0.1"  # 0.0.0.0 listens on every network interface
    port: int = 30000  # 0 takes any free one
    name: str | None = None  # what requests call the model; None: the name of its run or its family
    api_key_env: str | None = None  # variable that holds the key clients must send; None asks for none
    max_requests: int = 1024  # completions under way at once, waiting ones included; more get 503
    drain: float = 10.0  # seconds that requests under way get when the server is told to end
    log_requests: bool = False  # a line per request
    score: bool = True  # score prompts (logprob_start_len); keeps the weights a second time
    seed: int = 0  # of fresh weights


@dataclass
class ParityConfig:
    """`rl parity`: the engine's log-probabilities beside the trainer's."""

    env: dict[str, Any] = field(default_factory=dict)  # its tasks are the prompts
    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    inference: dict[str, Any] = field(default_factory=dict)
    run: str | None = None  # a run directory whose model, with its newest weights, is compared
    split: str = "eval"
    tasks: int = 16  # prompts
    temperature: float = 1.0  # divides the logits, in both
    max_tokens: int = 64  # per completion
    fail_above: float | None = None  # nats: a larger difference than this is a failure, exit code 1
    out: str | None = None  # folder of the numbers and the plot; None: a new one under runs/
    seed: int = 0
