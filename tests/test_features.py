"""Log-mel features against librosa, normalising, SpecAugment."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch

from speech_mtl.config import AugmentConfig, FeatureConfig
from speech_mtl.features import LOG_FLOOR, LogMel, SpecAugment, frame_mask, mel_filters


def test_log_mel_equals_librosa() -> None:
    config = FeatureConfig()
    audio = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    ours, lengths = LogMel(config).log_mel(torch.from_numpy(audio)[None], torch.tensor([16000]))
    emphasised = np.append(audio[:1], audio[1:] - config.preemphasis * audio[:-1])
    theirs = librosa.feature.melspectrogram(
        y=emphasised, sr=16000, n_fft=512, hop_length=160, win_length=400, center=True, pad_mode="constant",
        window=np.hanning(400), power=2.0, n_mels=80, fmax=8000, norm="slaney", htk=False,
    )  # fmt: skip
    assert lengths.tolist() == [100]
    np.testing.assert_allclose(ours[0].numpy(), np.log(theirs.T[:100] + LOG_FLOOR), atol=2e-3)


@pytest.mark.parametrize(("n_mels", "f_max_hz"), [(80, 8000.0), (128, 8000.0), (64, 4000.0), (10, 900.0)])
def test_mel_filters_equal_librosas(n_mels: int, f_max_hz: float) -> None:
    """To single precision, also where a triangle is low: log features show the relative error."""
    theirs = librosa.filters.mel(sr=16000, n_fft=512, n_mels=n_mels, fmax=f_max_hz, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(512, n_mels, 16000, f_max_hz).numpy(), theirs.T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalize", ["corpus", "utterance"])
def test_padded_frames_are_zero(normalize: str) -> None:
    features = LogMel(FeatureConfig.model_validate({"normalize": normalize}))
    mel_BTF, lengths_B = features(torch.randn(2, 8000), torch.tensor([8000, 4000]))
    assert lengths_B.tolist() == [50, 25]
    assert not mel_BTF[1, 25:].any() and mel_BTF[1, :25].abs().max() > 0


def test_utterance_normalising_has_mean_0_and_deviation_1() -> None:
    features = LogMel(FeatureConfig(normalize="utterance"))
    mel_BTF, lengths_B = features(torch.randn(1, 16000), torch.tensor([16000]))
    torch.testing.assert_close(mel_BTF[0].mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(mel_BTF[0].std(0), torch.ones(80), atol=1e-3, rtol=0)


def test_measured_statistics_normalise_the_corpus() -> None:
    features = LogMel(FeatureConfig())
    audio_BN, samples_B = 0.1 * torch.randn(1, 48000), torch.tensor([48000])
    features.measure([features.log_mel(audio_BN, samples_B)[0][0]])
    mel_BTF, _ = features(audio_BN, samples_B)
    torch.testing.assert_close(mel_BTF[0].mean(0), torch.zeros(80), atol=1e-3, rtol=0)
    torch.testing.assert_close(mel_BTF[0].std(0), torch.ones(80), atol=1e-3, rtol=0)


def test_bins_above_a_recordings_band_hear_what_is_below() -> None:
    """Whatever stands beside it in the batch; a recording with all bins, or none of the lowest, is left as it is."""
    features = LogMel(FeatureConfig())
    audio_BN, samples_B = 0.1 * torch.randn(3, 16000), torch.tensor([16000, 12000, 16000])
    spectrum_BK = torch.fft.rfft(audio_BN)
    spectrum_BK[1, 6500:] = 0  # a mel bin is 0.3 kHz wide there
    spectrum_BK[2, :80] = 0
    audio_BN = torch.fft.irfft(spectrum_BK)
    log_mel_BTF, _ = features.log_mel(audio_BN, samples_B)
    mel_BTF, lengths_B = features(audio_BN, samples_B)
    assert torch.equal(mel_BTF[[0, 2]], log_mel_BTF[[0, 2]])
    is_same_F = (mel_BTF[1, :75] == log_mel_BTF[1, :75]).all(dim=0)
    n_heard = int(is_same_F.sum())
    assert 75 < n_heard < 78 and is_same_F[:n_heard].all()
    weights = torch.exp(torch.arange(-n_heard, 0) / 4.0)
    below_BT1 = (mel_BTF[1, :75, :n_heard] @ weights / weights.sum())[:, None]
    torch.testing.assert_close(mel_BTF[1, :75, n_heard:], below_BT1.expand(75, 80 - n_heard))
    alone_BTF, _ = features(audio_BN[1:2, :12000], samples_B[1:2])
    torch.testing.assert_close(mel_BTF[1:2, :75], alone_BTF, atol=1e-5, rtol=0)
    features.measure([log_mel_BTF[1, :75]])  # training data that end there, too
    usual_BTF, _ = features(audio_BN, samples_B)
    assert torch.equal(usual_BTF[1, :75], (log_mel_BTF[1, :75] - features.mean_F) / features.scale_F)


def test_level_shifts_every_bin_alike() -> None:
    features = LogMel(FeatureConfig())
    audio_BN, samples_B = 0.3 * torch.randn(1, 16000), torch.tensor([16000])
    loud, _ = features.log_mel(audio_BN, samples_B)
    soft, _ = features.log_mel(audio_BN / 2, samples_B)
    well_above_the_floor = loud > -8
    assert well_above_the_floor.float().mean() > 0.5
    difference = (loud - soft)[well_above_the_floor]
    torch.testing.assert_close(difference, torch.full_like(difference, 2 * np.log(2)), atol=2e-3, rtol=0)


def test_another_channel_filters_every_utterance_in_its_own_way() -> None:
    features = LogMel(FeatureConfig())
    audio_BN = 0.1 * torch.randn(3, 16000)
    features.measure([features.log_mel(audio_BN, torch.tensor([16000] * 3))[0][0]])
    mel_BTF, lengths_B = features(audio_BN, torch.tensor([16000, 16000, 8000]))
    moved_BTF = features.through_channels(mel_BTF, lengths_B)
    gains_BTF = (moved_BTF - mel_BTF) * features.scale_F * 10 / np.log(10)
    assert torch.allclose(gains_BTF[:2, :1], gains_BTF[:2], atol=1e-3) and not moved_BTF[2, 50:].any()
    gains_BF = gains_BTF[:, 0]
    assert not torch.allclose(gains_BF[0], gains_BF[1], atol=0.5) and 1 < gains_BF.std() < 15
    assert gains_BF.diff(dim=1).abs().max() < 4  # smooth
    assert features.through_channels(mel_BTF[:0], lengths_B[:0]).shape == (0, 100, 80)


def test_spec_augment_masks_within_its_limits() -> None:
    torch.manual_seed(0)
    config = AugmentConfig(time_masks=1, time_mask_frames=50, freq_masks=1, freq_mask_bins=8)
    masked = SpecAugment(config)(torch.ones(64, 100, 80), torch.full((64,), 100))
    frames = (masked.sum(2) == 0).sum(1)
    bins = (masked.sum(1) == 0).sum(1)
    assert frames.max() <= 20 and bins.max() <= 8  # at most 20 % of the time
    assert len(frames.unique()) > 5 and len(bins.unique()) > 3  # drawn for every utterance


def test_time_masks_are_drawn_within_each_utterance() -> None:
    """In a batch padded to 300 frames, utterances of 60, of which half a mask's longest 20 frames would be too much."""
    torch.manual_seed(0)
    mask = SpecAugment(AugmentConfig(time_masks=1, freq_masks=0))
    masked_BT = mask(torch.ones(500, 300, 2), torch.full((500,), 60))[..., 0] == 0
    frames_B = masked_BT.sum(1)
    assert not masked_BT[:, 60:].any() and masked_BT[:, 2:56].any(0).all()
    assert frames_B.max() == 11 and 0.7 < (frames_B > 0).float().mean() < 1
    assert mask(torch.ones(2, 9, 4), torch.tensor([9, 0])).all()  # a fifth of either is less than 2 frames
    assert mask(torch.ones(0, 9, 4), torch.zeros(0).long()).shape == (0, 9, 4)


