"""Where the records of a run go beside its files: W&B, and what else is registered in SINKS. Needs no JAX."""

from lora_jax.tracking.session import SINKS, TrackingSession
from lora_jax.tracking.sink import Sink, SinkSession, SinkSettings
from lora_jax.tracking.tracker import Tracker
from lora_jax.tracking.wandb import WandbSession, WandbSink

__all__ = [
    "SINKS",
    "Sink",
    "SinkSession",
    "SinkSettings",
    "Tracker",
    "TrackingSession",
    "WandbSession",
    "WandbSink",
]
