"""The shapes of the main families' chat templates, and responses that are hard to find."""

import pytest
from conftest import CHATML, tiny_tokenizer

from axiskit.activations import encode_conversation, encode_response
from axiskit.errors import TemplateError
from axiskit.templates import (
    answer_span,
    chat_messages,
    check_template,
    end_of_turn,
    has_system_role,
    render_conversation,
    render_prompt,
)

TEMPLATES = {
    "chatml": CHATML,
    "trimmed": CHATML.replace("message.content", "message.content | trim"),
    "no_system": (  # Gemma 2
        "<bos>{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "system_dropped": (
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    ),
    "headers": (  # Llama 3
        "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m.role + '<|end_head|>\n\n'"
        " + m.content | trim + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|end_head|>\n\n' }}{% endif %}"
    ),
    "role_tokens": (  # Phi 3
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}<|endoftext|>{% endif %}"
    ),
    "end_after_last_only": (  # OLMo 2
        "{{ '<|endoftext|>' }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|assistant|>\n' + m.content }}{% if loop.last %}<|endoftext|>{% else %}\n{% endif %}"
        "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "system_in_user": (  # Gemma 3
        "{% if messages[0].role == 'system' %}{% set head = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}"
        "{% endif %}<bos>{% for m in rest %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
        " + (head if loop.first else '') + m.content | trim + '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
    ),
    "inst": (  # Mistral
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'system' %}<<{{ m.content }}>>{% else %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    ),
    "thinking": (  # Qwen 3
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


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_tokens_of_several_turns_are_their_texts(name, response):
    """System prompt, thinking, texts that stand in the question and in the other turn, too."""
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    question = "What? assistant What?"
    talk = [
        {"role": "system", "content": "Be im_end."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"<think>\nhm {response}\n</think>\n\n{response}"},
        {"role": "user", "content": response or "?"},
        {"role": "assistant", "content": response},
    ]
    tokens, turns = encode_conversation(tokenizer, talk)
    texts = [
        tokenizer.decode([token for token, used in zip(tokens, turn, strict=True) if used])
        for turn in turns
    ]
    assert texts == [response.strip()] * 2
    if response:
        text = tokenizer.decode(tokens)
        assert text.count("Be im_end.") == 1
        assert "hm" not in text
    assert not any(first and second for first, second in zip(*turns, strict=True))


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
        *(True, True, False, False, True, True, True, True, True, True),
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
    tokens, mask = encode_response(tokenizer, "S", "Q", "\n\u00e9b ")
    assert tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if m]) == "\u00e9b"
    assert mask[-1]  # what follows the response is cut off
    assert sum(mask) == 3  # two bytes and one
    assert tokenizer.decode(tokens).endswith("<|im_start|>assistant\n\n\u00e9b")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>\nhm\n</think>\n\nBecause.", "Because."),
        ("hm</think> Because. ", "Because."),
        ("<think>\nOkay, the user wants", ""),  # cut off while thinking
        ("ok </think> x", "x"),
        ("  \n", ""),
        ("", ""),
        ("a <think>b</think> c", "c"),
    ],
)
def test_thinking_is_no_answer_and_no_odd_response_stops_a_run(response, answer):
    start, end = answer_span(response)
    assert response[start:end] == answer
    tokenizer = tiny_tokenizer(TEMPLATES["thinking"])
    tokens, mask = encode_response(tokenizer, "S", "Q", response, enable_thinking=False)
    assert sum(mask) == len(answer)
    assert len(tokens) == len(mask)


def test_a_model_that_would_think_by_itself_is_refused():
    template = TEMPLATES["thinking"].replace("{% else %}<think>\n{% endif %}", "{% endif %}")
    with pytest.raises(TemplateError, match=r"thinking has to be switched off"):
        check_template(tiny_tokenizer(template))
    check_template(tiny_tokenizer(template), enable_thinking=False)


def test_a_template_with_the_date_gives_the_same_prompt_every_day():
    tokenizer = tiny_tokenizer("Today is {{ strftime_now('%d %b %Y') }}. " + CHATML)
    assert "Today is 01 Jan 2025." in render_prompt(tokenizer, chat_messages(tokenizer, "", "Q"))


def test_the_token_after_a_response_is_found():
    assert end_of_turn(tiny_tokenizer(CHATML)) == 258
    assert end_of_turn(tiny_tokenizer(TEMPLATES["system_dropped"])) is None
