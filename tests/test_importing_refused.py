"""What is no Parakeet-CTC checkpoint is refused: a sentence that names the item, what was found, what is accepted."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parakeet import (
    PIECES,
    as_hybrid,
    nemo_config,
    nemo_weights,
    network,
    sentencepiece_model,
    write_folder,
    write_nemo,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.importing import import_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny-ctc", network())


def change_json(name: str, *keys: str, **values: object) -> Callable[[Path], None]:
    """A change of a folder: values set in a JSON file, or where None is given removed, under the keys."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        node = content
        for key in keys:
            node = node[key]
        for key, value in values.items():
            node[key] = value
            if value is None:
                del node[key]
        (folder / name).write_text(json.dumps(content))

    return change


def change_weights(**values: object) -> Callable[[Path], None]:
    """Tensors set, or where None is given removed; '__' stands for a dot."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        for name, value in values.items():
            weights[name.replace("__", ".")] = value  # type: ignore[assignment]
        kept = {name: value for name, value in weights.items() if value is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return change


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def other_tokenizer(folder: Path) -> None:
    tokenizer = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    last = max(content["model"]["vocab"], key=lambda piece: content["model"]["vocab"][piece] % PIECES)
    del content["model"]["vocab"][last]
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))


def index_with(shard: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = {"weight_map": {"ctc_head.bias": shard, "ctc_head.weight": "model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def tokenizer_type(folder: Path) -> None:
    HFTokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))


ENCODER = ("config.json", "encoder_config")
BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "architecture": (
        change_json("config.json", model_type="parakeet_tdt"),
        "architecture is parakeet_tdt; accepted: parakeet_ctc",
    ),
    "unnamed architecture": (
        change_json("config.json", model_type=None, architectures=["Wav2Vec2ForCTC"]),
        "architecture is Wav2Vec2ForCTC",
    ),
    "blank": (change_json("config.json", pad_token_id=0), "pad_token_id, the CTC blank, is 0; accepted: 60"),
    "unknown option": (
        change_json("config.json", vocabsize=3),
        "unknown option 'vocabsize' with value 3; did you mean 'vocab_size'",
    ),
    "unknown encoder option": (
        change_json(*ENCODER, local_attention=64),
        "unknown option 'local_attention' with value 64; accepted",
    ),
    "activation": (change_json(*ENCODER, hidden_act="gelu"), "hidden_act is 'gelu'; accepted: 'silu'"),
    "type of an option": (change_json(*ENCODER, hidden_size="32"), "hidden_size is '32'; accepted: a value like 1024"),
    "key heads": (change_json(*ENCODER, num_key_value_heads=2), "num_key_value_heads is 2; accepted: 4"),
    "no width": (change_json(*ENCODER, hidden_size=0), "accepted: multiples of hidden_size 0"),
    "list of shards": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}'),
        "weight_map is ['a']; expected tensor: file",
    ),
    "bytes": (lambda folder: (folder / "config.json").write_bytes(b'{"\xff": 1}'), "config.json: not valid JSON"),
    "inner width": (
        change_json(*ENCODER, intermediate_size=50),
        "intermediate_size is 50; accepted: multiples of hidden_size 32",
    ),
    "heads": (change_json(*ENCODER, num_attention_heads=3, num_key_value_heads=3), "bad: config: d_model must be a"),
    "subsampling": (change_json(*ENCODER, subsampling_factor=6), "subsampling: Input should be 2, 4 or 8, found 6"),
    "mel bins": (change_json("preprocessor_config.json", feature_size=64), "feature_size is 64; accepted: 80"),
    "unknown preprocessor option": (
        change_json("preprocessor_config.json", do_normalize=1),
        "unknown option 'do_normalize'",
    ),
    "another preprocessor": (
        change_json("preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor"),
        "feature_extractor_type is 'WhisperFeatureExtractor'; accepted: 'ParakeetFeatureExtractor'",
    ),
    "missing tensor": (
        change_weights(encoder__layers__1__norm_out__bias=None),
        "tensor encoder.layers.1.norm_out.bias is missing; expected with shape (32,)",
    ),
    "missing biases": (
        change_json(*ENCODER, attention_bias=False),
        "unknown tensor encoder.layers.0.feed_forward1.linear1.bias",
    ),
    "fewer blocks": (change_json(*ENCODER, num_hidden_layers=1), "unknown tensor encoder.layers.1."),
    "more blocks": (
        change_json(*ENCODER, num_hidden_layers=3),
        "tensor encoder.layers.2.norm_feed_forward1.weight is missing",
    ),
    "unknown tensor": (change_weights(decoder__lstm=torch.zeros(3)), "unknown tensor decoder.lstm of shape (3,)"),
    "shape": (
        change_weights(ctc_head__weight=torch.zeros(61, 32)),
        "ctc_head.weight has shape (61, 32), the config asks for (61, 32, 1)",
    ),
    "kernel": (
        change_json(*ENCODER, conv_kernel_size=5),
        "depthwise_conv.weight has shape (32, 1, 9), the config asks for (32, 1, 5)",
    ),
    "even kernel": (change_json(*ENCODER, conv_kernel_size=8), "kernel_size must be odd, got 8"),
    "integers": (
        change_weights(ctc_head__bias=torch.zeros(61, dtype=torch.int64)),
        "ctc_head.bias is of type torch.int64",
    ),
    "truncated": (truncate, "model.safetensors: not a whole safetensors file"),
    "missing shard": (index_with("model-2.safetensors"), "model-2.safetensors is missing"),
    "shard elsewhere": (
        index_with("../model.safetensors"),
        "the shard '../model.safetensors' is not a file of this folder",
    ),
    "tokenizer size": (other_tokenizer, "tokenizer.json: 59 pieces below the blank; accepted: 60"),
    "tokenizer type": (tokenizer_type, "a tokenizer of type 'WordPiece'; accepted: BPE, Unigram"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "tokenizer.json is missing; needed: config.json",
    ),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "tokenizer.json: not a tokenizer file",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing; needed"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing; needed"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    "no preprocessor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "processor_config.json is missing",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_is_no_such_checkpoint_is_refused(case: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change, message = BAD_FOLDERS[case]
    change(folder)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        import_model(folder, tmp_path / "model")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


class Payload:
    """What a pickle can do to whoever loads it: here it would leave a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.mark, "run")


