"""One update of the PyTorch model over M full sequences: TRL's own scoring and GRPO loss, torch's AdamW."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.benchmarks.peers import Inputs, device, synchronize


class TrlUpdate:
    """What `GRPOTrainer` does with one batch, without the trainer's loop around it."""

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Inputs,
        prompt_length: int,
        sampled: np.ndarray,
        advantages: np.ndarray,
        *,
        clip: tuple[float, float],
        learning_rate: float,
        max_grad_norm: float,
        fused_head: bool = True,
    ) -> None:
        """Args:
        inputs: M whole sequences of equal length, with the prompt's images repeated for each.
        sampled: `[M, n - prompt_length]` bool, the completion's tokens that were sampled.
        advantages: `[M]`.
        clip: how far the ratio may fall and rise.
        fused_head: the head as TRL's trainer patches it in (tiles, no array of all logits), else the model's own.
        """
        self.model, self.max_grad_norm = model.train(), max_grad_norm
        if fused_head:
            add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        tokens, mask = inputs.arguments["input_ids"], inputs.arguments["attention_mask"]
        self.batch = {
            "prompt_ids": tokens[:, :prompt_length],
            "prompt_mask": mask[:, :prompt_length],
            "completion_ids": tokens[:, prompt_length:],
            "completion_mask": mask[:, prompt_length:],
            "tool_mask": torch.tensor(sampled, device=device()).long(),
            "advantages": torch.tensor(advantages, device=device()),
            "num_items_in_batch": torch.tensor(sampled.sum(), device=device()),
        }
        for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids"):
            if name in inputs.arguments:
                self.batch[name] = inputs.arguments[name]
        if "image_grid_thw" in inputs.arguments:
            self.batch["num_images"] = [len(inputs.arguments["image_grid_thw"]) // inputs.rows] * inputs.rows
        self.tokens_processed = tokens.numel()
        self.autocast: bool = False
        self._trainer = SimpleNamespace(
            accelerator=SimpleNamespace(
                num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, autocast=self._autocast
            ),
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
            model=SimpleNamespace(training=True),
            beta=0.0,
            loss_type="dapo",
            epsilon_low=clip[0],
            epsilon_high=clip[1],
            importance_sampling_level="token",
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            aux_loss_enabled=False,
            use_vllm=False,
            current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False,
            _metrics={"train": defaultdict(list)},
        )
        score = inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies) if fused_head else _plain_scores
        self._trainer._get_per_token_logps_and_entropies = functools.partial(score, self._trainer)

    def gradient(self) -> float:
        """Leaves the gradient on the parameters; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = GRPOTrainer._compute_loss(self._trainer, self.model, self.batch)
        loss.backward()
        return loss.detach().item()

    def step(self) -> float:
        """The whole update; returns the loss."""
        loss = self.gradient()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        synchronize()
        return loss

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(device().type, torch.bfloat16) if self.autocast else contextlib.nullcontext()


def _plain_scores(
    trainer: SimpleNamespace,
    model: torch.nn.Module,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    logits_to_keep: int,
    **inputs: object,
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Log-probabilities and entropies of the completions from one array of all their logits."""
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    images = {name: value for name, value in images.items() if value is not None}
    with trainer.accelerator.autocast():
        output = model(
            input_ids=tokens, attention_mask=mask, logits_to_keep=logits_to_keep + 1, use_cache=False, **images
        )
    scores = output.logits[:, :-1].float().log_softmax(-1)
    chosen = scores.gather(2, tokens[:, -logits_to_keep:, None])[..., 0]
    with torch.no_grad():
        entropy = -(scores.exp() * scores).sum(-1)
    return chosen, entropy, None
