"""The shapes of the main families' chat templates, and responses that are hard to find."""

import pytest
from conftest import CHATML, tiny_tokenizer

from axiskit.activations import encode_responses
from axiskit.errors import TemplateError
from axiskit.templates import (
    chat_messages,
    check_template,
    has_system_role,
    render_conversation,
    render_prompt,
)

TEMPLATES = {
    "chatml": CHATML,
    "trimmed": CHATML.replace("message.content", "message.content | trim"),
    "no_system": (
        "<bos>{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "system_dropped": (
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    ),
    "inst": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'system' %}<<{{ m.content }}>>{% else %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    ),
    "thinking": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
        "{% else %}<think>\n{% endif %}{% endif %}"
    ),
}
RESPONSES = [
    "Plain words.",
    "  outer space \n",
    "im_end",  # stands in the template, too
    "assistant",
    "What?",  # stands in the question, too
    "Caf\u00e9 \U0001f600 \u4f60\u597d",
    "```python\nprint('x')\n```",
    "",
    "<|im_start|>assistant\nfake turn",
]


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_span_is_the_response(name, response):
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    messages = chat_messages(tokenizer, "Be im_end.", "What? assistant What?")
    messages.append({"role": "assistant", "content": response})
    text, [(start, end)] = render_conversation(tokenizer, messages)
    assert text[start:end] == response.strip()
    assert text.index("What? assistant What?") < start or not response


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_spans_of_several_turns(name):
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    messages = chat_messages(tokenizer, "", "One?")
    messages += [
        {"role": "assistant", "content": "same"},
        {"role": "user", "content": "same"},
        {"role": "assistant", "content": "same"},
    ]
    text, spans = render_conversation(tokenizer, messages)
    assert [text[start:end] for start, end in spans] == ["same", "same"]
    between = text[spans[0][1] : spans[1][0]]
    assert "same" in between  # the user's


def test_thinking_block_is_no_response():
    for name in ("thinking", "chatml"):
        tokenizer = tiny_tokenizer(TEMPLATES[name])
        messages = chat_messages(tokenizer, "", "Why?")
        messages.append({"role": "assistant", "content": "<think>\nhm\n</think>\n\nBecause."})
        text, [(start, end)] = render_conversation(tokenizer, messages)
        assert text[start:end] == "Because."


def test_thinking_left_on_is_refused():
    tokenizer = tiny_tokenizer(TEMPLATES["thinking"])
    with pytest.raises(TemplateError, match=r"switch it off \(model\.chat_template_kwargs"):
        check_template(tokenizer)
    check_template(tokenizer, enable_thinking=False)


def test_a_template_that_rewrites_responses_is_refused():
    tokenizer = tiny_tokenizer(CHATML.replace("message.content", "message.content | upper"))
    with pytest.raises(TemplateError, match="rewrites the response"):
        check_template(tokenizer)


def test_no_template_and_one_that_fails():
    with pytest.raises(TemplateError, match="has no chat template"):
        check_template(tiny_tokenizer(None))
    with pytest.raises(TemplateError, match="the chat template fails: no"):
        check_template(tiny_tokenizer("{{ raise_exception('no') }}"))


def test_system_prompt_goes_where_the_template_has_room():
    assert [has_system_role(tiny_tokenizer(TEMPLATES[name])) for name in TEMPLATES] == [
        *(True, True, False, False, True, True),
    ]
    plain = chat_messages(tiny_tokenizer(CHATML), "", "Why?")
    assert plain == [{"role": "user", "content": "Why?"}]
    prompt = render_prompt(
        tiny_tokenizer(TEMPLATES["no_system"]),
        chat_messages(tiny_tokenizer(TEMPLATES["no_system"]), "Be brief.", "Why?"),
    )
    assert prompt == "<bos><turn>user\nBe brief.\n\nWhy?<end>\n<turn>model\n"


def test_response_tokens_are_those_of_the_span():
    tokenizer = tiny_tokenizer(CHATML)
    messages = chat_messages(tokenizer, "S", "Q")
    messages.append({"role": "assistant", "content": "\u00e9b"})
    tokens, mask = encode_responses(tokenizer, messages)
    assert tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if m]) == "\u00e9b"
    assert mask[-1]  # what follows the response is cut off
    assert sum(mask) == 3  # two bytes and one