@pytest.mark.parametrize("normalize", ["corpus", "utterance"])
def test_padding_may_be_anything(normalize: str) -> None:
    features = LogMel(FeatureConfig.model_validate({"normalize": normalize}))
    audio_BN, samples_B = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 4321])
    audio_BN[1, 4321:] = 0
    expected = features(audio_BN, samples_B)[0]
    for padding in (3.0, float("nan"), float("inf")):
        audio_BN[1, 4321:] = padding
        assert features(audio_BN, samples_B)[0].equal(expected)


@pytest.mark.parametrize("n_fft", [512, 511])
@pytest.mark.parametrize("window", [400, 399, 511])
def test_the_power_for_graphs_is_that_of_the_fft(n_fft: int, window: int) -> None:
    """Also of windows of an odd length, whose frames are as many as an even one's."""
    features = LogMel(FeatureConfig(n_fft=n_fft, window_samples=window))
    for samples in (1599, 1600, 1601, 1759):
        audio_BN = torch.randn(1, samples)
        power_BTK = features._power_by_products(audio_BN)
        spectrum_BKT = torch.stft(
            audio_BN, n_fft, 160, window, features.window, center=True, pad_mode="constant", return_complex=True
        )
        assert power_BTK.size(1) == samples // 160 + 1
        expected_BTK = spectrum_BKT.abs().square().transpose(1, 2)[:, : samples // 160]
        torch.testing.assert_close(power_BTK[:, : samples // 160], expected_BTK, atol=1e-2, rtol=1e-4)


def test_frame_mask() -> None:
    assert frame_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
