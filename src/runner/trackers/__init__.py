"""Where a run is shown. metrics.jsonl in its folder is the truth; trackers copy it and cannot hurt it."""
