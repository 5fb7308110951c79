"""OpenAI-compatible HTTP server, web page and terminal chat. Knows nothing of Ray or Kubernetes."""
