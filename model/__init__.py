"""PixelVLA as modules: backbones, pixel-aware and prompt encoders, action decoder, and the policy made of them."""
