"""The page at `/`: what this is, whether it is ready, where the description lies."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rewright</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; color: #222 }
  code { background: #f2f2f2; padding: .1rem .3rem; border-radius: .2rem }
  @media (prefers-color-scheme: dark) {
    body { background: #181818; color: #ddd } code { background: #333 } a { color: #8bf }
  }
</style>
</head>
<body>
<h1>Rewright</h1>
<p>Rewrites expert demonstrations so that they fit the model that will learn from them.</p>
<p role="status">Status: <strong id="status">asking…</strong></p>
<ul>
  <li><a href="docs">Description of the API, to try out</a></li>
  <li><a href="openapi.json">The same for programs</a></li>
  <li><code>POST /v1/rewrites</code> rewrites, <code>POST /v1/mismatch</code> scores</li>
</ul>
<script>
  async function ask() {
    let text = "not reachable";
    try {
      const response = await fetch("readyz");
      const body = await response.json();
      text = response.ok ? `ready, ${body.model}, ${body.queue_rows} demonstrations in work` : body.error.message;
    } catch (error) {}
    document.getElementById("status").textContent = text;
  }
  ask();
  setInterval(ask, 5000);
</script>
</body>
</html>
"""
