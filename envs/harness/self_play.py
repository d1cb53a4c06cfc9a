"""Games of several roles: the model plays all of them, or some against other models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from envs.clients.base import Client
from envs.environment import Harness
from envs.errors import ConfigError
from envs.harness.hooks import Hooks, end_turn, hooked
from envs.rollout import Rollout
from envs.types import Task


class Game(Protocol):
    """One game in progress, made anew for every rollout."""

    @property
    def turn(self) -> str | None:
        """The role that moves next; None when the game is over."""
        ...

    def observe(self, role: str) -> str:
        """What a role is told before it moves."""
        ...

    def play(self, role: str, text: str) -> None:
        """Takes in what a role said as its move. What an illegal move leads to is a rule of the game."""
        ...

    def score(self, role: str) -> float:
        """What the game is worth to a role, as it stands."""
        ...


def self_play(
    begin: Callable[[Task], Game],
    *,
    roles: Sequence[str],
    max_turns: int,
    others: Mapping[str, Client] | None = None,
    hooks: Sequence[Hooks] = (),
) -> Harness:
    """A harness in which every role has a conversation of its own and moves when the game says so.

    The rollout's own record is that of one role, the learner: the roles take turns with the sample's number, so that a
    group sees all sides. `rollout.state` has the `game` and the learner's `role`, which `game_score` reads. Every
    other role is a record in `trajectory.roles`, with its score as reward.

    It stops with "completed" when the game is over, with the word of a stop condition, or with "max_turns".

    Args:
        begin: makes the game of a task.
        roles: their names.
        max_turns: the most moves of all roles together.
        others: models that play roles in place of the learner's: frozen opponents. The learner is none of these roles.
        hooks: what happens before, between and after the moves; `rollout.state.game` is there.

    Raises:
        ConfigError: an opponent for no role, or for all of them.
    """
    frozen = dict(others or {})
    own = [role for role in roles if role not in frozen]
    if not own or set(frozen) - set(roles):
        raise ConfigError(f"self_play(roles={list(roles)}, others={list(frozen)}); expected some of the roles, not all")

    async def harness(rollout: Rollout) -> str:
        learner = own[rollout.trajectory.sample % len(own)]
        game = rollout.state.game = begin(rollout.task)
        rollout.state.role = learner
        players = {r: rollout if r == learner else rollout.role(r, client=frozen.get(r)) for r in roles}

        async def play() -> str:
            for _ in range(max_turns):
                role = game.turn
                if role is None:
                    return "completed"
                player = players[role]
                player.messages.append({"role": "user", "content": game.observe(role)})
                said = await player.complete()
                game.play(role, said["content"] or "")
                if stop := await end_turn(rollout, hooks):
                    return stop
            return "completed" if game.turn is None else "max_turns"

        stop = await hooked(rollout, hooks, play)
        for role, player in players.items():
            if player is not rollout:
                player.trajectory.reward = game.score(role)
                player.trajectory.rewards = {game_score.__name__: player.trajectory.reward}
        return stop

    return harness


def game_score(state: object) -> float:
    """A reward function: what the game of `self_play` is worth to the learner."""
    return float(state.game.score(state.role))  # type: ignore[attr-defined]
