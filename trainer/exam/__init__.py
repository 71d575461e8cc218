"""The exam of a fine-tuned model: what it learnt, what it forgot, and how far it moved from the base model.

Task accuracy by our own answer check, retention by lm-eval on public benchmarks, and the forward KL divergence on task
prompts, all through the engine. Not here: the held-out evaluation of the rewriting agent (`trainer.evaluation`).
"""
