"""medvr_jax: train medical vision-language models to look before they answer (MedVR in JAX)."""
