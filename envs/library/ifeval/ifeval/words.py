"""What tasks and their answers are about: our own lists, and which split an entry belongs to."""

from functools import cache

from envs import derive_seed


def split_of(entry: str) -> str:
    """A fourth of each list is for evaluation. The entry alone decides, so no argument ever moves one."""
    return "eval" if derive_seed("split", entry) % 4 == 0 else "train"


@cache
def of_split(entries: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The entries of a list that belong to the split."""
    return tuple(entry for entry in entries if split_of(entry) == split)


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


REQUESTS = (
    "Write a note about the {}.",
    "Describe the {}.",
    "Tell a story about the {}.",
    "Write a letter about the {}.",
    "Explain why the {} matters.",
    "Write an advertisement for the {}.",
    "Write a diary entry about the {}.",
    "Tell a child about the {}.",
    "Write a poem about the {}.",
    "Report on the {} for a newspaper.",
    "Give a speech about the {}.",
    "Review the {} for a travel guide.",
)

SUBJECTS = listed("""
airport alley aquarium attic bakery balcony barn beach beehive bell bicycle boathouse bookshop bridge bus cabin cafe
camp canal canoe castle cathedral cave cellar cinema circus clinic clock coast compass courtyard dam desert dock
embassy factory fair farm ferry festival field fireplace fishpond forest fort fountain garage garden gate glacier
greenhouse hall harbour hedge hill hospital hotel inn island jetty kitchen laboratory ladder lagoon lake lantern
library lighthouse lounge maze meadow mill mine monastery moor mosque mountain museum observatory office opera orchard
palace park path piano pier playground pond port prison quarry quay radio railway reef restaurant river road rooftop
ruin sawmill school shed ship shore shrine square stable stadium station statue stream studio swamp tavern temple tent
terrace theatre tower tram tunnel valley village vineyard volcano wall warehouse waterfall well wharf windmill workshop
yard zoo
""")

NOUNS = listed("""
acrobat anchor apple basket beetle blanket bottle bucket butterfly button cactus camera candle carpet cherry copper
cricket cushion dragon drum eagle engine feather fiddle flag flute fox ginger glove goose grape hammer hawk honey
jacket jaguar jewel juice kettle key kite knife kiwi lemon ladle magnet map marble medal mirror mushroom needle nest
onion otter oven paper parrot pebble pepper pickle pigeon pillow pocket puppet puzzle quilt rabbit ribbon robot rocket
rope saddle sandwich scarf shovel silver spider spoon squirrel sugar sweater teapot thunder ticket tiger tomato trumpet
turtle umbrella velvet violin wagon whale whistle window wizard wolf yacht yogurt zebra zipper
""")

OPENERS = listed("""
Afterwards Again Apparently Certainly Clearly Finally Fortunately Generally Gradually Honestly Indeed Later Lately Maybe
Meanwhile Naturally Nowadays Obviously Occasionally Often Once Perhaps Possibly Quietly Quickly Recently Seldom Slowly
Sometimes Soon Still Strangely Suddenly Surely Today Tonight Traditionally Usually Yesterday
""")

COMMON = listed("""
beautiful because best big everyone famous good great happy important interesting known large like lovely many new nice
often old people place popular really small special town very visit visitors wonderful
""")
"""What comes to mind, so that forbidding it costs something."""

KEYS = ("author", "body", "date", "mood", "name", "place", "summary", "text", "topic")

START = (
    "Here is my answer:",
    "Let me tell you.",
    "Dear reader,",
    "To begin with,",
    "As you may know,",
    "Good morning!",
    "Listen well.",
    "In short:",
    "Ladies and gentlemen,",
    "Well then,",
    "This is what I know.",
    "Once upon a time,",
    "My dear friend,",
    "Without further ado:",
    "Believe it or not,",
    "Attention please!",
)

END = (
    "That is all.",
    "The end.",
    "Thank you for reading.",
    "See you soon!",
    "I hope this helps.",
    "Is there anything else?",
    "More will follow.",
    "Yours truly",
    "And that was it.",
    "Do you agree?",
    "Good luck!",
    "What do you think?",
    "Take care.",
    "Nothing more to say.",
    "Until next time!",
    "Ask me again tomorrow.",
)
