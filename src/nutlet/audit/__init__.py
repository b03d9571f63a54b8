"""The audit: every attack that can run, scored on the shipped file, before and after."""

from nutlet.audit.files import audit_files
from nutlet.audit.protocol import Protocol
from nutlet.audit.result import Audit
from nutlet.audit.run import audit

__all__ = ["Audit", "Protocol", "audit", "audit_files"]
