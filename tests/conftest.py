"""Eight CPU devices for every test process, so that meshes are real; arrays live on the first unless a test says so."""

from __future__ import annotations

import jax

jax.config.update("jax_num_cpu_devices", 8)
