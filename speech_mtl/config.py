"""Everything that can be set, in one place: a recipe (recipe.py) or a model folder's config.json becomes a `Config`.

Defaults live here and nowhere else; `--set section.key=value` and the recipes override them. An unknown key is refused
with the nearest valid one. This file imports no torch, so that a wrong call is answered at once.
"""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# fields of an evaluation's rows and summary beside the tasks' own (data.describe_cut, evaluate.summarize)
ROW_FIELDS = set("id audio start_s duration_s true_speaker altered compute_s error cost utterances failed".split())

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes


class ConfigError(ValueError):
    """A recipe, an override or a config.json that cannot be used; the message names the key and what is accepted."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class FeatureConfig(Section):
    """Log-mel features, in the steps of the NeMo/Parakeet preprocessor (see features.py)."""

    sample_rate: int = Field(16000, gt=0)
    """Hz; audio at any other rate is resampled."""
    n_mels: int = Field(80, gt=0)
    n_fft: int = Field(512, gt=0)
    window_samples: int = Field(400, gt=0)
    hop_samples: int = Field(160, gt=0)
    f_max_hz: float = Field(8000.0, gt=0)
    preemphasis: float = Field(0.97, ge=0, lt=1)
    normalize: Literal["corpus", "utterance"] = "corpus"
    """'corpus': fixed mean and scale per mel bin, measured on the training data; 'utterance': per bin and utterance, as
    Parakeet does, which removes the speaker from short utterances."""

    @model_validator(mode="after")
    def _window_fits(self) -> FeatureConfig:
        if self.window_samples > self.n_fft:
            raise ValueError(f"window_samples: found {self.window_samples}, accepted: n_fft, {self.n_fft}, or less")
        return self


class EncoderConfig(Section):
    """Conformer; the names follow transformers' Parakeet encoder where the two mean the same."""

    d_model: int = Field(144, gt=0)
    n_blocks: int = Field(8, gt=0)
    n_heads: int = Field(4, gt=0)
    ff_factor: int = Field(4, gt=0)
    kernel_size: int = Field(15, gt=0)
    subsampling: Literal[2, 4, 8] = 4
    """Mel frames per encoder frame."""
    subsampling_channels: int = Field(64, gt=0)
    positions: Literal["rotary", "relative"] = "rotary"
    """'rotary' is the faster; 'relative' (Transformer-XL) is Parakeet's, for imported models."""
    conv_norm: Literal["layer", "batch"] = "layer"
    """'layer' keeps padding without effect in training too; 'batch' is Parakeet's, for imported models."""
    scale_input: bool = False
    attention_bias: bool = True
    convolution_bias: bool = True
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the residual branches of every block."""
    reach_s: float = Field(3.0, ge=0)
    """In use, and in training in the company of others (augment.company_prob): attention sees this many seconds to
    either side, so that a long recording meets what the utterances of training were like, and gives the same in windows
    as in one piece; 0: everything."""

    @model_validator(mode="after")
    def _shapes(self) -> EncoderConfig:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model must be a multiple of 2·n_heads, got {self.d_model} and {self.n_heads}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        return self


class TextConfig(Section):
    """How texts are written before they become tokens, and before they are scored (NFKC always)."""

    units: Literal["characters", "bpe"] = "characters"
    vocab_size: int = Field(256, gt=1)
    """Number of pieces with units = 'bpe'."""
    case: Literal["lower", "upper", "keep"] = "lower"
    punctuation: Literal["remove", "keep"] = "remove"
    """'remove' drops punctuation and symbols, except an apostrophe inside a word."""


class TaskConfig(Section):
    """One task of the model. `type` picks the file under tasks/; the other keys belong to that type."""

    type: Literal["asr", "speaker", "classify"]
    label: str = ""
    """classify: the label's name, a supervision field (gender, language) or a key of its custom dict; the task's own
    name where empty."""
    weight: float = 1.0
    """Scale of the task's gradient where it enters the shared trunk: 0 leaves the trunk alone (a probe), below 0 works
    against the task (adversarial). The task's own blocks and head always learn from its full loss."""
    warmup_epochs: float = Field(0.0, ge=0)
    """The weight grows from 0 over these first epochs: CTC leaves its plateau of blanks sooner when it is alone."""
    branch: int | None = Field(None, ge=0)
    """Blocks 1..branch are shared, those above are the task's own. All are shared where absent; with 0 nothing is, the
    subsampling neither."""
    blocks: int | list[int] | None = None
    """The blocks that are read, 1..blocks or (speaker, classify) those of a list; all of them where absent."""
    adaptor_dim: int = Field(0, ge=0)
    """speaker, classify: every block is read through a bottleneck of its own, so wide, and all of them stand side by
    side (see tasks/pooling.py): what a frozen trunk asks for. 0: a learnt weighting of the blocks as they are."""
    spectrum: bool = True
    """speaker, classify: read mean and deviation of every mel bin too, which the trunk then need not carry."""
    crop_s: tuple[float, float] | None = None
    """speaker: in training the head reads a stretch of each utterance, as long as drawn between these seconds, as it
    reads phrases of a conversation in use; the trunk hears all. None: the whole utterance."""
    intermediate: float = Field(0.3, ge=0, lt=1)
    """asr: share of the loss that is taken at the middle block, so that CTC leaves its plateau of blanks sooner."""
    consistency: float = Field(0.0, ge=0)
    """asr: in training every batch is heard twice, masked in two ways, and each output is drawn to the other with this
    weight (CR-CTC). It doubles a step's time."""
    embedding_dim: int = Field(192, gt=0)
    margin: float = Field(0.2, ge=0)
    """speaker: additive angular margin in radians."""
    scale: float = Field(30.0, gt=0)
    """speaker: scale of the cosine logits."""
    teacher: float = Field(0.0, ge=0)
    """speaker: weight of what draws the embedding to a teacher's vector of the utterance (`speech-mtl teach`), beside
    the softmax over the training speakers: 1 - cosine. The vectors have embedding_dim numbers."""
    lda_dim: int = Field(48, ge=0)
    """speaker: dimensions of the discriminant projection of embeddings, where more speakers than that are trained on;
    0: none."""
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _crop(self) -> TaskConfig:
        if self.crop_s is not None and not 0 < self.crop_s[0] <= self.crop_s[1]:
            raise ValueError(f"crop_s: found {list(self.crop_s)}, accepted: two numbers above 0, the smaller one first")
        return self


