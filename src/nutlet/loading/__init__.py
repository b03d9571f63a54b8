"""From what a user names on the command line to models and data: nothing that comes in a file is ever executed.

Only ``module:factory`` runs code, and it is the user's own: whoever names it has chosen to run it.
"""

from nutlet.loading.data import load_data, load_examples, load_inputs, split
from nutlet.loading.models import check_model, load_model

__all__ = ["check_model", "load_data", "load_examples", "load_inputs", "load_model", "split"]
