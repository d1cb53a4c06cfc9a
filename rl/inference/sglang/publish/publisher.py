"""From the trainer's parameters to servers that sample with them: prepared, transferred, committed, or taken back."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from envs.errors import UpswingError
from rl.inference.engine import EngineError, PauseMode
from rl.inference.label import Label, read_label
from rl.inference.sglang.http import Http, Unreachable
from rl.inference.sglang.publish.gather import each
from rl.inference.sglang.publish.names import check_names
from rl.inference.sglang.publish.way import Failures, Way
from rl.models.base import Params

UNVERSIONED = "default"
"""What servers that were just started call the version of their weights."""

LET_GO_S = 3.0
"""A server that hangs is not waited for when a run ends."""

S = TypeVar("S")


class PublishError(EngineError):
    """Servers that did not take a version.

    Attributes:
        gone: those that do not answer; started again, they get it from `Publisher.restore`.
        refused: those that said no. They have the version before, or, where even that failed, stay paused.
    """

    def __init__(self, version: int, gone: Failures, refused: Failures) -> None:
        self.gone, self.refused = gone, refused
        reasons = "; ".join(str(error) for error in (*refused.values(), *gone.values()))
        super().__init__(f"version {version} was not taken by {len(gone) + len(refused)} servers: {reasons}")


class Published(NamedTuple):
    """What a publication took, in seconds.

    Attributes:
        bytes: of weights.
        prepare: until they were ready on this side.
        transfer: all else that was done while the servers sampled.
        pause: how long no server sampled.
    """

    bytes: int
    prepare: float
    transfer: float
    pause: float

    @property
    def seconds(self) -> float:
        return self.prepare + self.transfer + self.pause


class _Version(NamedTuple, Generic[S]):
    number: int
    snapshot: S


class Publisher(Generic[S]):
    """Publishes versions in order, one at a time, to whatever servers there are.

    Args:
        way: how the weights get there.
        http: asks the servers; its time-out has to be enough to load weights.
        names: of the tensors that are sent; None: they are not compared with the servers', because not all are sent.
        pause: what happens to requests under way. "retract" has them read anew with the new weights, "in_place" keeps
            their keys and values, "abort" ends them. None: nothing, servers go on sampling; for ways after which
            requests say what they are to be drawn with.
        flush: have servers forget what they keep of finished requests; otherwise the next prompt that begins like one
            of them is not read with these weights. Servers refuse it while they keep requests in place.
        owner: names the run, and no other one. Servers whose weights have another owner are left alone; those that
            have none have this one from the first publication on, until `close`. Empty: nobody else may publish.
    """

    def __init__(
        self,
        way: Way[S],
        http: Http,
        *,
        names: Sequence[str] | None,
        pause: PauseMode | None = "retract",
        flush: bool = True,
        owner: str = "",
    ) -> None:
        self._way, self._http, self._names = way, http, names
        self._pause, self._flush, self._owner = pause, flush, owner
        self._newest: _Version[S] | None = None
        self._known: dict[str, str] = {}
        self._checked: set[str] = set()
        self._one = asyncio.Lock()

    @property
    def version(self) -> int | None:
        """The newest that was published."""
        return None if self._newest is None else self._newest.number

    async def publish(self, params: Params, version: int, urls: Sequence[str]) -> Published:
        """Has the servers sample with `params`; tokens they draw from then on carry `version`.

        Args:
            params: the trainer's.
            version: of the policy; not lower than the one before.
            urls: of the servers, all of which answer.

        Raises:
            ConfigError: when a server does not hold this model, or cannot be reached in this way.
            UpswingError: when the version goes backwards, or a server is another run's.
            PublishError: when servers failed. The others sample with the new version, which is now the newest; unless
                all of them said no, then nothing has changed.
        """
        async with self._one:
            before = self._newest
            if before is not None and version < before.number:
                raise UpswingError(f"version {version} is published after {before.number}; versions only grow")
            began = time.monotonic()
            made = _Version(version, await self._way.prepare(params, version))
            prepared = time.monotonic()
            try:
                for url in urls:
                    await self._check(url)
                await self._way.transfer(made.snapshot, urls)
                transferred = time.monotonic()
                gone, refused = await self._switch(made, urls)
            except BaseException:
                await self._way.discard(made.snapshot)
                raise
            switched = time.monotonic()
            if before is not None and refused and len(refused) == len(urls):
                await self._way.discard(made.snapshot)
            else:
                self._newest = made
                self._way.adopt(made.snapshot)
                if before is not None:
                    await self._way.discard(before.snapshot)
            if gone or refused:
                raise PublishError(version, gone, refused)
            resting = transferred if self._pause else switched
            size = self._way.bytes(made.snapshot)
            return Published(size, prepared - began, resting - prepared, switched - resting)

    async def restore(self, url: str) -> None:
        """Gives a server that was started anew the newest version; nothing, when none was published yet.

        Raises:
            ConfigError: as `publish`.
            EngineError: when the server failed.
        """
        async with self._one:
            if self._newest is None:
                return
            self._known.pop(url, None)
            self._checked.discard(url)
            await self._way.forget(url)
            await self._check(url)
            await self._way.transfer(self._newest.snapshot, [url])
            gone, refused = await self._switch(self._newest, [url])
            for error in (*gone.values(), *refused.values()):
                raise error

    async def close(self) -> None:
        """Lets go of the servers, and removes what is left of the newest version."""
        async with self._one:
            if self._owner:
                await each(list(self._known), self._let_go)  # one that is gone belongs to nobody
            if self._newest is not None:
                await self._way.discard(self._newest.snapshot)
            await self._way.close()

    async def _let_go(self, url: str) -> None:
        """The weights of a server stay, and are nobody's."""
        found = read_label(await self._label(url, LET_GO_S))
        if found is not None and found.owner == self._owner:
            await self._relabel(url, Label(found.version), LET_GO_S)

    async def _relabel(self, url: str, label: Label, timeout: float | None = None) -> None:
        body = {"new_version": str(label), "abort_all_requests": False}
        await self._http.post(url, "/update_weight_version", body, timeout=timeout)

    async def _label(self, url: str, timeout: float | None = None) -> str:
        """What a server calls its weights now."""
        return str((await self._http.get(url, "/model_info", timeout=timeout)).get("weight_version", UNVERSIONED))

    async def _check(self, url: str) -> None:
        """Sees whose server this is, and that it holds the model."""
        found = await self._label(url)
        known, label = self._known.get(url, found), read_label(found)
        if label is not None and label.owner not in ("", self._owner):
            raise UpswingError(
                f"the server at {url} has the weights of another run, version {label.version} of {label.owner}. Give "
                "each run servers of its own; a run that ends lets go of them. If that one was killed, and will not be "
                f"resumed, free the server: curl {url}/update_weight_version -H 'Content-Type: application/json' "
                """-d '{"new_version": "0"}'"""
            )
        ours = label is not None and label.owner == self._owner != ""
        if not ours and found not in (known, UNVERSIONED):
            raise UpswingError(
                f"the server at {url} has version {found}, but this run gave it {known}: another trainer publishes to "
                "it. Give each run servers of its own"
            )
        if ours and self._newest is None:  # this run was killed, and begins to count anew
            await self._relabel(url, self._labelled(0))
        if self._names is not None and url not in self._checked:
            ranks = (await self._http.post(url, "/weights_checker", {"action": "checksum"}))["ranks"]
            check_names(self._names, {name for rank in ranks for name in rank["checksums"]}, url)
            self._checked.add(url)

    async def _switch(self, made: _Version[S], urls: Sequence[str]) -> tuple[Failures, Failures]:
        """Pauses servers, has them take a version and lets them go on; returns those that are gone and that refused."""
        failed: dict[str, EngineError] = {}
        if self._pause is not None:
            failed = await each(urls, lambda url: self._http.post(url, "/pause_generation", {"mode": self._pause}))
        paused = [url for url in urls if url not in failed]
        if paused:
            failed |= await self._way.commit(made.snapshot, paused, self._labelled(made.number), flush=self._flush)
        lost: Mapping[str, EngineError] = {}
        if back := [url for url, error in failed.items() if url in paused and not isinstance(error, Unreachable)]:
            lost = await self._back(back)
        if self._pause is not None:
            good = [url for url in paused if url not in lost and not isinstance(failed.get(url), Unreachable)]
            failed |= await each(good, lambda url: self._http.post(url, "/continue_generation"))
        self._known |= {url: str(self._labelled(made.number)) for url in urls if url not in failed}
        gone = {url: error for url, error in failed.items() if isinstance(error, Unreachable)}
        return gone, {url: error for url, error in failed.items() if url not in gone}

    async def _back(self, urls: Sequence[str]) -> Failures:
        """Gives servers that may have a part of a version the one before; returns those that failed again."""
        if self._newest is None:
            nothing = EngineError("there is no version before it; start the server again")
            return dict.fromkeys(urls, nothing)
        label = self._labelled(self._newest.number)
        return await self._way.commit(self._newest.snapshot, urls, label, flush=self._flush)

    def _labelled(self, version: int) -> Label:
        return Label(version, self._owner)
