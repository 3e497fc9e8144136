"""An OpenAI-compatible server: requests over HTTP, in one batch on one model."""
