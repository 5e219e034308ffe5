"""From photographs to batches: sources, ingest, shards, order, augmentation and loaders."""
