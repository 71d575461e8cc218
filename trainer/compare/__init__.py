"""Methods side by side: the same task, steps and learning rates for each; what is gained, and what is forgotten.

Not here: rewriting (`agent`), fine-tuning (`trainer.sft`) and examining (`trainer.exam`), which this drives.
"""
