"""What other engines recorded of routing, as bundles: a module per engine."""
