"""The joint-VAE: latent dimensions, sparse input layer, fused decoder."""
