"""Audio to log-mel features, on the device, and the masks of SpecAugment.

Takes float32 audio_BN with lengths in samples, returns mel_BTF with lengths in frames. The steps are those of NeMo's
preprocessor as used by Parakeet (pre-emphasis, Hann window centred in the FFT, power, slaney mel, log(x + 2**-24)), so
that an imported model meets the features it was trained on. Frames beyond an utterance's length are exactly 0.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl.config import AugmentConfig, FeatureConfig
from speech_mtl.torchaudio_pair import torchaudio

LOG_FLOOR = 2.0**-24
MOST_MASKED = 0.2
"""Of an utterance's frames, by one time mask."""
EMPTY, USUAL, REACH_BINS = 0.1, 0.5, 4.0
"""A bin is empty whose mean height above the floor is below a tenth of all bins' mean, but in training half or more."""
CHANNEL_HZ, CHANNEL_STEP_DB = (0, 150, 400, 1000, 2500, 5000, 8000), 2.5
"""Of drawn microphones and rooms: where their gain is drawn, and the deviation of its steps from one to the next."""


def frame_mask(lengths_B: Tensor, size: int) -> Tensor:
    """Boolean mask (B, size), True inside each length."""
    return torch.arange(size, device=lengths_B.device)[None, :] < lengths_B[:, None]


