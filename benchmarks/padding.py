"""How much of what is computed is no padding: `python -m benchmarks.padding FOLDER TOKENIZER`, one epoch of GSM8K.

FOLDER holds its train.jsonl, TOKENIZER a tokenizer of transformers.
"""

from __future__ import annotations

import sys

import numpy as np

from runner.data.chat import ChatFormat
from runner.data.dealing import Dealer
from runner.data.jsonl import Jsonl
from runner.data.order import Order
from runner.protocols import Row


def main(folder: str, tokenizer: str) -> None:
    from transformers import AutoTokenizer

    chat = ChatFormat(AutoTokenizer.from_pretrained(tokenizer), [], "front", "all", "template")
    rows = Jsonl(folder, None, {}, [], "question_answer").read([])["train"]
    lengths = np.array([len(chat.example(row).input_ids) for row in rows if isinstance(row, Row)])
    print(f"{len(lengths):,} rows of {lengths.mean():.0f} tokens, the longest {lengths.max()}\n")
    print("| rows a step | micro-batch | shuffled | grouped | packed |\n|---|---|---|---|---|")
    for batch_size, micro, tokens in ((8, 8, None), (32, 8, None), (32, 32, None), (32, 32, 4096), (128, 128, 4096)):
        figures = []
        for order, packing in (("shuffled", False), ("grouped", False), ("shuffled", True)):
            plan = Order(len(lengths), batch_size, 0, order, lengths)  # type: ignore[arg-type]
            dealer = Dealer(micro, tokens, packing, 1, lengths)
            steps = [plan.of_step(step)[1].tolist() for step in range(plan.steps_per_epoch)]
            figures.append(lengths.sum() / sum(dealer.padded(dealer.deal(step)) for step in steps))
        size = f"{tokens:,} tokens" if tokens else f"{micro} rows"
        print(f"| {batch_size} | {size} | {' | '.join(f'{one:.3f}' for one in figures)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
