"""Which requests belong together: samples of one prompt, and the turns of one rollout."""

import secrets
from collections import Counter, OrderedDict
from collections.abc import Sequence


class Affinity:
    """A key for every prompt, the same where it begins with a whole prompt that was there before.

    So the samples of a group share a key, and every later turn, which begins with all that was said, has the first
    one's: sent to one server, they find what they share in its cache. That prompts merely begin alike (every task has
    the same instructions) does not bring them together, or all would go to one server.

    Args:
        most: prompts that are remembered.
    """

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._keys: OrderedDict[int, str] = OrderedDict()  # hash of a whole prompt -> key
        self._lengths: Counter[int] = Counter()
        self._length_of: dict[int, int] = {}

    def key(self, prompt: Sequence[int]) -> str:
        """The key of a prompt, which is remembered."""
        mark, found = 0, None
        for length, token in enumerate(prompt, start=1):
            mark = hash((mark, token))
            if length in self._lengths and mark in self._keys:
                found = mark
        key = secrets.token_hex(8) if found is None else self._keys[found]
        if found is not None:
            self._keys.move_to_end(found)
        self._remember(mark, len(prompt), key)
        return key

    def _remember(self, mark: int, length: int, key: str) -> None:
        if mark in self._keys:
            return
        self._keys[mark] = key
        self._length_of[mark] = length
        self._lengths[length] += 1
        if len(self._keys) > self._most:
            oldest, _ = self._keys.popitem(last=False)
            gone = self._length_of.pop(oldest)
            self._lengths[gone] -= 1
            if not self._lengths[gone]:
                del self._lengths[gone]
