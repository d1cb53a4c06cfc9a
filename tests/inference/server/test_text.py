"""What of a growing text may be shown already."""

from rl.inference.engine import Generation
from rl.inference.server.text import Unfolding, said_ids, without_stop


def shown(pieces: list[str], stop: tuple[str, ...] = (), tools: bool = False) -> list[str]:
    """What each update gives out; the last piece is the end."""
    unfolding, text, given = Unfolding(stop, tools=tools), "", []
    for piece in pieces[:-1]:
        text += piece
        given.append(unfolding.update(text))
    return [*given, unfolding.finish(text + pieces[-1])]


def test_text_is_given_out_once():
    assert shown(["a", "", "bc", "d"]) == ["a", "", "bc", "d"]


def test_what_may_begin_a_stop_text_waits():
    assert shown(["x", "E", "N", "Z", ""], stop=("END",)) == ["x", "", "", "ENZ", ""]
    assert shown(["ab", "c", "d"], stop=("abc", "bd")) == ["", "", "abcd"]


def test_half_a_character_waits():
    assert shown(["a\ufffd", "b"]) == ["a", "\ufffdb"]
    unfolding = Unfolding(())
    assert [unfolding.update("caf\ufffd"), unfolding.update("café"), unfolding.finish("café!")] == ["caf", "é", "!"]


def test_a_tag_that_begins_waits_and_other_brackets_do_not():
    assert shown(["1 < 2 and <", "b> and <|im", "_end|>", ""]) == ["1 < 2 and ", "<b> and ", "<|im_end|>", ""]


def test_nothing_after_a_call_begins_is_text():
    assert shown(["Hm. <tool_", "call>{", "}", "</tool_call>"], tools=True)[:3] == ["Hm.", "", ""]
    unfolding = Unfolding((), tools=True)
    assert unfolding.update("Hm. \n<tool_call>{}</tool_call>") == "Hm."
    assert unfolding.finish("Hm.") == ""


def test_with_tools_json_waits_until_it_is_clear_whether_it_was_a_call():
    assert shown([' {"name', '": "f"}', ""], tools=True) == ["", "", ' {"name": "f"}']
    assert shown(['{"a', '": 1}', ""]) == ['{"a', '": 1}', ""]


def test_what_is_said_is_said():
    unfolding = Unfolding(())
    assert unfolding.update("one two") == "one two"
    assert unfolding.finish("one") == "" and unfolding.finish("another") == ""


def test_a_text_ends_before_what_ended_it():
    def ended(by: int | str | None) -> Generation:
        return Generation([104, 105, 256], [0.0] * 3, [0.0] * 3, [0] * 3, "stop", by)

    assert said_ids(ended(256)) == [104, 105] and said_ids(ended("i")) == [104, 105, 256]
    assert without_stop("one two one!", "one") == "one two "
    assert without_stop("hi", None) == "hi" and without_stop("hi", 256) == "hi"
