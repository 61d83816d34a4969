"""Training in company: utterances follow one another in one recording, and each keeps its own frames."""

from __future__ import annotations

import pytest
import torch
from conftest import RATE, tiny_model, tiny_values

from speech_mtl.config import ConfigError, parse_config
from speech_mtl.model import SpeechModel


def model_with(corpus: dict[str, str], share: float, reach_s: float = 3.0) -> SpeechModel:
    values = tiny_values(corpus)
    values["encoder"]["reach_s"] = reach_s
    values["augment"] = {"company_prob": share, "time_masks": 0, "freq_masks": 0}
    return tiny_model(parse_config(values, "test")).eval()


def features(model: SpeechModel, seconds: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    parts = [0.1 * torch.randn(int(s * RATE), generator=generator) for s in seconds]
    samples_B = torch.tensor([len(part) for part in parts])
    return model.features(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), samples_B)


def test_frames_are_those_of_the_recording(corpus: dict[str, str]) -> None:
    """Utterances of whole frames, set one after another by hand in the order that is drawn."""
    model = model_with(corpus, 1.0)
    mel_BTF, mel_lengths_B = features(model, [1.2, 2.0, 0.8])
    order = torch.randperm(3, generator=torch.Generator().manual_seed(11)).tolist()
    mel_1TF = torch.cat([mel_BTF[row, : mel_lengths_B[row]] for row in order])[None]
    with torch.inference_mode(), model.limited_attention():
        whole = model.shared(mel_1TF, torch.tensor([mel_1TF.size(1)])).blocks[-1][0]
    torch.manual_seed(11)
    with torch.inference_mode():
        found = model.in_company(mel_BTF, mel_lengths_B)
    alone = model.shared(mel_BTF, mel_lengths_B)
    assert torch.equal(found.lengths_B, alone.lengths_B) and torch.equal(found.mel_BTF, mel_BTF)
    first = 0
    for row in order:
        length = int(found.lengths_B[row])
        own = found.blocks[-1][row, :length]
        torch.testing.assert_close(own, whole[first : first + length])
        assert not torch.allclose(own, alone.blocks[-1][row, :length], atol=1e-3)
        first += length


def test_one_utterance_has_no_company(corpus: dict[str, str]) -> None:
    model = model_with(corpus, 1.0)
    mel_BTF, mel_lengths_B = features(model, [1.2])
    found = model.in_company(mel_BTF, mel_lengths_B)
    with model.limited_attention():
        alone = model.shared(mel_BTF, mel_lengths_B)
    assert torch.equal(found.blocks[-1], alone.blocks[-1])


def test_a_share_of_the_batches_is_heard_so_in_training_alone(corpus: dict[str, str]) -> None:
    torch.manual_seed(0)
    audio_BN, samples_B = 0.1 * torch.randn(2, RATE), torch.tensor([RATE, RATE])
    for share, differing in ((0.0, 0), (1.0, 20), (0.5, None)):
        model = model_with(corpus, share)
        with torch.inference_mode():
            alone = model.trunk(audio_BN, samples_B).blocks[-1]
            drawn = [model.trunk(audio_BN, samples_B, augment=True).blocks[-1] for _ in range(20)]
        count = sum(not torch.allclose(blocks, alone, atol=1e-4) for blocks in drawn)
        assert count == differing if differing is not None else 2 < count < 18


def test_kept_frames_have_no_company(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["augment"] = {"company_prob": 0.5, "time_masks": 0, "freq_masks": 0, "gain_db": 0}
    values["trunk"] = {"frozen": True, "cache": "frames"}
    values["train"]["init"] = "model"
    with pytest.raises(ConfigError, match=r"trunk\.cache keeps frames .* augment\.company_prob = 0\.5"):
        parse_config(values, "test")
