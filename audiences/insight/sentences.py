"""Words that people or ODP wrote, as part of a text."""


def sentence(words: str) -> str:
    """The words with an end, so that another sentence can follow them."""
    return words if words.endswith((".", "!", "?")) else f"{words}."
