"""From rows on disk to batches: reading, chat rendering, order, collation."""