class DataConfig(Section):
    train: list[str] = []
    """CutSet manifests (jsonl.gz), pooled."""
    shares: list[float] = []
    """Every training manifest's share of an epoch, one number for each; 3, 1 are 75 % and 25 %. An epoch always has as
    many utterances as the manifests together."""
    temperature: float = Field(1.0, ge=1, allow_inf_nan=False)
    """Without shares, a manifest of n utterances has one in proportion to n^(1/temperature); a large one: all equal."""
    match_lengths: bool = False
    """Crop or string together the training utterances without a text to lengths drawn from those that have one, so
    that the encoder cannot tell the tasks apart by length."""
    permute: list[str] = []
    """Labels, such as speaker, whose values are shuffled among the training utterances: a control, whose task can learn
    nothing that holds for other data."""
    dev: list[str] = []
    dev_enroll: list[str] = []
    """Enrolment utterances for the dev speakers where these are not among the training speakers."""
    max_duration_s: float = Field(40.0, gt=0)
    """Audio per batch, padding included."""
    max_utterance_s: float = Field(30.0, gt=0)
    """Longer training utterances are left out and counted."""
    min_utterance_s: float = Field(0.1, gt=0)
    n_buckets: int = Field(10, gt=0)
    sorted_epochs: int = Field(0, ge=0)
    """First epochs in which the utterances come as they are, short ones first (SortaGrad): CTC starts on words."""
    workers: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _mixture(self) -> DataConfig:
        if self.shares and len(self.shares) != len(self.train):
            raise ValueError(f"shares: found {len(self.shares)}, accepted: one for each of {len(self.train)} in train")
        if wrong := [share for share in self.shares if not 0 < share < float("inf")]:
            raise ValueError(f"shares: found {wrong[0]:g}, accepted: numbers above 0")
        if self.shares and self.temperature != 1:
            raise ValueError(f"shares and temperature = {self.temperature:g} exclude each other; give one of them")
        return self


