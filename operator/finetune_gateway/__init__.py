"""The data plane: an OpenAI-compatible proxy in front of an endpoint's versions.

One event loop, one replica of several. What decides (`routing`, `breaker`, `quality`) is pure; the rest moves bytes.
 What must not slow a client down (shadow, probes, reports) runs beside the request, bounded, and sheds first.
"""