BAD_ARCHIVES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "architecture": (
        {"target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"},
        {},
        "architecture is EncDecRNNTBPEModel; accepted: EncDecCTCModelBPE",
    ),
    "local attention": (
        {"encoder.self_attention_model": "rel_pos_local_attn"},
        {},
        "self_attention_model is 'rel_pos_local_attn'",
    ),
    "layer norm": (
        {"encoder.conv_norm_type": "layer_norm"},
        {},
        "conv_norm_type is 'layer_norm'; accepted: 'batch_norm'",
    ),
    "unknown option": ({"encoder.moe": 4}, {}, "encoder: unknown option 'moe' with value 4"),
    "missing option": ({"encoder.subsampling": None}, {}, "encoder: the option 'subsampling' is missing"),
    "output layer": ({"encoder.feat_out": 64}, {}, "feat_out is 64; accepted: -1, 32"),
    "window": ({"preprocessor.window": "hamming"}, {}, "window is 'hamming'; accepted: 'hann'"),
    "normalising": ({"preprocessor.normalize": "NA"}, {}, "normalize is 'NA'; accepted: 'per_feature'"),
    "mel filters": (
        {},
        {"preprocessor.featurizer.fb": torch.zeros(1, 80, 257)},
        "preprocessor.featurizer.fb of shape (1, 80, 257) is not",
    ),
    "classes": ({"decoder.num_classes": 70}, {}, "num_classes is 70, its vocabulary has 60"),
    "tokenizer type": ({"tokenizer.type": "wpe"}, {}, "tokenizer.type is 'wpe'; accepted: 'bpe'"),
    "no section": ({"preprocessor": None}, {}, "has no section 'preprocessor'"),
    "shape": (
        {},
        {"encoder.layers.1.self_attn.linear_pos.weight": torch.zeros(32, 16)},
        "encoder.layers.1.self_attn.linear_pos.weight has shape (32, 16), the config asks for (32, 32)",
    ),
    "unknown tensor": ({}, {"joint.enc.weight": torch.zeros(2)}, "unknown tensor joint.enc.weight of shape (2,)"),
}


@pytest.fixture(scope="module")
def tiny() -> Any:
    return network()


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_an_archive_that_is_no_such_checkpoint_is_refused(case: str, tiny: Any, tmp_path: Path) -> None:
    options, tensors, message = BAD_ARCHIVES[case]
    config = nemo_config(tiny.config.encoder_config)
    for path, value in options.items():
        *sections, key = path.split(".")
        node = config[sections[0]] if sections else config
        node[key] = value
        if value is None:
            del node[key]
    refused(write_nemo(tmp_path / "bad.nemo", config, nemo_weights(tiny) | tensors), message)


BAD_HYBRIDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "tensor": ({}, {"vad.weight": torch.zeros(2)}, "unknown tensor vad.weight of shape (2,)"),
    "head": (
        {},
        {"ctc_decoder.decoder_layers.0.bias": torch.zeros(3)},
        "ctc_decoder.decoder_layers.0.bias has shape (3,), the config asks for (61,)",
    ),
    "no CTC decoder": ({"aux_ctc": None}, {}, "has no section 'aux_ctc'"),
}


