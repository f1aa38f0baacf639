"""The peers: transformers' PyTorch model on the same weights, and how TRL drives its `generate`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

if not torch.cuda.is_available():
    # A CUDA build of torch without CUDA's libraries dies in this call, which transformers makes for every mask.
    torch.cuda.is_current_stream_capturing = lambda: False

Picture = tuple[np.ndarray, tuple[int, int, int]]  # patches [s, patch_dim] and their grid


def device() -> torch.device:
    """The GPU, where torch has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load_peer(folder: Path, dtype: str = "float32") -> torch.nn.Module:
    """The folder's model; its own generation settings (end of turn, pad) are put aside."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model.to(device())


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Keyword arguments of the model for rows of equal length, on its device."""

    arguments: dict[str, torch.Tensor]

    @property
    def rows(self) -> int:
        return self.arguments["input_ids"].shape[0]

    @property
    def length(self) -> int:
        return self.arguments["input_ids"].shape[1]


def make_inputs(ids: np.ndarray, pictures: Sequence[Sequence[Picture]], image_id: int, dtype: torch.dtype) -> Inputs:
    """Rows of token ids `[rows, n]`, and the pictures of each row in the order of their placeholders."""
    tokens = torch.tensor(np.asarray(ids), dtype=torch.long)
    made: dict[str, torch.Tensor] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    flat = [picture for row in pictures for picture in row]
    if flat:
        made["pixel_values"] = torch.from_numpy(np.concatenate([patches for patches, _ in flat])).to(dtype)
        made["image_grid_thw"] = torch.tensor([grid for _, grid in flat])
        made["mm_token_type_ids"] = (tokens == image_id).int()
    return Inputs({name: value.to(device()) for name, value in made.items()})


class StepClock(StoppingCriteria):
    """Notes when each token was there; never stops."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    @property
    def seconds_per_step(self) -> float:
        """Mean over the steps after the first token."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


@torch.no_grad()
def generate(model: torch.nn.Module, inputs: Inputs, new: int, clock: StepClock | None = None, **options: Any) -> Any:
    """`new` sampled tokens behind each row as TRL's trainer asks for them: temperature 1, no top-k, no top-p.

    Returns:
        `[rows, n + new]`, on the model's device.
    """
    settings = GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        **options,
    )  # fmt: skip
    criteria = StoppingCriteriaList([clock] if clock else [])
    tokens = model.generate(**inputs.arguments, generation_config=settings, stopping_criteria=criteria)
    synchronize()
    assert tokens.shape == (inputs.rows, inputs.length + new)
    return tokens


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, inputs: Inputs, last: int, banned: np.ndarray) -> np.ndarray:
    """`[rows, last]` float32: of the last tokens of each row, given what stands before them; banned ids left out."""
    logits = model(**inputs.arguments, logits_to_keep=last + 1).logits[:, :-1].float()
    logits = logits.masked_fill(torch.tensor(banned, device=logits.device), -torch.inf)
    tokens = inputs.arguments["input_ids"][:, -last:]
    return logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].cpu().numpy()
