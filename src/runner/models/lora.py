"""LoRA on the language model, by PEFT. Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021;
Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023 (rsLoRA); Liu et al., "DoRA:
Weight-Decomposed Low-Rank Adaptation", 2024."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from annotated_types import Ge, Gt, Lt
from torch import nn

from runner.models.architecture import WEIGHTS_READ
from runner.models.quantization import hush
from runner.protocols import Mistake
from runner.spelling import did_you_mean

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Lora:
    def __init__(
        self,
        r: Annotated[int, Ge(1)],
        alpha: Annotated[float, Gt(0)],
        dropout: Annotated[float, Ge(0), Lt(1)],
        target_modules: str | list[str],
        use_rslora: bool,
        use_dora: bool,
        init: str | None,
    ) -> None:
        self.r = r
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_modules
        self.use_rslora = use_rslora
        self.use_dora = use_dora
        self.init = init

    def apply(self, model: PreTrainedModel) -> PeftModel:
        """Wrap the model; its own weights are frozen by it. Adapter weights are float32 whatever the model's type."""
        hush()
        from peft import LoraConfig, get_peft_model

        targets = self._targets(model)
        check_targets(model, targets)
        if self.init is not None:
            return self._from_adapter(model, self.init)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=cast(int, self.alpha),
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for something under its old name
            return get_peft_model(model, config)

    def _targets(self, model: PreTrainedModel) -> list[str]:
        """Module names; `all-linear` is every linear layer but the head, and what the family does not call."""
        if self.target_modules != "all-linear":
            return [self.target_modules] if isinstance(self.target_modules, str) else list(self.target_modules)
        head = model.get_output_embeddings()
        linear = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
        passed_by = WEIGHTS_READ.get(model.config.model_type, ())
        return sorted({own_name(name) for name in linear} - set(passed_by))

    def _from_adapter(self, model: PreTrainedModel, folder: str) -> PeftModel:
        from peft import PeftConfig, PeftModel

        file = Path(folder) / "adapter_config.json"
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Mistake(
                f"lora.init={folder}: {file} cannot be read ({error}). Give a folder that PEFT saved."
            ) from error
        ours_by_name = {
            "r": self.r,
            "lora_alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
        }
        for name, value in ours_by_name.items():
            # PEFT before 0.10 did not write the last two, and knew neither.
            there = saved.get(name, False if name.startswith("use_") else None)
            if there != value:
                said = json.dumps(there)
                raise Mistake(
                    f"lora.init={folder}: the adapter has {name}={said}, the config {json.dumps(value)}. "
                    f"Set lora.{name.removeprefix('lora_')}={said}."
                )
        ours, theirs = set(self._targets(model)), saved.get("target_modules")
        if not isinstance(theirs, list) or set(theirs) != ours:
            raise Mistake(
                f"lora.init={folder}: the adapter sits on {theirs}, the config asks for {sorted(ours)}. "
                "Set lora.target_modules to the adapter's."
            )
        config = PeftConfig.from_pretrained(folder)
        config.lora_dropout = self.dropout  # the run's, not the one that the adapter was trained with
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return PeftModel.from_pretrained(model, folder, config=config, is_trainable=True)


def own_name(name: str) -> str:
    """A module's last name, with the one before a number: `q_proj`, `altup_projections.0`."""
    parts = name.split(".")
    start = next((k for k in reversed(range(len(parts))) if not parts[k].isdigit()), 0)
    return ".".join(parts[start:])


def matches(name: str, target: str) -> bool:
    """Whether a module's name ends with a target, in whole words, as PEFT has it."""
    return f".{name}".endswith(f".{target}")


def is_linear(module: nn.Module) -> bool:
    """Also GPT-2's linear layer, which transformers wrote for itself."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def check_targets(model: nn.Module, targets: list[str]) -> None:
    """Raises `Mistake` for a name that no linear layer of the model ends with: PEFT passes over it in silence."""
    ends = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module)})
    lines = [] if targets else [f"lora.target_modules is empty. Name some of {', '.join(ends)}, or set all-linear."]
    not_called = WEIGHTS_READ.get(getattr(getattr(model, "config", None), "model_type", ""), ())
    for target in targets:
        if target in not_called:
            lines.append(
                f"lora.target_modules: {target} of {type(model).__name__} is read and never called, so an adapter on "
                "it would learn nothing. Leave it out."
            )
            continue
        matched = [module for name, module in model.named_modules() if name and matches(name, target)]
        if not any(isinstance(module, ADAPTABLE) or is_linear(module) for module in matched):
            hint = did_you_mean(target, ends, otherwise=f"; its linear layers are {', '.join(ends)}.")
            what = "no module" if not matched else f"only {type(matched[0]).__name__}, which LoRA cannot adapt, "
            lines.append(f"lora.target_modules: {target} matches {what} of {type(model).__name__}{hint}")
    if lines:
        raise Mistake("\n".join(lines))
