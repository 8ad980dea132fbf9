"""Measurements of this library and others, each in fresh processes: ``python -m experiments.bench <name>``.

A bench is a module with three things:

    DESCRIPTION               one line
    add_arguments(parser)     its own settings, on top of ``--out``
    run(args) -> Report       measures; ``record.write`` writes the report

To add one: a file here, a row in BENCHES. A module is imported only when its bench runs.
"""

BENCHES: dict[str, str] = {
    "sweep_vs_peft": "lora_jax.bench.sweep_vs_peft",
    "step": "lora_jax.bench.step_vs_peft",
    "inference": "lora_jax.bench.inference",
    "costs": "lora_jax.bench.costs",
}
