"""The language model's chat template, or a plain one where it has none: messages in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from runner.protocols import Message, Mistake, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '\n' if not loop.first }}"
    "{{ message.role | capitalize + ':\n' + message.content | trim }}"
    "{{ eos_token if message.role == 'assistant' }}"
    "{% endfor %}"
    "{{ '\nAssistant:\n' if add_generation_prompt }}"
)
"""For a tokenizer without a template. Newlines and trimmed contents keep tokens from straddling a turn's border."""

SYSTEM_PROBE = "Probe-of-the-system"
PROBE = (Message("user", "Question"), Message("assistant", "Answer"))

TODAY = date(2024, 7, 26)
"""What a template that asks for the day is told, so that a row is the same every day: what Llama 3's own writes where
it cannot ask."""


class Template:
    """Raises `Mistake` for a tokenizer by which no turn could end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.own = None if tokenizer.chat_template else PLAIN_TEMPLATE
        if self.own and not tokenizer.eos_token:
            raise Mistake("The tokenizer has neither a chat template nor an end-of-text token, so no turn can end.")
        self.source: str = self.own or tokenizer.get_chat_template()
        self.system_fault = self.find_system_fault()
        """What the template does wrong with a system message, after `the chat template`; None where it takes one."""

    def render(self, row: Row, messages: Sequence[Message], generate: bool) -> str:
        """`generate` adds the header of the answer that is due. Raises `Mistake` where the template refuses."""
        try:
            return self.apply(messages, generate)
        except (TemplateError, TypeError) as error:
            raise Mistake(
                f"{name_of(row)}: the language model's chat template refuses the messages: {error}."
            ) from error

    def apply(self, messages: Sequence[Message], generate: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=self.own, tokenize=False, add_generation_prompt=generate, strftime_now=TODAY.strftime
        )
        return str(text)

    def find_system_fault(self) -> str | None:
        try:
            text = self.apply((Message("system", SYSTEM_PROBE), *PROBE), generate=False)
        except (TemplateError, TypeError) as error:
            return f"takes no system message ({error})"
        return None if text.count(SYSTEM_PROBE) == 1 else "does not write a system message's text once as it is"


def name_of(row: Row) -> str:
    return f"{row.where} (id {row.id})"
