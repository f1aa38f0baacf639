"""How medvr_jax/assets/tiny was made: supervised warm-up of a random Qwen2.5-VL, without any reward.

It teaches what a pre-trained VLM would bring: to write the format, to point at a marker that it is asked for, and to
read a lesion that fills a crop. It never shows where a lesion is: boxes for lesions are drawn at random. One CPU core,
about six minutes:

    python -m medvr_jax.main --config=configs/tiny_warmup.py --workdir=runs/warmup

writes runs/warmup/export, whose copy the assets folder is. Other seeds make checkpoints of the same kind, of which not
all learn as well: it depends on how much of the pointing at markers is left for lesions.

`--config=configs/tiny_warmup.py:window` makes medvr_jax/assets/tiny_window in the same way: for faint lesions, it
teaches to say how bright something is, to call the tool with that one of six windows which is around a plain square
that it is asked for, and to read a lesion that a window shows. It never shows which window that is: asked for a lesion,
the windows to call are drawn at random.

`--config=configs/tiny_warmup.py:habit` makes medvr_jax/assets/tiny_habit, the policy of the experiments (configs/
arms.py): before it zooms, it names a place, and three of the four places stand for one box each, a habit that is put in
on purpose. Only the fourth is a search.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, variants


def get_config(variant: str = "zoom") -> ConfigDict:
    """base.py's fields and a section of its own; of the former only seed, trainer and data.synthetic are used.

    Variants: `zoom`, `window`: the tool; `habit`: a zoom, and a place that is named before it.
    """
    word = variants.parse(variant, ("zoom", "window", "habit"), {}).word
    config = base.get_config()
    config.trainer = "supervised"
    config.seed = 2

    warmup = config.warmup = base.section()
    warmup.policy = word  # zoom | window | habit
    warmup.vocabulary = 512  # BPE tokens before the added ones
    warmup.initializer_range = 0.15  # with 0.05 the first stage stays at chance
    warmup.text = base.section()  # the decoder
    warmup.text.hidden_size = 64
    warmup.text.intermediate_size = 128
    warmup.text.num_layers = 2
    warmup.text.num_heads = 4
    warmup.text.num_kv_heads = 2
    warmup.text.mrope_section = (2, 3, 3)
    warmup.text.rope_theta = 10.0  # small: with 1e4 grounding takes nearly twice as many steps
    warmup.text.max_position_embeddings = 4096
    warmup.text.tie_word_embeddings = True
    warmup.vision = base.section()  # the tower
    warmup.vision.depth = 2
    warmup.vision.hidden_size = 64
    warmup.vision.intermediate_size = 128
    warmup.vision.num_heads = 4
    warmup.vision.full_attention_blocks = (1,)

    warmup.dtype = "float32"  # of the file
    warmup.temperature = 1.25  # trained hotter than sampled, so that at temperature 1 stray tokens are rare
    warmup.pool = 1024  # different images of each kind
    warmup.learning_rate = 2e-3
    warmup.ramp_steps = 30  # of each stage: the learning rate rises linearly
    warmup.max_grad_norm = 1.0
    warmup.log_every = 20

    warmup.tower_steps = 200  # stage 1: the tower alone tells classes, and where or how bright something is
    warmup.probe_batch = 64  # images of either kind
    warmup.mixed_learning_rate = 3e-3  # the highest, in the last stage
    warmup.mixed_steps = 180  # the last stage: all together; the learning rate falls to 0
    warmup.rows = 4  # trajectories of a prompt that asks for the lesion
    warmup.direct_batch = 8  # prompts answered at once, without a look
    warmup.answer_weight = 4.0  # of the tokens that name the class, against 1 for others
    if word == "window":
        _window(config)
    else:
        _zoom(warmup)
    if word == "habit":
        _habit(config)
    return config


def _zoom(warmup: ConfigDict) -> None:
    """What pointing and zooming need."""
    warmup.box_side = 42  # every box is a square of this side, in pixels of the overview …
    warmup.box_step = 14  # … on a lattice of this pitch: 36 boxes
    warmup.ground_steps = 600  # stage 2: point at the marker; at most so many steps …
    warmup.ground_until = 0.95  # … for it ends when this share of a log line's boxes is wholly right
    warmup.ground_batch = 64
    warmup.probe_weight = 0.1  # stage 1 goes on with this weight and a quarter of its batch
    warmup.lesion_batch = 4  # prompts that ask for the lesion …
    warmup.decoy_batch = 4  # … or for one where there is a marker only …
    warmup.reading_batch = 2  # prompts whose crops of the lesion are read, with as many rows
    warmup.marker_batch = 12
    warmup.ground_box_weight = 10.0  # of coordinates when pointing at the marker, in stage 2
    warmup.marker_box_weight = 2.0  # … and in stage 3
    warmup.random_box_weight = 0.6  # of the random coordinates for lesions


def _window(config: ConfigDict) -> None:
    """What a window needs."""
    variants.faint_lesions(config)
    warmup = config.warmup
    warmup.dtype = "bfloat16"
    warmup.pool = 512
    warmup.tower_steps = 120
    warmup.window_width = 4  # grey values around each of the levels that lesions have: six windows
    warmup.lesion_batch = 4  # prompts that ask for the lesion, with random windows …
    warmup.decoy_batch = 4  # … or for one where there is a plain square only
    warmup.marker_batch = 16  # prompts that ask for the square, with the window around its grey value
    warmup.marker_window_weight = 2.0  # of these windows
    warmup.reading_batch = 16  # prompts whose lesions are read in the window that shows them
    warmup.naming_weight = 2.0  # of the word that says how bright the lesion is
    warmup.random_window_weight = 0.6  # of the random windows


def _habit(config: ConfigDict) -> None:
    """What a habit needs on top of zooming."""
    config.data.synthetic.classes = 3
    config.data.synthetic.nothing_visible = True
    warmup = config.warmup
    warmup.dtype = "bfloat16"
    warmup.box_step = 7  # of the search's boxes too
    warmup.habit_share = 0.9  # of trajectories that name one of the habit's three places
    warmup.habit_strength = 0.97  # of these, the share with the place's own box
    warmup.habit_box_weight = 5.0  # of these boxes
    warmup.habit_batch = 32  # prompts of stage 2 that ask for the lesion; only the call is learned
    warmup.luck = 0.1  # of crops without a lesion, the share answered with a class
    warmup.search_sides = (42, 56)  # of the boxes of a search …
    warmup.search_shares = (0.75, 0.25)  # … and how often each is drawn
