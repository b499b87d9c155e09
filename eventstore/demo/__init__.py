"""`make demo`: the store's main job on real and generated histories."""
