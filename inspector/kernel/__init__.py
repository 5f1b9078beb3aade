"""The simulated pair: a producer kernel and a consumer kernel."""
