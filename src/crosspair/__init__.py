"""Learn video representations from videos and the text that comes with them (CPD)."""
