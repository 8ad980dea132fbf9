"""Which folder the cache is in."""

from pathlib import Path

from lora_jax.cache import cache_folder


def test_the_environment_names_the_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("LORA_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/lora_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/lora_jax")
    monkeypatch.setenv("LORA_JAX_CACHE", "~/here")
    assert cache_folder() == Path("/home/somebody/here")
