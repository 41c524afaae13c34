"""What lies on disk: files, shard index, headers, bytes and config.json of a checkpoint."""