@pytest.mark.parametrize("case", BAD_HYBRIDS)
def test_a_hybrid_with_more_than_a_transducer_is_refused(case: str, tiny: Any, tmp_path: Path) -> None:
    options, tensors, message = BAD_HYBRIDS[case]
    config, weights = as_hybrid(nemo_config(tiny.config.encoder_config), nemo_weights(tiny))
    refused(write_nemo(tmp_path / "bad.nemo", {**config, **options}, weights | tensors), message)


def refused(archive: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        import_model(archive, archive.parent / "model")
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    assert not (archive.parent / "model").exists()


def test_nothing_in_an_archive_is_run_or_unpacked(tiny: Any, tmp_path: Path) -> None:
    config, weights = nemo_config(tiny.config.encoder_config), nemo_weights(tiny)
    mark = tmp_path / "mark"
    payload = write_nemo(tmp_path / "payload.nemo", config, weights | {"x": Payload(mark)})
    refused(payload, "model_weights.ckpt is damaged or holds more than tensors; nothing of it was run")
    as_yaml = write_nemo(tmp_path / "yaml.nemo", config, weights)
    with tarfile.open(as_yaml, "a") as archive:
        content = f"target: !!python/object/apply:pathlib.Path.write_text [{mark}, run]".encode()
        member = tarfile.TarInfo("./model_config.yaml")  # the later of two entries counts
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    refused(as_yaml, "model_config.yaml is not valid")
    for name in ("../../escaped", "/tmp/escaped"):
        refused(
            write_nemo(tmp_path / "path.nemo", config, weights, **{name: b"x"}),
            f"the entry '{name}' is a link or leads out",
        )
    linked = write_nemo(tmp_path / "link.nemo", config, weights)
    with tarfile.open(linked, "a") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    refused(linked, "the entry 'link' is a link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.nemo", "path.nemo", "payload.nemo", "yaml.nemo"]


def test_broken_archives(tiny: Any, tmp_path: Path) -> None:
    config, weights = nemo_config(tiny.config.encoder_config), nemo_weights(tiny)
    whole = write_nemo(tmp_path / "whole.nemo", config, weights).read_bytes()
    (tmp_path / "half.nemo").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "half.nemo", "half.nemo")
    (tmp_path / "text.nemo").write_text("no archive")
    refused(tmp_path / "text.nemo", "not a whole .nemo archive")
    refused(write_nemo(tmp_path / "list.nemo", config, [1]), "model_weights.ckpt is not a table of tensors")
    refused(write_nemo(tmp_path / "spm.nemo", config, weights, b"no model"), "not a sentencepiece model")
    smaller = write_nemo(tmp_path / "smaller.nemo", config, weights, sentencepiece_model(size=50))
    refused(smaller, "pieces below the blank; accepted: 60")
    with tarfile.open(tmp_path / "empty.nemo", "w"):
        pass
    refused(tmp_path / "empty.nemo", "model_config.yaml is missing; found: nothing")


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError) as caught:
        import_model("nvidia/parakeet-ctc-0.6b", tmp_path / "model")
    message = str(caught.value)
    assert "could not be fetched from the hub (ConnectionError: no route to host)" in message
    assert "fetch config.json, model.safetensors" in message and "put them in a folder" in message
    for name in ("nowhere", "/no/such/folder", "a/b.nemo", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist; accepted: a folder, a .nemo file, or a hub name"):
            import_model(name, tmp_path / "model")
    (tmp_path / "weights.pt").write_text("")
    with pytest.raises(CheckpointError, match="a file of type '.pt'; accepted: a .nemo file, or a folder"):
        import_model(tmp_path / "weights.pt", tmp_path / "model")


def test_a_hub_name_is_fetched(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **more: asked.append(name) or str(checkpoint))
    import_model("owner/model", tmp_path / "model")
    assert asked == ["owner/model"] and (tmp_path / "model" / "config.json").is_file()


def test_too_little_memory_is_said_before_loading(
    checkpoint: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_nemo(tmp_path / "a.nemo", nemo_config(tiny.config.encoder_config), nemo_weights(tiny))
    import_model(checkpoint, tmp_path / "imported")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10_000})())
    for call in (
        lambda: import_model(checkpoint, tmp_path / "model"), lambda: import_model(archive, tmp_path / "model"),
        lambda: load_model(tmp_path / "imported"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"needs 0\.0 GB of memory, 0\.0 GB are available"):
            call()
