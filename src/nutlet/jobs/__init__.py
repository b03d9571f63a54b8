"""Many independent pieces of work on all cores, or on Ray: each done once, kept on disk, the same wherever it runs."""

from nutlet.jobs.job import Job, Result
from nutlet.jobs.workers import Workers, layout

__all__ = ["Job", "Result", "Workers", "layout"]
