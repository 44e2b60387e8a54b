"""A conversation in the VLM's own format: tokenized as a whole, the answers and their ends learnt."""

import json

import pytest

from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.models.auxiliary.chat import QUESTION, Chat, open_chat
from reca_fast.models.auxiliary.tiny.tokenizer import MARKERS
from reca_fast.sample import Turn

from .conftest import FLAVOURS

TALK = (Turn("What is this?", "A red cat."), Turn("And behind it?", "A wall."))


@pytest.fixture
def chat(opened):
    return lambda flavour="llava": opened(flavour).chat


def said(chat: Chat, *turns: Turn) -> list[str]:
    text = chat.converse(turns)
    return [str(chat.tokenizer.decode(text.ids[start:stop])) for start, stop in text.said]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_answers_are_said_with_the_token_that_ends_them(flavour, chat) -> None:
    end = MARKERS[flavour].eos
    assert said(chat(flavour), *TALK) == [f"A red cat.{end}", f"A wall.{end}"]


@pytest.mark.parametrize("flavour", ["qwen", "internvl"])
def test_the_tokens_are_those_that_generation_would_see(flavour, chat) -> None:
    """transformers' own apply_chat_template of the same messages, up to the end of the last answer."""
    mine, content = chat(flavour), [{"type": "image"}, {"type": "text", "text": TALK[0].question}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": TALK[0].answer}]},
        {"role": "user", "content": [{"type": "text", "text": TALK[1].question}]},
        {"role": "assistant", "content": [{"type": "text", "text": TALK[1].answer}]},
    ]
    theirs = mine.tokenizer.apply_chat_template(messages, chat_template=mine.template, return_dict=False)
    ids = list(mine.converse(TALK).ids)
    assert ids == list(theirs)[: len(ids)] and len(theirs) - len(ids) <= 1


def test_llava_begins_with_one_bos_and_ends_answers_though_its_template_does_not(chat) -> None:
    mine = chat("llava")
    text = str(mine.tokenizer.decode(mine.converse(TALK).ids))
    assert text == (
        "<s>USER: <image>\nWhat is this? ASSISTANT: A red cat.</s>USER: And behind it? ASSISTANT: A wall.</s>"
    )


def test_a_caption_answers_a_question_that_nobody_asked(chat) -> None:
    mine = chat("qwen")
    ids = mine.converse([Turn("", "  a dog ")]).ids
    assert f"{QUESTION}<|im_end|>" in str(mine.tokenizer.decode(ids))
    assert said(mine, Turn("", "  a dog ")) == ["a dog<|im_end|>"]


def test_an_answer_is_found_where_it_stands_and_not_where_its_letters_stand_first(chat) -> None:
    mine = chat("qwen")
    text = mine.converse([Turn("user says a", "a")])
    ((start, stop),) = text.said
    assert stop == len(text.ids) and stop - start == 2


def test_the_head_is_what_comes_before_the_picture_and_its_token(chat) -> None:
    mine = chat("qwen")
    assert mine.tokenizer.decode(mine.head()) == "<|im_start|>user\n<|vision_start|><|image_pad|>"


@pytest.mark.parametrize(
    "turns",
    [(), (Turn("What?", " "),), (Turn("", "a"), Turn("", "b")), (Turn("a <image> b", "c"),), (Turn("", "x</s>"),)],
    ids=["nothing", "no answer", "no second question", "a picture's token", "an end token"],
)
def test_texts_that_would_break_the_format_are_skipped(turns, chat) -> None:
    with pytest.raises(BadRecord):
        chat("llava").converse(turns)


def test_a_template_for_plain_text_is_given_the_picture_s_token(opened) -> None:
    model = opened("qwen")
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    mine = Chat(model.chat.tokenizer, plain, model.chat.image, model.chat.image_id, ((), ()))
    assert str(mine.tokenizer.decode(mine.converse(TALK).ids)).startswith(
        "[user]<|image_pad|>\nWhat is this?<|im_end|>"
    )


def test_a_template_without_a_place_for_pictures_is_refused(opened) -> None:
    model = opened("qwen")
    mute = Chat(model.chat.tokenizer, "hello", model.chat.image, model.chat.image_id, ((), ()))
    with pytest.raises(UserError, match="chat template"):
        mute.converse(TALK)


def test_the_template_may_stand_in_the_tokenizer_s_or_in_a_file_of_its_own(opened, folders, tmp_path) -> None:
    family, folder = opened("internvl").vlm.family, tmp_path / "copy"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folders["internvl"] / name).read_bytes())
    with pytest.raises(UserError, match="has no chat template"):
        open_chat(folder, family, 1000)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "of a file"}))
    assert open_chat(folder, family, 1000).template == "of a file"
    (folder / "chat_template.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "of the tokenizer"}))
    assert open_chat(folder, family, 1000).template == "of the tokenizer"
    with pytest.raises(UserError, match="ids up to"):
        open_chat(folder, family, 10)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_chat(folder, family, 1000)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        open_chat(folder, family, 1000)
