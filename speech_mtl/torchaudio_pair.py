"""torchaudio, or one sentence that says which pair of torch and torchaudio to install.

torchaudio's binary is built against one torch release: with any other the import dies deep inside the loader.
"""

try:
    import torchaudio
except (ImportError, OSError, RuntimeError) as error:
    raise ImportError(
        f"torchaudio does not load beside this torch ({error}); install the matched pair: "
        "pip install 'torch==2.11.0' 'torchaudio==2.11.0'"
    ) from error

__all__ = ["torchaudio"]
