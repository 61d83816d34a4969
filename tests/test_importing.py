"""Imported models give what transformers' ParakeetForCTC gives, whatever form the checkpoint has.

The checkpoints are made here (parakeet.py): tiny networks with random weights and random BatchNorm statistics.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from parakeet import (
    PIECES,
    TEXTS,
    as_hybrid,
    nemo_config,
    nemo_weights,
    network,
    sentencepiece,
    sentencepiece_model,
    write_folder,
    write_nemo,
)
from safetensors.torch import load_file, save_file

from speech_mtl import parity
from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.config import TextConfig
from speech_mtl.importing import import_model
from speech_mtl.pieces import from_sentencepiece, text_policy
from speech_mtl.text import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = list(itertools.product([80, 128], [True, False], [True, False], [True, False], [5, 9]))
NAMES = ["num_mel_bins", "scale_input", "attention_bias", "convolution_bias", "conv_kernel_size"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny-ctc", network())


@pytest.fixture(scope="module")
def imported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "model"
    import_model(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise of odd lengths: frames, halves and quarters of them come out odd and even."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(4)
    files = [folder / f"{samples}.wav" for samples in (4321, 11360, 16159, 23456)]
    for file in files:
        soundfile.write(file, 0.1 * rng.standard_normal(int(file.stem)), RATE)
    return files


def check(source: Path, folder: Path, files: list[Path]) -> None:
    rows = parity.compare(source, folder, files)
    assert [row.step for row in rows] == ["features", "block 1", "block 2", "logits", "texts that differ"]
    assert all(row.difference <= 1e-4 for row in rows), rows


@pytest.mark.parametrize("values", GRID, ids=lambda values: "-".join(map(str, values)))
def test_an_imported_folder_gives_what_transformers_gives(
    values: tuple, recordings: list[Path], tmp_path: Path
) -> None:
    """Features, blocks, logits and text, alone and in a padded batch; and the blank is the last output."""
    source = write_folder(tmp_path / "source", network(**dict(zip(NAMES, values, strict=True))))
    model = import_model(source, tmp_path / "model")
    check(source, tmp_path / "model", recordings)
    encoder = model.config.encoder
    found = (model.config.features.n_mels, encoder.scale_input, encoder.attention_bias, encoder.convolution_bias)
    assert (*found, encoder.kernel_size) == values
    assert model.tokenizer is not None and model.tokenizer.blank == PIECES


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_shards_and_a_processor_config_give_the_same_model(checkpoint: Path, imported: Path, tmp_path: Path) -> None:
    sharded = write_folder(tmp_path / "sharded", network(), shard_size="40KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    preprocessor = json.loads((sharded / "preprocessor_config.json").read_text())
    (sharded / "preprocessor_config.json").unlink()
    (sharded / "processor_config.json").write_text(json.dumps({"feature_extractor": preprocessor}))
    import_model(sharded, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == (imported / "config.json").read_text()
    for name, value in weights_of(imported).items():
        assert torch.equal(value, weights_of(tmp_path / "model")[name])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_a_nemo_archive_gives_the_same_model(bias: bool, n_mels: int, recordings: list[Path], tmp_path: Path) -> None:
    model = network(num_mel_bins=n_mels, attention_bias=bias, convolution_bias=bias)
    archive = write_nemo(tmp_path / "tiny.nemo", nemo_config(model.config.encoder_config), nemo_weights(model))
    import_model(archive, tmp_path / "from-nemo")
    check(archive, tmp_path / "from-nemo", recordings)
    import_model(write_folder(tmp_path / "folder", model), tmp_path / "from-folder")
    expected = weights_of(tmp_path / "from-folder")
    for name, value in weights_of(tmp_path / "from-nemo").items():
        assert torch.equal(value, expected[name]), name


def test_a_hybrid_archive_gives_the_recogniser_of_its_ctc_decoder(recordings: list[Path], tmp_path: Path) -> None:
    model = network()
    content = nemo_config(model.config.encoder_config), nemo_weights(model)
    hybrid = write_nemo(tmp_path / "hybrid.nemo", *as_hybrid(*content))
    notes: list[str] = []
    import_model(hybrid, tmp_path / "from-hybrid", notes.append)
    check(hybrid, tmp_path / "from-hybrid", recordings)
    import_model(write_nemo(tmp_path / "ctc.nemo", *content), tmp_path / "from-ctc", notes.append)
    expected = weights_of(tmp_path / "from-ctc")
    for name, value in weights_of(tmp_path / "from-hybrid").items():
        assert torch.equal(value, expected[name]), name
    assert len(notes) == 1 and "transducer" in notes[0]
    assert notes[0] in (tmp_path / "from-hybrid" / "README.md").read_text()


def test_a_checkpoint_in_bfloat16_stays_so_on_disk(recordings: list[Path], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", network().bfloat16())
    import_model(source, tmp_path / "model")
    assert weights_of(tmp_path / "model")["encoder.subsampling.linear.weight"].dtype == torch.bfloat16
    check(source, tmp_path / "model", recordings)


def test_every_tensor_keeps_its_type(recordings: list[Path], tmp_path: Path) -> None:
    """In float32 what others, in bfloat16, are joined with or stand beside."""
    source = write_folder(tmp_path / "source", network())
    weights = load_file(source / "model.safetensors")
    halved = ("subsampling.linear.weight", "k_proj.weight")
    rounded = {name: w.bfloat16() if name.endswith(halved) else w for name, w in weights.items()}
    save_file(rounded, source / "model.safetensors", {"format": "pt"})
    import_model(source, tmp_path / "model")
    assert weights_of(tmp_path / "model")["encoder.subsampling.linear.weight"].dtype == torch.bfloat16
    check(source, tmp_path / "model", recordings)


def test_the_comparison_sees_a_difference(
    checkpoint: Path, imported: Path, recordings: list[Path], tmp_path: Path
) -> None:
    """The texts compared are no empty ones, and another blank, or block, is noticed."""
    texts = {text for ours in parity._ours(load_model(imported), parity.noise(RATE)) for text in ours.text.split()}
    assert len(texts) > 10
    changed = write_folder(tmp_path / "changed", network())
    weights = load_file(changed / "model.safetensors")
    weights["ctc_head.bias"] = weights["ctc_head.bias"].roll(1)
    weights["encoder.layers.1.conv.norm.running_mean"] += 0.01
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    rows = {row.step: row for row in parity.compare(changed, imported, recordings)}
    assert rows["features"].passed and rows["block 1"].difference <= 1e-4 < rows["block 2"].difference
    assert not rows["logits"].passed and not rows["texts that differ"].passed


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_cuts_texts_as_its_own_library_does(kind: str) -> None:
    data = sentencepiece_model(kind)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    size = library.get_piece_size()
    hf = from_sentencepiece(data, size, "x")
    tokenizer = Tokenizer(hf, text_policy(Tokenizer(hf, TextConfig()).pieces))
    assert (tokenizer.config.case, tokenizer.config.punctuation) == ("lower", "remove")
    assert tokenizer.blank == size and tokenizer.pieces[library.unk_id()] == ""
    for text in [*TEXTS, "dogs and woods", "she's  picky", "pep", "a"]:
        clean = " ".join(text.split())
        assert tokenizer.encode(text) == library.encode(clean)
        assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(clean)) == clean
    assert library.unk_id() in tokenizer.encode("naïve") and tokenizer.unknown("naïve") == {"ï"}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [{"user_defined_symbols": "ui"}, {"add_dummy_prefix": False}])
def test_a_sentencepiece_model_marks_words_as_its_own_library_does(kind: str, options: dict) -> None:
    data = sentencepiece_model(kind, **options)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = Tokenizer(from_sentencepiece(data, library.get_piece_size(), "x"), TextConfig())
    for text in TEXTS:
        assert tokenizer.encode(text) == library.encode(text) and tokenizer.decode(library.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_over_several_words_are_refused(kind: str) -> None:
    """The words of a transcript would show their marks."""
    data = sentencepiece_model(kind, treat_whitespace_as_suffix=True)
    size = sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size()
    with pytest.raises(CheckpointError, match="x: '▁' within the piece '.*▁'; accepted: at its start alone"):
        from_sentencepiece(data, size, "x")


@pytest.mark.parametrize(
    ("pieces", "case", "punctuation"),
    [
        (["", "▁he", "l", "lo", "'"], "lower", "remove"), (["▁He", "l", "lo"], "keep", "remove"),
        (["▁he", "llo", ".", ","], "lower", "keep"), (["▁He", "llo", "?"], "keep", "keep"),
    ],
)  # fmt: skip
def test_text_policy_is_what_the_pieces_can_write(pieces: list[str], case: str, punctuation: str) -> None:
    policy = text_policy(pieces)
    assert (policy.case, policy.punctuation, policy.units) == (case, punctuation, "bpe")
