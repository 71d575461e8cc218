"""Serving: a FastAPI app over the agent's engine, by itself under uvicorn or spread out by Ray Serve.

The same app runs in both: `server.app` knows neither Ray nor which engine is behind it.
"""
