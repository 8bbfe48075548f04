"""The byte-level tokenizer: every text round-trips, and a conversation costs a token a turn's role and end."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from runner.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.text())
def test_every_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if not any(token in text for token in TOKENIZER.all_special_tokens):
        assert ids == list(text.encode())


def test_a_broken_character_does_not_hide_its_neighbours() -> None:
    assert TOKENIZER.decode([0xC4, 65, 0xF0, 0x9F]) == "\ufffdA\ufffd"


def test_conversation_and_special_tokens(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    ids = TOKENIZER.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ids == [258, ord("s"), 257, 259, ord("u"), 257, 260]
    assert len(TOKENIZER) == 261 and TOKENIZER.pad_token_id == 256 and TOKENIZER.eos_token_id == 257
    assert TOKENIZER.decode([104, 105, 257, 256], skip_special_tokens=True) == "hi"
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) == ids