class AugmentConfig(Section):
    speeds: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field([1.0], min_length=1)
    """Speed factors, one drawn per utterance; for the speaker task every factor makes its own speakers."""
    gain_db: float = Field(6.0, ge=0)
    """Level drawn from ± this many dB; what becomes softer than is usual is lifted, as it is in use (see lift.py)."""
    noise: str | None = None
    """A CutSet manifest of noises to mix in, such as `speech-mtl prepare noises` writes."""
    noise_prob: float = Field(0.3, ge=0, le=1)
    noise_snr_db: tuple[float, float] = (10.0, 25.0)
    rooms: str | None = None
    """A CutSet manifest of rooms' impulse responses to hear utterances in, as `speech-mtl prepare rooms` makes."""
    room_prob: float = Field(0.3, ge=0, le=1)
    band_prob: float = Field(0.0, ge=0, le=1)
    """Share of the utterances heard in a narrower band, such as a telephone's (see augment.py)."""
    time_masks: int = Field(2, ge=0)
    time_mask_frames: int = Field(20, ge=0)
    """Longest time mask, in mel frames; at most 20 % of an utterance."""
    freq_masks: int = Field(2, ge=0)
    freq_mask_bins: int = Field(20, ge=0)
    concat_prob: float = Field(0.0, ge=0, le=1)
    """Share of the training utterances that are strung together with others of the same speaker."""
    concat_max_s: float = Field(8.0, gt=0)
    company_prob: float = Field(0.0, ge=0, le=1)
    """Share of the training batches heard as turns of one conversation, as far as `encoder.reach_s`: as in use."""
    start_epoch: int = Field(0, ge=0)
    """Speed, noise, room, band, masks and company begin in this epoch: CTC leaves its blank plateau sooner without."""


