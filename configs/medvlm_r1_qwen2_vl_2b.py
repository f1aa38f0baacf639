"""MedVLM-R1's recipe for Qwen2-VL-2B: text-only reasoning, no tool, 4 answers to each of 600 questions, two epochs.

Rewards, prompt, group, lengths, KL and learning rate are the paper's and its published code's. Prompts per update are
our choice: one for each of 8 devices. Variants:

    (none)             600 questions about MRI to learn from, 300 each about MRI, CT and X-ray to be tested on
    modality=NAME      Med-R1's: learn from one modality of OmniMedVQA and be tested on it
    tiny               the same recipe on two CPU cores: a 0.3 M-parameter model and synthetic images

Give the model and the folder of the published files on the command line (`tiny` needs neither):

    --config.model.path=Qwen2-VL-2B-Instruct --config.data.manual_dir=downloads

--mode=plan needs none of these: `model.architecture` has the model's shapes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, variants
from medvr_jax.errors import UserError

MODALITIES = {  # of OmniMedVQA, and what the set's variants are called
    "ct": "ct",
    "mri": "mri",
    "xray": "x_ray",
    "ultrasound": "ultrasound",
    "dermoscopy": "dermoscopy",
    "fundus": "fundus",
    "oct": "oct",
    "microscopy": "microscopy",
}
WORDS, SETTINGS = ("tiny",), {"modality": "|".join(MODALITIES)}

# What the paper's code says to the model, word by word and blank by blank; there is no system turn but the model's own.
TEMPLATE = """
        {question}\x20
        Your task:\x20
        1. Think through the question step by step, enclose your reasoning process in <think>...</think> tags.\x20
        2. Then provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.
        3. No extra information or text outside of these tags.
        """


def get_config(variant: str | None = None) -> ConfigDict:
    """The recipe; `model.path` and `data.manual_dir` are the user's to give, but for `tiny`."""
    asked = variants.Variant() if variant is None else variants.parse(variant, WORDS, SETTINGS)
    config = _recipe()
    modality = asked.settings.get("modality")
    if modality is not None:
        if modality not in MODALITIES:
            raise UserError(f"--config: found variant 'modality={modality}', allowed are {', '.join(MODALITIES)}")
        if asked.word:
            raise UserError("--config: found variant 'tiny' with a modality; its images are synthetic, allowed is one")
        config.data.sets = (f"omnimedvqa/{MODALITIES[modality]}",)
    return _tiny(config) if asked.word == "tiny" else config


def _recipe() -> ConfigDict:
    config = base.get_config()
    config.steps = 150  # two epochs of 600 questions
    config.checkpoint_every = 25
    config.evaluate_every = 25

    config.model.compute_dtype = "bfloat16"
    config.model.remat = "block"
    config.model.architecture = "qwen2-vl-2b"
    config.mesh.fsdp = 8

    config.data.name = "sets"
    config.data.sets = ("medvlm_r1",)
    config.data.prompts_per_step = 8
    config.data.test_examples = 900  # 300 each of MRI, CT and X-ray
    config.data.evaluation_batch = 64

    config.prompt.system = "You are a helpful assistant."  # what the model's chat template says if nobody does
    config.prompt.template = TEMPLATE
    config.prompt.option = "{letter}) {text}"
    config.prompt.bucket = 1024  # up to 512 visual tokens, and 512 of text
    config.prompt.patches = 2048
    config.prompt.max_pixels = 401408

    config.rollout.tools = ()
    config.rollout.max_turns = 1
    config.rollout.trajectories = 4
    config.rollout.response_length = 512
    config.rollout.temperature = 1.0
    config.evr.enabled = False

    config.rewards.scheme = "medvlm_r1"
    config.rewards.tool = "none"

    config.grpo.kl_weight = 0.04
    config.grpo.aggregation = "sequence"
    config.optimizer.learning_rate = 1e-6
    config.optimizer.schedule = "linear"  # what the published code takes over from its library
    return config


def _tiny(config: ConfigDict) -> ConfigDict:
    """The recipe's method with the quick start's model, on lesions that can be read in the overview.

    They are as large in the overview as the quick start's are in the crop of a zoom, where the tower learned to read
    them. Asked to answer at once, about them, the policy never was: half of its greedy answers are well formed, and of
    these as many are right as by chance. Both rewards have something to teach.
    """
    config.steps = 60
    config.checkpoint_every = 20
    config.evaluate_every = 10

    config.model.path = "medvr_jax/assets/tiny"  # found from any folder: see configuration.model_folder
    config.model.architecture = ""
    config.model.compute_dtype = "float32"
    config.model.remat = "none"
    config.model.freeze_vision_tower = True
    config.mesh.fsdp = 1
    config.mesh.host_devices = 2

    config.data.name = "synthetic"
    config.data.sets = ()
    config.data.synthetic.lesion_side = 75
    config.data.synthetic.period = 18.75
    config.data.synthetic.texture_cells = 5
    config.data.prompts_per_step = 64
    config.data.test_examples = 512
    config.data.evaluation_batch = 64

    config.prompt.system = "Answer at once."  # a system prompt of the warm-up, and its form of a question
    config.prompt.template = "{question}"
    config.prompt.option = "{letter}. {text}"
    variants.tiny_prompts(config)

    config.rollout.response_length = 48
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    return config
