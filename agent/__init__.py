"""What a rewrite is: demonstrations, prompts, engines, gate, mismatch and the rewriter.

Knows no HTTP, no Ray and no training loop, and imports without torch: only
`agent.engine.transformers_engine`, `agent.models` and the embedding checks pull it in.
"""