class TrainConfig(Section):
    epochs: float = Field(30, gt=0, allow_inf_nan=False)
    lr: float = Field(1e-3, gt=0)
    warmup_epochs: float = Field(2, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(5.0, gt=0)
    accumulate: int = Field(1, gt=0)
    """Batches per optimizer step."""
    weighting: str = "fixed"
    """How the tasks' gradients become one update of the trunk: see speech_mtl/weighting."""
    interference_every: int = Field(100, ge=0)
    """Steps between measurements of how the tasks' gradients agree, block by block; 0: none."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Exponential moving average of the weights, the ones evaluated and kept; 0 keeps the last weights."""
    precision: Literal["no", "bf16"] = "no"
    init: str = ""
    """A model folder to start from: its tokenizer is taken, and the weights whose names and shapes agree."""
    freeze: list[str] = []
    """Parts that are not trained, by the beginning of their weights' names, such as ["encoder", "tasks.asr."]; the
    first block's begin with "encoder.blocks.0.". They run as in use, without dropout and with fixed statistics; a head
    keeps the classes it knows, and its loss still reaches the trunk. A speaker head's voices follow a trunk that learns
    below it, and its analysis does where everyone it knows is heard; whoever is not heard keeps their voice. On a trunk
    that is frozen, too, both stay as they are. `trunk.frozen` names the parts of a recogniser."""
    select: str = "mean"
    """The best checkpoint has the lowest of: 'mean' (average of the tasks' dev errors), or one task's name."""
    eval_every: int = Field(1, gt=0)
    """Epochs between evaluations on the dev data."""
    checkpoint_minutes: float = Field(5, gt=0)
    seed: Seed = 1


class TrunkConfig(Section):
    """The recogniser of train.init as the trunk of another task's branch: frozen, or trained with care."""

    frozen: bool = False
    """It stays as it is, to the last bit: features, encoder, and the asr task with its own blocks. Only the other tasks
    train, their heads from a new start."""
    cache: str = ""
    """With frozen: a folder where the trunk's frames of every utterance are kept (float32) and read in training in
    place of running the encoder. It serves any number of models and manifests. The sound cannot be changed then, nor
    masked. Empty: nothing is kept."""
    lr_decay: float = Field(1.0, gt=0, le=1)
    """Not frozen: the encoder's topmost block learns at train.lr · lr_decay, the next at train.lr · lr_decay², ..., the
    subsampling last; tasks' own blocks by their place too, heads at train.lr."""
    max_wer_increase: float | None = Field(None, ge=0)
    """Not frozen: percentage points by which dev WER may pass that before training. An evaluation beyond it stops the
    run (exit code 1), and the best model until then is kept."""


class CompareConfig(Section):
    """What `speech-mtl compare` trains and scores, beside the recipe's other settings."""

    test: list[str] = []
    """Test manifests, in domain; never looked at in training."""
    test_enroll: list[str] = []
    """Enrolment utterances for the test speakers, where these are not among the training speakers."""
    out_of_domain: list[str] = []
    out_of_domain_enroll: list[str] = []
    seeds: list[Seed] = [1, 2, 3]
    margin: float = Field(0.02, ge=0)
    """'No worse' means: the interval of the difference ends below this share of the single task's error ..."""
    margin_points: float = Field(0.5, ge=0)
    """... or below so many percentage points, where that is more: 2 % of almost no error is less than an utterance."""
    branches: list[int] = []
    """Branch points to train, all tasks parting there."""
    weights: dict[str, list[float]] = {}
    """By task: factors to its weight, an arm each."""
    methods: list[str] = []
    """Weighting methods to train, with all weights 1."""
    arms: dict[str, list[str]] = {}
    """Arms of your own: name = ["section.key=value", ...]."""
    leave_out: list[str] = []
    """Arms, or whole groups of them, that are not wanted: single, joint, transfer, control, small, branch, ..."""
    overrides: list[str] = []
    """Settings that all arms have and `train` does not, such as fewer epochs."""
    quick: list[str] = []
    """What --quick overrides on top, such as compare.seeds and epochs."""


class Config(Section):
    features: FeatureConfig = FeatureConfig()
    encoder: EncoderConfig = EncoderConfig()
    text: TextConfig = TextConfig()
    tasks: dict[str, TaskConfig] = {"asr": TaskConfig(type="asr"), "speaker": TaskConfig(type="speaker")}
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    trunk: TrunkConfig = TrunkConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _tasks(self) -> Config:
        if not self.tasks:
            raise ValueError("tasks: at least one task is needed (asr, speaker, classify)")
        if taken := sorted(ROW_FIELDS & set(self.tasks)):
            raise ValueError(f"tasks: '{taken[0]}' names a field of every result row; choose another name")
        for kind in ("asr", "speaker"):
            if sum(task.type == kind for task in self.tasks.values()) > 1:
                raise ValueError(f"tasks: at most one task of type '{kind}'")
        for name, task in self.tasks.items():
            read = self.blocks_read(name)
            if not read or read != sorted(set(read)) or read[0] < 1:
                accepted = f"a number from 1 to {self.encoder.n_blocks}, or several of them in order"
                raise ValueError(f"tasks.{name}.blocks is {task.blocks}, accepted: {accepted}")
            for key, value in (("branch", task.branch or 0), ("blocks", read[-1])):
                if value > self.encoder.n_blocks:
                    raise ValueError(f"tasks.{name}.{key} is {value}, the encoder has {self.encoder.n_blocks} blocks")
            if task.type == "asr" and isinstance(task.blocks, list):
                raise ValueError(f"tasks.{name}.blocks is {task.blocks}, accepted: a number")
        if self.train.select != "mean" and self.train.select not in self.tasks:
            raise ValueError(f"train.select is '{self.train.select}', accepted: mean, {', '.join(self.tasks)}")
        return self

    @model_validator(mode="after")
    def _trunk(self) -> Config:
        trunk, recognisers = self.trunk, [name for name, task in self.tasks.items() if task.type == "asr"]
        used = [key for key, value in trunk if value != getattr(TrunkConfig(), key)]
        if used and not (self.train.init and recognisers):
            raise ValueError(f"trunk.{used[0]} needs train.init, the recogniser's folder, and a task of type 'asr'")
        if trunk.frozen and len(self.tasks) == 1:
            raise ValueError("trunk.frozen leaves nothing to train; add a speaker or classify task")
        if trunk.frozen and (idle := sorted({"lr_decay", "max_wer_increase"} & set(used))):
            raise ValueError(f"trunk.{idle[0]} is of no use with trunk.frozen; give one of them")
        if "max_wer_increase" in used and not self.data.dev:
            raise ValueError("trunk.max_wer_increase needs data.dev, where WER is measured")
        if trunk.cache and not trunk.frozen:
            raise ValueError("trunk.cache needs trunk.frozen=true: frames of a trunk that learns change")
        if trunk.cache and (changing := self._changes_of_sound()):
            found = ", ".join(f"{key} = {value}" for key, value in changing.items())
            raise ValueError(f"trunk.cache keeps frames of the sound as it is; set to nothing: {found}")
        return self

    def _changes_of_sound(self) -> dict[str, Any]:
        """The settings by which training hears an utterance otherwise than it was recorded."""
        keys = "gain_db noise rooms band_prob time_masks freq_masks concat_prob company_prob".split()
        values = {f"augment.{key}": getattr(self.augment, key) for key in keys}
        values["augment.speeds"] = self.augment.speeds if self.augment.speeds != [1] else None
        values["data.match_lengths"] = self.data.match_lengths
        return {key: value for key, value in values.items() if value}

    def frozen_parts(self) -> tuple[str, ...]:
        """How the names of the weights begin that are not trained."""
        asr = [name for name, task in self.tasks.items() if task.type == "asr"]
        recogniser = ["features.", "encoder.", *(f"{part}.{name}." for name in asr for part in ("branches", "tasks"))]
        return (*self.train.freeze, *(recogniser if self.trunk.frozen else []))

    def blocks_read(self, task: str) -> list[int]:
        """The blocks, counted from 1, that a task's head reads."""
        blocks = self.tasks[task].blocks
        if isinstance(blocks, list):
            return blocks
        return list(range(1, (self.encoder.n_blocks if blocks is None else blocks) + 1))

    def depth(self, task: str) -> int:
        """Blocks 1..depth are those that a task's output depends on."""
        return self.blocks_read(task)[-1]

    def branch_point(self, task: str) -> int:
        """Blocks 1..branch_point of these are shared."""
        branch = self.tasks[task].branch
        return self.depth(task) if branch is None else min(branch, self.depth(task))

    def trunk_depth(self) -> int:
        """The number of blocks that the tasks share, or pass through on the way to where they part."""
        return max(self.branch_point(task) for task in self.tasks)


def parse_config(values: dict[str, Any], origin: str) -> Config:
    """A Config from plain values; `origin` (a file or recipe name) opens every error message. Raises ConfigError."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {explain(item)}" for item in error.errors())) from None


def explain(item: Any) -> str:
    """One pydantic error as a sentence: the key, the value found, what would be accepted."""
    where = [str(part) for part in item["loc"]]
    if item["type"] != "extra_forbidden":
        found = "" if isinstance(item["input"], dict) else f", found {json.dumps(item['input'], default=str)}"
        return f"{'.'.join(where) or 'config'}: {item['msg'].removeprefix('Value error, ')}{found}"
    *section, key = where
    model: Any = Config
    if section:
        model = TaskConfig if section[0] == "tasks" else Config.model_fields[section[0]].annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{'.'.join([*section, near[0]])}'?" if near else f"accepted: {', '.join(known)}"
    return f"unknown key '{'.'.join(where)}'; {hint}"
