"""Property tests are not timed: on a busy machine an example that is slow says nothing about the code."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
