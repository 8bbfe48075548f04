"""A transformers model in an encoder's seat: loaded whole or refused, frozen or trained, its last hidden state pooled.

What is not needed for the last hidden state (poolers, heads, the other towers of a two-tower model) is not kept, or not
trained. Shapes: N items, T tokens, E width, C channels of a convolution's map, H rows and W columns of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner import pretrained
from runner.protocols import Mistake, Tokens

Modality = Literal["image", "audio", "text"]

TOWERS = {
    "image": ("vision_model", "vision_tower", "visual", "vision_encoder", "image_tower"),
    "audio": ("audio_model", "audio_tower", "audio_encoder", "speech_encoder"),
    "text": ("text_model", "text_encoder"),
}
"""What models of several modalities call the part that reads this one."""
INPUTS = {"image": ("pixel_values",), "audio": ("input_values", "input_features"), "text": ("input_ids",)}
"""What a model of a modality calls its input."""
READS = {"pixel_values": "pictures", "input_values": "sounds", "input_features": "sounds", "input_ids": "text"}
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


class LoadedEncoder(nn.Module):
    """What the encoders `hf_*` share; each makes its own preprocess. A protocol's `forward` is theirs too.

    The model stays in evaluation mode, also where it trains: without dropout, layer drop and SpecAugment, and with the
    normalisation statistics of its folder. So the loss is the same for any split of a batch, and no statistics have to
    go into checkpoints.
    """

    option: str
    """The choice that takes any folder: `encoder/text=hf_text`."""
    width: int
    gives_map: bool
    """A convolutional network: its last hidden state is [N, C, H, W]."""
    idle: frozenset[str]
    """Parameters of the model that its tokens do not depend on; those that the folder lacks are random."""

    def __init__(
        self,
        modality: Modality,
        path: str,
        trainable: bool,
        dtype: str,
        pool: Literal["none", "mean", "cls"],
        example: dict[str, Tensor],
        architecture: Mapping[str, Any] | None,
    ) -> None:
        """`example`: one item as `run` gets it, [1, ...] each. `architecture`: fields of the published config.json;
        shapes alone are built from them, and the folder's must agree with them."""
        super().__init__()
        self.seat = f"encoder.{modality}"
        self.path = path
        self.architecture = architecture
        self.trainable = trainable
        self.pool = pool
        if trainable and dtype != "float32":
            raise Mistake(f"{self.seat}.dtype={dtype} is for frozen weights; set it to float32, or trainable=false.")
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.files: dict[str, str] = {}
        self.load(modality, example)

    @property
    def family(self) -> str:
        """The architecture's class."""
        return type(self.model).__name__

    def load(self, modality: Modality, example: dict[str, Tensor]) -> None:
        """The tower of `modality` with its weights; its architecture alone under `torch.device("meta")`."""
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        setting = f"{self.seat}.path"
        bare = pretrained.shapes_alone()
        with torch.device("meta"):  # its kind is told before weights are read
            name, tower = tower_of(self.skeleton(bare), modality)
            reads = tower.main_input_name
            if reads not in INPUTS[modality]:
                where = f"{setting}={self.path}" if self.architecture is None else f"{self.seat}.architecture"
                raise Mistake(
                    f"{where}: {type(tower).__name__} reads {READS.get(reads, reads)}, and "
                    f"{self.seat} needs a model that reads {READS[INPUTS[modality][0]]}. Give another model."
                )
        self.model = tower
        missing: set[str] = set()
        if not bare:
            whole, missing = self.read_weights(AutoModel)
            self.model = whole.get_submodule(name) if name else whole
            self.files = pretrained.weight_files(self.path)
        self.model.eval()
        self.input_name = str(reads)
        unused = self.probe(tower, example, bare)
        self.idle = frozenset(unused)
        prefix = f"{name}." if name else ""
        needed = {key for key in missing if key.startswith(prefix)} - {prefix + key for key in unused}
        if lacking := sorted(needed):
            raise Mistake(
                f"{setting}={self.path}: the folder lacks {len(lacking)} of the model's tensors ({lacking[0]}), which "
                "would be random. Give one with all its weights."
            )
        for key, parameter in self.model.named_parameters():
            # Some families keep parameters that never train (sinusoidal positions); they stay as they are.
            parameter.requires_grad_(self.trainable and parameter.requires_grad and key not in unused)
        if self.pool == "cls" and not self.has_class_token():
            raise Mistake(f"{self.seat}.pool=cls: {self.family} has no class token. Set pool=mean.")

    def skeleton(self, bare: bool) -> Any:
        """The whole model without weights: of its `architecture` where that is given and no weights will be read, else
        of its folder's config, held against that."""
        from transformers import AutoConfig, AutoModel

        fields, setting = f"{self.seat}.architecture", f"{self.seat}.path"
        given = self.architecture
        wanted = None if given is None else pretrained.config_of(fields, given)
        if bare and wanted is not None:
            with pretrained.told_of(fields):
                return AutoModel.from_config(wanted)
        config = pretrained.read(setting, self.path, "a config", AutoConfig.from_pretrained)
        if wanted is not None and given is not None:
            both = (pretrained.values_of(one, given) for one in (wanted, config))
            pretrained.check_agrees(self.seat, self.option, self.path, *both)
        return pretrained.read(setting, self.path, "a model", lambda _: AutoModel.from_config(config))

    def read_weights(self, auto_model: Any) -> tuple[nn.Module, set[str]]:
        """The model, and the names of the tensors that its folder lacks."""
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would list the heads that are not needed; what is lacking is told by us
        try:
            model, loaded = pretrained.read(
                f"{self.seat}.path",
                self.path,
                "a whole model",
                auto_model.from_pretrained,
                dtype=self.dtype,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(verbosity)
        return model, set(loaded["missing_keys"])

    def probe(self, skeleton: Any, example: dict[str, Tensor], bare: bool) -> set[str]:
        """Run the example through the model: sets `width` and `gives_map`, and gives the parameters that its tokens do
        not depend on.

        Shapes alone are enough for nearly every family; one that looks at values runs on its weights.
        """
        try:
            return self.trace(skeleton.eval(), {name: tensor.to("meta") for name, tensor in example.items()})
        except Exception as error:
            if bare:
                raise self.refusal(error) from error
        try:
            return self.trace(self.model, example)
        except Exception as error:
            raise self.refusal(error) from error

    def trace(self, model: Any, example: dict[str, Tensor]) -> set[str]:
        with torch.enable_grad():
            states = model(**self.cast(example, model.dtype)).last_hidden_state
            features = tokens_of(states)
            named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
            gradients = torch.autograd.grad(features.sum(), [one for _, one in named], allow_unused=True)
        self.width = int(features.shape[-1])
        self.gives_map = states.dim() == 4
        return {name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None}

    def refusal(self, error: Exception) -> Mistake:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Mistake(
            f"{self.seat}.path={self.path}: {self.family} cannot encode what the folder's own "
            f"preprocessing gives ({reason}). "
            "The two do not belong together, or the model has no last hidden state; give another folder."
        )

    def has_class_token(self) -> bool:
        """Whether the first token stands for the whole item."""
        return any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in self.model.named_parameters())

    def train(self, mode: bool = True) -> LoadedEncoder:
        super().train(mode)
        self.model.eval()
        return self

    def cast(self, inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}

    def run(self, **inputs: Tensor) -> Tensor:
        """The last hidden state as tokens [N, T, E], in float32 or finer; without a graph where the model is frozen."""
        return tokens_of(self.states(**inputs))

    def states(self, **inputs: Tensor) -> Tensor:
        """The last hidden state as the model gives it: tokens [N, T, E], or a convolution's map [N, C, H, W]."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            states: Tensor = self.model(**self.cast(inputs, self.dtype)).last_hidden_state
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def pooled(self, features: Tensor, mask: Tensor | None, grid: tuple[int, int] | None = None) -> Tokens:
        """features [N, T, E], mask bool [N, T] or None where every token counts -> [N, T or 1, E]. A token that stands
        for the whole item lies on no grid."""
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        else:
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.pool == "none":
            return Tokens(features, mask, grid)
        if self.pool == "mean":
            features = features.sum(1, keepdim=True) / mask.sum(1).clamp(min=1).reshape(-1, 1, 1)
        return Tokens(features[:, :1], mask[:, :1])


def tower_of(model: Any, modality: Modality) -> tuple[str, Any]:
    """The part of a model that encodes one modality, and its name in it: `` for the model itself."""
    for name in TOWERS[modality]:
        if isinstance(getattr(model, name, None), nn.Module):
            return name, getattr(model, name)
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        return next(name for name, module in model.named_modules() if module is encoder), encoder
    return "", model


def tokens_of(states: Tensor) -> Tensor:
    """[N, T, E] as it is; a convolution's map [N, C, H, W] -> [N, H * W, C]"""
    return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states