def mel_filters(n_fft: int, n_mels: int, sample_rate: int, f_max_hz: float) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, (n_fft // 2 + 1, n_mels).

    In double precision: in single precision they are off by up to 0.2 % where a triangle is low, and log features by up
    to 1e-4. torchaudio's are double only where that is torch's default type, which belongs to all threads.
    """
    step = math.log(6.4) / 27  # of a mel above 1000 Hz, which are 15 mel; below, a mel is 200/3 Hz
    top = f_max_hz * 3 / 200 if f_max_hz < 1000 else 15 + math.log(f_max_hz / 1000) / step
    mel = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    edges_hz = torch.where(mel < 15, mel * (200 / 3), 1000 * torch.exp(step * (mel - 15)))
    low_F, middle_F, high_F = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    bins_K1 = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    triangles_KF = torch.minimum((bins_K1 - low_F) / (middle_F - low_F), (high_F - bins_K1) / (high_F - middle_F))
    return (triangles_KF.clamp(min=0) * (2 / (high_F - low_F))).float()


def above_the_band(mel_BTF: Tensor, lengths_B: Tensor, usual_F: Tensor) -> Tensor:
    """Boolean (B, 1, F): the uppermost bins of log_mel with next to nothing in them, as of telephones and many an mp3.

    `usual_F` is log_mel's mean over the training data; what was rather empty there, too, is left. Of the bundled
    model's FSDD alone is like that, at 8 kHz: a recording with three of 80 bins empty sounded like FSDD's speakers to
    it, and all its voices alike.
    """
    mask_BT1 = frame_mask(lengths_B, mel_BTF.size(1))[..., None]
    height_B1F = ((mel_BTF - math.log(LOG_FLOOR)) * mask_BT1).sum(1, keepdim=True)
    usual_F = usual_F - math.log(LOG_FLOOR)
    is_heard_B1F = (height_B1F >= EMPTY * height_B1F.mean(-1, keepdim=True)) | (usual_F < USUAL * usual_F.mean())
    return is_heard_B1F.to(mel_BTF).flip(-1).cumsum(-1).flip(-1) == 0


def from_below(mel_BTF: Tensor, empty_B1F: Tensor) -> Tensor:
    """The mean (B, T, 1) of the bins below the uppermost ones, each counting e^(-its distance / REACH_BINS)."""
    n_heard_B11 = (~empty_B1F).sum(-1, keepdim=True)
    place_F = torch.arange(mel_BTF.size(-1), device=mel_BTF.device, dtype=mel_BTF.dtype)
    weight_B1F = torch.exp((place_F - n_heard_B11) / REACH_BINS) * ~empty_B1F
    return (mel_BTF * weight_B1F).sum(-1, keepdim=True) / weight_B1F.sum(-1, keepdim=True)


class LogMel(nn.Module):
    """Log-mel features with fixed ('corpus') or per-utterance normalising."""

    filters_KF: Tensor
    window: Tensor
    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, config: FeatureConfig):
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # also in a model whose weights are still to come, see checkpoint.empty_model
            filters_KF = mel_filters(config.n_fft, config.n_mels, config.sample_rate, config.f_max_hz)
            window = torch.hann_window(config.window_samples, periodic=False, dtype=torch.float32)
            mean_F, scale_F = torch.zeros(config.n_mels), torch.ones(config.n_mels)
        # constants of the config, hence not in the weights file; mean and scale are measured, hence in it
        self.register_buffer("filters_KF", filters_KF, persistent=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mean_F", mean_F)
        self.register_buffer("scale_F", scale_F)

    def lengths(self, samples_B: Tensor) -> Tensor:
        """Frames of an utterance of so many samples."""
        return samples_B // self.config.hop_samples

    def forward(self, audio_BN: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """audio_BN float32 in [-1, 1] -> mel_BTF normalised, lengths_B in frames."""
        mel_BTF, lengths_B = self.log_mel(audio_BN, samples_B)
        mask_BT1 = frame_mask(lengths_B, mel_BTF.size(1))[..., None]
        if self.config.normalize == "utterance":
            count_B11 = lengths_B.clamp(min=2)[:, None, None]
            mean_B1F = (mel_BTF * mask_BT1).sum(1, keepdim=True) / count_B11
            centred_BTF = (mel_BTF - mean_B1F) * mask_BT1
            std_B1F = (centred_BTF.square().sum(1, keepdim=True) / (count_B11 - 1)).sqrt()
            return centred_BTF / (std_B1F + 1e-5), lengths_B
        empty_B1F = above_the_band(mel_BTF, lengths_B, self.mean_F)
        mel_BTF = (mel_BTF - self.mean_F) / self.scale_F
        return torch.where(empty_B1F, from_below(mel_BTF, empty_B1F), mel_BTF) * mask_BT1, lengths_B

    def log_mel(self, audio_BN: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """The features before normalising; autocast is off, since log and power need float32."""
        config = self.config
        with torch.autocast(audio_BN.device.type, enabled=False):
            if config.preemphasis:
                audio_BN = torch.cat([audio_BN[:, :1], audio_BN[:, 1:] - config.preemphasis * audio_BN[:, :-1]], dim=1)
            audio_BN = audio_BN.masked_fill(~frame_mask(samples_B, audio_BN.size(1)), 0.0)  # padding may be NaN
            if torch.compiler.is_exporting():
                power_BTK = self._power_by_products(audio_BN)
            else:
                spectrum_BKT = torch.stft(
                    audio_BN, config.n_fft, config.hop_samples, config.window_samples, self.window,
                    center=True, pad_mode="constant", return_complex=True,
                )  # fmt: skip
                power_BTK = torch.view_as_real(spectrum_BKT).square().sum(-1).transpose(1, 2)
            mel_BTF = torch.log(power_BTK @ self.filters_KF + LOG_FLOOR)
        lengths_B = self.lengths(samples_B)
        return mel_BTF[:, : audio_BN.size(1) // config.hop_samples], lengths_B

    def _power_by_products(self, audio_BN: Tensor) -> Tensor:
        """The power spectrum (B, T, K) as products with sines and cosines, for graphs: any runtime has those."""
        config, W = self.config, self.config.window_samples
        bins_K1 = torch.arange(config.n_fft // 2 + 1).double()[:, None]
        angle_KW = bins_K1 * torch.arange(W) * (2 * math.pi / config.n_fft)
        basis_CW = torch.cat([angle_KW.cos(), angle_KW.sin()]) * self.window.double()
        # the window lies in the middle of the FFT, which is centred on its frame
        padding = config.n_fft // 2 - (config.n_fft - W) // 2
        if W % 2:  # by one zero even, so that the number of frames is the same for all lengths up to the next hop
            left = int(2 * padding < W)
            basis_CW, padding = F.pad(basis_CW, (left, 1 - left)), padding + left
        parts_BCT = F.conv1d(audio_BN[:, None], basis_CW.float()[:, None], stride=config.hop_samples, padding=padding)
        cosine_BKT, sine_BKT = parts_BCT.chunk(2, dim=1)
        return (cosine_BKT.square() + sine_BKT.square()).transpose(1, 2)

    def measure(self, log_mels: list[Tensor]) -> None:
        """Set the fixed mean per bin, and scale per bin, from a sample of un-normalised log_mel (T, F) tensors."""
        frames_TF = torch.cat(log_mels)
        self.mean_F.copy_(frames_TF.mean(0))
        self.scale_F.copy_(frames_TF.std(0).clamp(min=0.1))

    def through_channels(self, mel_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """Features, normalised by a corpus, as they would be had each utterance passed another microphone and room.

        Each has a filter of its own: the gain at CHANNEL_HZ is a random walk around 0 dB, and straight between.
        """
        steps_BH = CHANNEL_STEP_DB * np.log(10) / 10 * torch.randn(len(mel_BTF), len(CHANNEL_HZ)).cumsum(1).numpy()
        bins_K = np.linspace(0, self.config.sample_rate / 2, len(self.filters_KF))
        filters_KF = self.filters_KF.cpu().numpy()
        centres_F = bins_K @ filters_KF / np.maximum(filters_KF.sum(0), 1e-9)
        gains_BF = [np.interp(centres_F, CHANNEL_HZ, step_H - step_H.mean()) for step_H in steps_BH]
        shift_BF = torch.from_numpy(np.array(gains_BF).reshape(-1, self.config.n_mels)).to(mel_BTF) / self.scale_F
        return (mel_BTF + shift_BF[:, None]) * frame_mask(lengths_B, mel_BTF.size(1))[..., None]


class SpecAugment(nn.Module):
    """Time and frequency masks (Park et al. 2019, arXiv 1904.08779), drawn per utterance; masked cells become 0."""

    def __init__(self, config: AugmentConfig):
        super().__init__()
        self.config = config

    def forward(self, mel_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """Time masks lie within each utterance's own length, whatever the batch is padded to."""
        B, T, _ = mel_BTF.shape
        frames_1T = torch.arange(T, device=mel_BTF.device)[None, :]
        most_B = (MOST_MASKED * lengths_B).long().clamp(max=self.config.time_mask_frames)
        for _ in range(self.config.time_masks):
            width_B = torch.rand(B, device=mel_BTF.device) * most_B
            first_B1 = (torch.rand(B, device=mel_BTF.device) * (lengths_B - width_B)).long()[:, None]
            masked_BT = (frames_1T >= first_B1) & (frames_1T < first_B1 + width_B.long()[:, None])
            mel_BTF = mel_BTF.masked_fill(masked_BT[..., None], 0.0)
        for _ in range(self.config.freq_masks):  # works on any (..., axis, axis), here time then frequency
            mel_BTF = torchaudio.functional.mask_along_axis_iid(mel_BTF, self.config.freq_mask_bins, 0.0, axis=2)
        return mel_BTF
