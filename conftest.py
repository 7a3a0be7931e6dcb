"""Lets pytest run the Python examples of README.md, CONTRIBUTING.md and docs/, as `make check` asks it to."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"]).pytest()
