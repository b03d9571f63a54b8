"""The victim of an attack: a module, a shipped file, a function or an endpoint, behind a counter of queries."""

from nutlet.oracle.cache import CachedSource
from nutlet.oracle.disclosure import ACCESS, Access, Disclosure, as_probabilities, probabilities_of, usual_disclosure
from nutlet.oracle.endpoint import Endpoint, load_endpoint
from nutlet.oracle.oracle import FileSource, Ledger, ModuleSource, Oracle, Source, source_of

__all__ = [
    "ACCESS",
    "Access",
    "CachedSource",
    "Disclosure",
    "Endpoint",
    "FileSource",
    "Ledger",
    "ModuleSource",
    "Oracle",
    "Source",
    "as_probabilities",
    "load_endpoint",
    "probabilities_of",
    "source_of",
    "usual_disclosure",
]
