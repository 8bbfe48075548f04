"""How a language model attends: the library's own ways, and one call for each document of a packed sequence.

Transformers finds packed documents by positions that start again, and masks whatever is not of a token's own document:
a mask of S x S. Here each document is attended to alone, so the cost is the sum of their squares. How documents lie in
a sequence travels in the mask's place, which every family hands on as it is, through gradient checkpointing too.

Shapes: S tokens of a packed sequence, n of one document, H heads, K of keys and values, W width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from runner.protocols import Mistake

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BY_DOCUMENT = "sdpa_by_document"
FLASH = "flash_attention_2"


def set_attention(model: PreTrainedModel, asked: str | None, packing: bool) -> None:
    """`asked` is llm.attention; null is the library's choice, and with packing one document at a time where that is
    sdpa. Raises `Mistake` for one that the family or this machine does not have."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(BY_DOCUMENT, by_document)
    AttentionMaskInterface.register(BY_DOCUMENT, document_masks)
    own = attention_of(model)
    wanted = asked or (BY_DOCUMENT if packing and own == "sdpa" else own)
    if wanted == own:
        return
    if wanted == FLASH:
        to_gpu(model)
    reason = "its attention is written in its own way"
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        reason = str(error)
    if attention_of(model) != wanted:
        raise Mistake(
            f"llm.attention={wanted}: {type(model).__name__} does not have it ({reason}). Set llm.attention={own}, "
            "which it has."
        )


def attention_of(model: PreTrainedModel) -> str:
    return str(model.config._attn_implementation)


def to_gpu(model: PreTrainedModel) -> None:
    """Flash attention runs nowhere else, so what is held of a family at build needs the weights there by then."""
    from accelerate.state import AcceleratorState, is_initialized
    from transformers.utils import is_flash_attn_2_available

    device = AcceleratorState().device if is_initialized() else torch.device("cpu")
    if device.type != "cuda" or not is_flash_attn_2_available():
        raise Mistake(
            f"llm.attention={FLASH} needs an NVIDIA GPU (cluster.device) and the package flash-attn, and one of them "
            "is not here. Install it by pip install flash-attn, or set llm.attention=null."
        )
    cast(nn.Module, model).to(device)


@dataclass(frozen=True)
class DocumentMasks:
    """What the layers are given as their mask for a packed sequence."""

    lengths: tuple[int, ...]
    masks: tuple[Tensor | None, ...]
    """Of each document, bool [1, 1, n, n]; None: each token sees those before it."""


def document_masks(**given: Any) -> DocumentMasks | Tensor | None:
    """The family's own mask, cut to each document where positions start again; whole for a batch that is not packed."""
    from transformers import AttentionMaskInterface

    whole = AttentionMaskInterface()["sdpa"]
    # Transformers leaves no skip to plain causal masks where it has found documents.
    causal = given.get("allow_is_causal_skip", True) or given.get("use_vmap", False)
    if causal or given.get("attention_mask") is not None or given["batch_size"] > 1:
        return whole(**given)
    length, sees = given["q_length"], given["mask_function"]
    later = torch.arange(1, length, device=given["device"])
    row = torch.zeros_like(later)
    starts = (~sees(row, row, later, later - 1)).nonzero().squeeze(1) + 1  # a first token does not see the one before
    edges = [0, *starts.tolist(), length]
    spans = list(zip(edges, edges[1:], strict=False))
    masks = (
        whole(
            **{**given, "q_length": end - start, "kv_length": end - start, "q_offset": start, "kv_offset": start}
            | {"allow_is_causal_skip": True}
        )
        for start, end in spans
    )
    return DocumentMasks(tuple(end - start for start, end in spans), tuple(masks))


def by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **named: Any
) -> tuple[Tensor, None]:
    """query [B, H, S, W], key and value [B, K, S, W] -> [B, S, H, W]"""
    from transformers import AttentionInterface

    attend = AttentionInterface()["sdpa"]
    if not isinstance(attention_mask, DocumentMasks):
        return attend(module, query, key, value, attention_mask, **named)
    parts = (one.split(attention_mask.lengths, dim=2) for one in (query, key, value))
    seen = [attend(module, *part, mask, **named)[0] for *part, mask in zip(*parts, attention_mask.masks, strict=True)]
    return torch.cat(seen, dim=1), None
