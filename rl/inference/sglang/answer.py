"""What a server answers to `/generate`, checked and in our terms."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rl.inference.engine import EngineError
from rl.inference.label import Label, read_label


class Answer(NamedTuple):
    """What was drawn since a request was made. Lists have one entry per token.

    Attributes:
        ids: the tokens.
        logprobs: as the server reports them.
        plain: log-probabilities at temperature 1, from servers that tell them.
        versions: the policy version of each; None where the server does not say yet.
        finish: "stop", "length" or "abort"; None while more is to come.
        matched: the token (or, when the server gave up, the words) that it stopped at.
        cached: tokens of the prompt that did not have to be read.
    """

    ids: list[int]
    logprobs: list[float]
    plain: list[float] | None
    versions: list[int] | None
    finish: str | None
    matched: int | str | None
    cached: int


def read(answer: Any, url: str, newest: Label) -> Answer:
    """The answer of the server at `url`, whose weights have the owner of `newest`, and no later version.

    Raises:
        EngineError: when it makes no sense, or has tokens of weights that were never published to the server.
    """
    try:
        meta = answer["meta_info"]
        ids = list(answer["output_ids"])
        found = [entry[0] for entry in meta["output_token_logprobs"]]
        finish = meta["finish_reason"]
        spans = meta.get("weight_versions")
        if spans is None and finish is not None:
            raise KeyError("weight_versions")
        versions = None if spans is None else [label for span in spans for label in _labels(span)]
        plain = meta.get("plain_logprobs")
        result = Answer(
            ids=ids,
            logprobs=found,
            plain=plain,
            versions=None if versions is None else [_version(label, url, newest) for label in versions],
            finish=None if finish is None else str(finish["type"]),
            matched=None if finish is None else finish.get("matched"),
            cached=int(meta.get("cached_tokens") or 0),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise EngineError(
            f"{url}/generate answered without {error}: {str(answer)[:300]}; expected SGLang's fields of a version that "
            "tells the weights of every token (meta_info.weight_versions: 0.5.23 has it)"
        ) from error
    lengths = {len(each) for each in (result.ids, result.logprobs, result.versions, result.plain) if each is not None}
    if len(lengths) != 1:
        raise EngineError(
            f"{url}/generate answered {len(result.ids)} tokens, {len(result.logprobs)} log-probabilities and the "
            f"versions {spans}; expected one of each per token"
        )
    return result


def _labels(span: Mapping[str, Any]) -> list[Any]:
    return [span["version"]] * (span["end"] - span["start"])


def _version(found: Any, url: str, newest: Label) -> int:
    label = read_label(str(found))
    if label is None or label.owner != newest.owner or label.version > newest.version:
        raise EngineError(
            f"the server at {url} drew tokens with weights of version '{found}', which this run never gave it (its "
            f"newest is {newest}): another trainer publishes to it, or it was started anew. Each run needs servers of "
            "its own"
        )
    return label.version
