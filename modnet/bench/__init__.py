"""Speed as ratios: what modnet does against a plain baseline, measured side by side in one run."""
