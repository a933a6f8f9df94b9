"""The command line: one file per command; :mod:`dwsep.cli.main` puts them together."""
