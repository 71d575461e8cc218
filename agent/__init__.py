"""What a rewrite is: demonstrations, prompts, engines, gate, mismatch and the rewriter.

Knows no HTTP, no Ray and no training loop, and imports without torch: what needs torch lives in the modules
of `agent.engine`, or imports it inside its functions.
"""
