"""analysis_config.json and its typed, validated form."""
