"""Every field of a configuration, with its meaning and default.

A recipe calls `get_config()`, changes what it needs and returns the result; `medvr_jax/configuration.py` checks names,
types and combinations. Where the papers leave a value open, the default is the one that the README's fidelity table
gives. Axis letters: B prompts of a step, M trajectories per prompt, P prompt tokens, T response tokens, E tokens fed
at once, I images per prompt, S patches per image, R raster side.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def section() -> ConfigDict:
    """An empty part of a configuration. Types are left to `medvr_jax.configuration`, whose messages name the field."""
    return ConfigDict(type_safe=False)


def get_config() -> ConfigDict:
    """The defaults. Not a recipe: `model.path` is empty."""
    config = section()
    config.trainer = "grpo"  # grpo | supervised (the warm-up that made the tiny checkpoint)
    config.seed = 0  # of everything random: data order, sampling, forks
    config.steps = 100  # updates of the policy; a run may be resumed with more
    config.checkpoint_every = 20  # steps between checkpoints; the last step always has one
    config.keep_checkpoints = 2  # newest checkpoints to keep
    config.evaluate_every = 20  # steps between evaluations; there is one before the first update and one at the end
    config.export_at_end = True  # write a Hugging Face folder to WORKDIR/export when training is done

    model = config.model = section()
    model.path = ""  # Hugging Face folder of the policy, relative to the current one or to that of package medvr_jax
    model.architecture = ""  # --mode=plan: shapes to plan with where `path` is not at hand, e.g. qwen2.5-vl-7b
    model.compute_dtype = "float32"  # float32 | bfloat16: matrix products; norms, softmax and rope stay float32
    model.parameter_dtype = "float32"  # float32 | bfloat16: master weights; bfloat16 ones lose changes below 1/256
    model.export_dtype = "source"  # source (each tensor as in model.path) | float32 | bfloat16: of exported folders
    model.freeze_vision_tower = False  # no gradient, no optimiser state; image features of the rollout are used again
    model.freeze_embeddings = False  # likewise the token embeddings, and a head that is tied to them
    # What each layer of decoder and tower keeps for the backward pass: all; its input and its products with weights; or
    # its input alone.
    model.remat = "none"  # none | dots | block
    model.images_at_once = 0  # images of each group that the tower sees at a time; 0 = all; changes memory, not results
    model.attention = "auto"  # auto (by the devices) | xla (anywhere) | splash (TPU) | fused (NVIDIA GPU)

    mesh = config.mesh = section()
    mesh.data = -1  # devices that split the prompts of a step; -1 = all that the other axes leave
    mesh.fsdp = 1  # devices that split the prompts and also the parameters; -1 = all that the others leave
    mesh.tensor = 1  # devices that split heads and MLP width
    mesh.host_devices = 1  # devices that a process on a CPU host has; GPU and TPU ignore it

    data = config.data = section()
    data.name = "synthetic"  # synthetic | jsonl (your own questions) | sets (those of data.sets)
    data.train_file = ""  # jsonl: training examples, one JSON object per line, or a table whose name ends in .csv
    data.test_file = ""  # jsonl: test examples
    data.image_folder = ""  # jsonl: what the image paths in these files are relative to
    # sets: NAME, NAME/VARIANT or jsonl, each with :WEIGHT (its share of the stream), or all without (shuffled as one).
    data.sets = ()  # e.g. ("omnimedvqa:2", "slake/en:1")
    data.manual_dir = ""  # sets: folder of the published files
    data.data_dir = "prepared"  # sets: folder of what is made of them, once
    data.on_error = "refuse"  # refuse | skip: what becomes of wrong lines and records; either way they are listed
    data.max_image_pixels = 100_000_000  # of any image; larger ones are refused before they are decoded
    data.check_images = "pixels"  # pixels | header: how much is read of your own images; of published ones all is, once
    data.filter_file = ""  # predictions of --mode=evaluate on the training questions; empty = no filter
    data.filter_rule = "strict"  # strict | medevalkit: the scores in this file that count
    data.filter_minimum = 0.0  # a question stays if the share of its samples that are right is more than this
    data.filter_maximum = 1.0  # and less than this
    data.train_examples = 0  # training questions at most, the same ones in every run; 0 = all
    data.prompts_per_step = 16  # B
    data.test_examples = 512  # examples of an evaluation, one greedy trajectory each
    data.evaluation_batch = 64  # of these at a time
    data.synthetic = section()  # the synthetic task; ignored by others
    data.synthetic.hidden_by = "size"  # size (a zoom shows it) | contrast (a window does): what hides a lesion's class
    data.synthetic.image_side = 448  # pixels
    data.synthetic.lesion_side = 28  # diameter of the lesion in pixels
    data.synthetic.period = 7.0  # of the lesion's stripes in pixels; their direction is the class
    data.synthetic.texture_cells = 14  # cells of the background's texture along a side
    data.synthetic.margin = 0.18  # lesion centres keep this share of the side from the border
    data.synthetic.seed = 0  # of the images; another seed is another task of the same kind
    # For experiments, see configs/arms.py: what a guess is worth, and whether the boxes of a habit can hit.
    data.synthetic.classes = 4  # kinds of lesions, 2 to 4
    data.synthetic.nothing_visible = False  # a first option says so; it is never right
    data.synthetic.prior = 0.0  # share of the training questions that are of the first kind, whatever the others are
    data.synthetic.lesions = "anywhere"  # anywhere | outside_habits | inside_habits: where lesions lie

    prompt = config.prompt = section()
    prompt.system = ""  # system prompt; empty = the full one, with the tool's JSON schema
    prompt.template = "{question}"  # the user's text; {question} stands for the question with its options
    prompt.option = "{letter}. {text}"  # a line of the options
    prompt.bucket = 1024  # P; longer prompts are refused, their last token not counted: the response begins with it
    prompt.images = 1  # I; prompts with more are refused
    prompt.patches = 2048  # S, patches of the largest image, a multiple of 4
    prompt.sizes = 2  # of batches at most, chosen so that the data is padded least; 1 = all to bucket and patches
    prompt.min_pixels = 3136  # smaller images are enlarged to this many pixels, side ratio kept
    prompt.max_pixels = 401408  # larger images are reduced to this many; needs max_pixels <= 196 patches

    rollout = config.rollout = section()
    rollout.trajectories = 16  # M
    rollout.groups_at_once = 0  # groups sampled at a time; 0 = all of a step; changes memory, not results
    rollout.sizes = 5  # of responses, crops and updates, at most: fewer compile sooner, and pad more; 1 = the largest
    rollout.temperature = 1.0  # of sampling and of the scorer alike; evaluation is greedy
    rollout.max_turns = 5  # turns of the policy in one trajectory, the answer's included
    rollout.response_length = 1024  # T; a trajectory that would grow longer ends, truncated
    rollout.observation_length = 640  # E, tokens of one observation (crop and text) fed in one call
    rollout.tools = ("image_zoom_in_tool",)  # tools that the policy may call, see rollout/tools/; () = text only
    rollout.crop_patches = 2048  # S of a crop, a multiple of 4
    rollout.crop_min_pixels = 3136  # smaller crops are enlarged to this many pixels
    rollout.crop_max_pixels = 401408  # larger crops are reduced to this many; <= 196 crop_patches

    evr = config.evr = section()  # entropy-guided visual regrounding
    evr.enabled = True  # off: all M trajectories are sampled from the prompt
    evr.p_base = 0.5  # P = P_base + gamma (H_tool - H_base)
    evr.gamma = 0.5  # 0 = P_base for every eligible box
    evr.threshold = 0.0  # a fork needs H_tool - H_base above this
    evr.gate = "entropy"  # entropy (by the threshold) | random (every box is eligible, P = P_base: the control)
    evr.position = "first"  # first | uncertain (the highest entropy): the coordinate token at which forks begin
    evr.base_tokens = 20  # H_base: mean entropy of at most this many first sampled tokens
    evr.window = 20  # H_tool: mean entropy of at most this many last coordinate tokens
    evr.entropy_unit = "nats"  # nats | log_vocabulary (divided by log V)
    evr.spending = "repeated"  # repeated: ask eligible trajectories until the budget is used | one_pass: once each
    evr.max_passes = 8  # repeated: passes at most; what is left of the budget becomes fresh trajectories

    rewards = config.rewards = section()
    # medvr | medvlm_r1: R_acc 1, or 0.5 for the right letter with more text; R_format 1 for well-formed output, else 0
    rewards.scheme = "medvr"  # medvr | medvlm_r1
    rewards.accuracy_weight = 1.0  # of R_acc, 1 for a right answer, else 0
    rewards.format_weight = 1.0  # of R_format, 0 for well-formed output, else format_penalty
    rewards.tool_weight = 1.0  # of R_tool, which only right answers earn
    rewards.format_penalty = -0.2  # medvr: R_format of malformed output
    # To look is to get an image from a tool, whichever it is. CCA is about boxes: other looks earn nothing under it,
    # and vote for nowhere. The default is the paper's; docs/arms.md measures when conditional is the better one.
    rewards.tool = "consensus"  # consensus (CCA) | conditional (looked and right) | unconditional (looked) | none
    rewards.eta = 0.5  # consensus: `high` needs an IoU with the consensus above this
    rewards.raster = 64  # R of the masks
    rewards.high = 1.0  # R_tool above eta; conditional and unconditional pay this too
    rewards.low = 0.5  # R_tool otherwise
    # A look that suits many images is a habit: popularity is the share of those that looked and are right, of the
    # step's other questions, whose boxes are, by eta, the same. For one process.
    rewards.maximum_popularity = 1.0  # consensus: who is more popular has no vote; 1 = all right ones vote

    grpo = config.grpo = section()
    grpo.clip_low = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    grpo.clip_high = 0.2  # larger than clip_low = clip-higher
    grpo.kl_weight = 0.0  # of the k3 estimate of KL to the policy before training; 0 = no reference is kept
    grpo.aggregation = "token"  # token: each sampled token counts the same | sequence: each trajectory does
    grpo.updates_per_batch = 1  # optimiser steps on one batch of rollouts; the ratio is clipped only from the second on
    grpo.std_threshold = 1e-3  # groups whose rewards have a smaller standard deviation get no advantage
    grpo.normalise_by_std = True  # divide advantages by the group's standard deviation (of M - 1) plus 1e-4
    grpo.micro_batch_groups = 0  # groups per forward and backward pass; 0 = all; changes memory, not results
    grpo.skip_zero_spread = False  # leave groups without spread out of the loss and its denominators
    grpo.logit_chunk = 512  # tokens whose logits over the vocabulary exist at once

    optimizer = config.optimizer = section()  # AdamW
    optimizer.learning_rate = 1e-6
    optimizer.schedule = "constant"  # constant | linear | cosine (to 0 at the last step); all after the warm-up
    optimizer.warmup_steps = 0  # learning rate rises linearly over these steps
    optimizer.weight_decay = 0.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.epsilon = 1e-8
    optimizer.moment_dtype = "float32"  # float32 | bfloat16: the first moment; the second stays float32
    optimizer.max_grad_norm = 1.0  # gradients are scaled down to this global norm

    programs = config.programs = section()
    # JAX_COMPILATION_CACHE_DIR in the environment wins; auto is ~/.cache/medvr_jax/programs, if that can be written to.
    programs.cache = "auto"  # auto | a folder | empty = none: where compiled programs are kept from run to run

    report = config.report = section()
    # Shared evenly among the recorded steps; of each no more than these groups keep an image, of 768 pixels at most.
    report.groups = 256  # groups that the report shows
    report.rollouts_every = 10  # steps between files of rollouts/; the first and last step always have one
    report.profile_steps = ()  # steps that jax.profiler traces into WORKDIR/profile/, e.g. (5,); for XProf or Perfetto
    # Sinks beside metrics.jsonl, from requirements-extras.txt; a run goes on without one that is missing or fails.
    report.tensorboard = False  # curves, pictures of groups and texts into WORKDIR/tensorboard/
    report.wandb = "off"  # off | online | offline (kept in WORKDIR/wandb/, for `wandb sync`): Weights & Biases
    report.wandb_project = "medvr_jax"  # project there
    report.wandb_entity = ""  # user or team there; empty = its default
    report.wandb_name = ""  # of the run there; empty = the name of WORKDIR

    # --mode=evaluate; sets, split and questions also of --mode=leaks. The evaluations of a training run are greedy, on
    # the test questions of `data`.
    evaluate = config.evaluate = section()
    evaluate.sets = ()  # published sets, e.g. ("vqa_rad", "slake/en"); () = the test questions of `data`
    evaluate.split = "test"  # which part of these sets
    evaluate.questions = 0  # of each set, the first ones; 0 = all of it, and of `data` as many as data.test_examples
    evaluate.samples = 1  # answers to each question
    evaluate.temperature = 0.0  # of sampling; 0 = greedy, and then evaluate.samples = 1
    evaluate.tools = True  # off: tools are not offered, and the token that calls one is never sampled
    evaluate.system = ""  # system prompt; empty = that of the run, and of an endpoint's model the one without tools
    # The image blanked where the policy zoomed in and where the true boxes are, each with as much elsewhere as control.
    evaluate.masking = False  # ask each question again so, and tell how often the answer changes; greedy answers only
    evaluate.name = ""  # folder below WORKDIR/evaluation; empty = by what differs from the plain evaluation
    evaluate.compare_with = ()  # folders of other runs or evaluations: more lines of the main table, compared in pairs
    evaluate.predictions_file = ""  # answers of any model, scored instead: JSON lines of id, text and maybe sample
    evaluate.endpoint = ""  # OpenAI-compatible base URL whose model is asked instead, e.g. http://localhost:8000/v1
    evaluate.model = ""  # its name there
    evaluate.max_tokens = 1024  # of one of its answers
    evaluate.failures = "refuse"  # refuse | empty: an answer that fails to come counts as empty, a verdict as wrong
    evaluate.judge_endpoint = ""  # base URL of a model that judges open questions, beside the rules; empty = none
    evaluate.judge_model = ""  # its name there
    evaluate.concurrency = 8  # requests to an endpoint or judge that are under way at the same time
    evaluate.timeout = 300.0  # seconds that one request may take
    evaluate.retries = 6  # of a request that breaks off, takes too long or is refused for now, after ever longer waits

    # --mode=experiment: a grid of arms and seeds, all on the same questions. An arm is NAME=VARIANT: its name in tables
    # and what stands behind the colon of --config; with @SEEDS it has so many seeds.
    experiment = config.experiment = section()
    experiment.arms = ()  # e.g. ("zoom=zoom", "calm=evr,gamma=0@5"); () = the recipe has no experiment
    experiment.seeds = 10  # of an arm that does not say: the numbers seed, seed + 1, …
    experiment.baseline = ""  # NAME of the arm that all others are compared with, seed by seed; empty = the first one
    experiment.pairs = ()  # further differences, each NAME-NAME
    # [TITLE=]KIND:NAME,NAME,… where KIND is curves, area, entropy, a key of metrics.jsonl or a field that differs.
    experiment.figures = ()  # e.g. ("curves:zoom,evr", "evr.gamma:calm,evr"); a semicolon begins another line
    experiment.workers = 2  # processes, each on cores of its own
    return config
