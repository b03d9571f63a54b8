"""The audit: every attack that can run, scored on the shipped file, before and after."""

from nutlet.auditing.chosen import read_attacks
from nutlet.auditing.files import audit_files
from nutlet.auditing.protocol import Protocol
from nutlet.auditing.result import Audit
from nutlet.auditing.run import audit

__all__ = ["Audit", "Protocol", "audit", "audit_files", "read_attacks"]
