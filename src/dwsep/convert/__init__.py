"""A trained dense network becomes separable, its weights kept, within a budget; and dense again."""

from dwsep.convert._api import merge_, separate_
from dwsep.convert._config import SeparateConfig
from dwsep.convert._file import load_, save
from dwsep.convert._report import SeparatedLayer, SeparationReport
from dwsep.nn._separated import restructure_, structure_of

__all__ = [
    "SeparateConfig",
    "SeparatedLayer",
    "SeparationReport",
    "load_",
    "merge_",
    "restructure_",
    "save",
    "separate_",
    "structure_of",
]
