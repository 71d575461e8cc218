"""Learning: training of the agent and of the downstream model, evaluation and reports."""
