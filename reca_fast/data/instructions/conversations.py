"""From an entry of LLaVA's layout to a conversation, or to the reason why it cannot be used.

    {"id": ..., "image": "coco/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is on the bus?"}, {"from": "gpt", "value": "A poster."}, ...]}

Where in a prompt a picture stands is the model's affair, so the marker is taken out of the texts.
"""

from typing import NamedTuple

from reca_fast.data.records import BadRecord
from reca_fast.sample import Turn

MARKER = "<image>"
"""What stands for the picture in the text of a question."""
MAX_CHARACTERS = 2**20
"""A conversation of more characters is not used."""
SPEAKERS = ("human", "gpt")
LAYOUT = "[{id, image, conversations: [{from: human | gpt, value}, ...]}, ...]"
"""The layout, for messages."""


class Conversation(NamedTuple):
    """What is said about one picture."""

    image: str  # its name, as it stands in the file
    turns: tuple[Turn, ...]


def conversation_in(value: object) -> Conversation:
    """The conversation in an entry.

    A question at its end, which nobody answers, is left out.

    Raises:
        BadRecord: the entry has another layout, no picture or several, or nothing that can be learned.
    """
    if not isinstance(value, dict):
        raise BadRecord("entry that is no object")
    image, said = value.get("image"), value.get("conversations")
    if isinstance(image, list) and len(image) > 1:
        raise BadRecord("conversation about several pictures")
    if isinstance(image, list):
        image = image[0] if image else None
    if image is None or image == "":
        raise BadRecord("conversation without a picture")
    if not isinstance(image, str):
        raise BadRecord("picture whose name is no text")
    if not isinstance(said, list) or not said:
        raise BadRecord("entry without conversations")
    texts = [_said(part, SPEAKERS[number % 2]) for number, part in enumerate(said)]
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise BadRecord("conversation of more than 1 MB")
    questions, answers = texts[::2], texts[1::2]
    if sum(text.count(MARKER) for text in questions) > 1:
        raise BadRecord("conversation about several pictures")
    if not answers:
        raise BadRecord("conversation without an answer")
    if not all(answers):
        raise BadRecord("empty answer")
    return Conversation(image, tuple(Turn(_asked(q), a) for q, a in zip(questions, answers, strict=False)))


def _said(part: object, speaker: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("value"), str) or not isinstance(part.get("from"), str):
        raise BadRecord("turn of another layout")
    if part["from"] not in SPEAKERS:
        raise BadRecord("speaker other than human and gpt")
    if part["from"] != speaker:
        raise BadRecord("human and gpt do not take turns")
    text: str = part["value"]
    if "\0" in text:
        raise BadRecord("conversation with NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can spell it, or bytes that are no UTF-8
        raise BadRecord("conversation that is no valid Unicode") from None
    return text.replace("\r\n", "\n").strip()


def _asked(question: str) -> str:
    """The question without the marker of the picture. What is left of the two sides stands on lines of their own."""
    return "\n".join(filter(None, (part.strip() for part in question.split(MARKER))))
