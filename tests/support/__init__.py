"""What several tests need; no test stands here, and no test imports a test."""
