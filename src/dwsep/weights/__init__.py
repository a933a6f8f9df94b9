"""Weights of other libraries into dwsep's layers, and weights of ours in folders and on the Hugging Face hub."""

from dwsep.weights._load import load
from dwsep.weights._pretrained import from_pretrained, push_to_hub, save_pretrained
from dwsep.weights._report import LoadReport, Match
from dwsep.weights._sources import read

__all__ = ["LoadReport", "Match", "from_pretrained", "load", "push_to_hub", "read", "save_pretrained"]
