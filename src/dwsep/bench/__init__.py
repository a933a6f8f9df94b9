"""Measures dwsep's layers against what else could run them. Every output is verified before anything is timed."""
