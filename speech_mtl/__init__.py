"""speech_mtl: what was said and who said it, from one Conformer learnt on both tasks.

`Recognizer`, `train`, `load_model` and `evaluate` are loaded when they are first asked for: an import costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_mtl.checkpoint import load_model as load_model
    from speech_mtl.evaluate import evaluate as evaluate
    from speech_mtl.recognizer import Recognizer as Recognizer
    from speech_mtl.train import train as train

__version__ = "0.1.0"
__all__ = ["Recognizer", "__version__", "evaluate", "load_model", "train"]


class _Lazy:
    """An attribute that imports itself.

    `train` and `evaluate` are functions and also the modules that hold them: whoever imports the module first must not
    change what `speech_mtl.train` is, hence a descriptor that wins over the import system's own assignment.
    """

    def __init__(self, module: str):
        self.module = module

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, package: ModuleType | None, owner: type) -> Any:
        return getattr(importlib.import_module(self.module), self.name)

    def __set__(self, package: ModuleType, value: Any) -> None:
        if value is not sys.modules.get(self.module):
            raise AttributeError(f"speech_mtl.{self.name} cannot be replaced")


class _Package(ModuleType):
    Recognizer = _Lazy("speech_mtl.recognizer")
    evaluate = _Lazy("speech_mtl.evaluate")
    load_model = _Lazy("speech_mtl.checkpoint")
    train = _Lazy("speech_mtl.train")


sys.modules[__name__].__class__ = _Package
